"""Batch types: NamedTuples of arrays that data makes and models read.  Imports no JAX."""

from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Float32, Int32

# Numpy arrays when data makes them, JAX arrays or tracers when a model reads them.
AnyArray: TypeAlias = Any


class RecipeBatch(NamedTuple):
    """Recipes as padded sets of foods; the order of a recipe's members means nothing.

    Attributes:
        foods: index into the vocabulary of `v` foods; `v` at padding.
        lengths: members per recipe; members come first, then padding.
        grams: grams of each member; all zero for a recipe that is not fully weighed, and zero at
            padding.
    """

    foods: Int32[AnyArray, "b m"]
    lengths: Int32[AnyArray, "b"]
    grams: Float32[AnyArray, "b m"]


class Molecules(NamedTuple):
    """What is known of each food's molecules: frozen inputs of a model, not parameters.

    Attributes:
        composition: standardised log concentrations; zero where not observed.
        observed: one where the concentration is known, else zero: missing is not zero.
        flavour: one where the food has the flavour compound, else zero.
        has_flavour: one where the food's flavour compounds are known at all, else zero.
    """

    composition: Float32[AnyArray, "v c"]
    observed: Float32[AnyArray, "v c"]
    flavour: Float32[AnyArray, "v a"]
    has_flavour: Float32[AnyArray, "v"]


class TokenBatch(NamedTuple):
    """Rows of tokens, each of one sequence or of several packed one after the other.

    Attributes:
        tokens: index into the vocabulary; anything at padding.
        segments: number of the sequence within its row, from 1; 0 at padding, which is last.
        positions: place of each token in its sequence, from 0.
        weights: what predicting the token, from those before it in its sequence, counts in the
            loss: 0 for a sequence's first token, at padding, and for prompts that are not learned.
    """

    tokens: Int32[AnyArray, "b t"]
    segments: Int32[AnyArray, "b t"]
    positions: Int32[AnyArray, "b t"]
    weights: Float32[AnyArray, "b t"]


class SequencePairBatch(NamedTuple):
    """Pairs of sequences, each padded on the right with any token.

    Attributes:
        source: what is read.
        source_lengths: real tokens of each source, at least one.
        target: what is to be written; its first token begins every target, its last real one ends
            it.
        target_lengths: real tokens of each target, both of these included.
    """

    source: Int32[AnyArray, "b s"]
    source_lengths: Int32[AnyArray, "b"]
    target: Int32[AnyArray, "b t"]
    target_lengths: Int32[AnyArray, "b"]


class NextItemBatch(NamedTuple):
    """Rows of item histories, several packed one after the other, each item with the one after it.

    Attributes:
        items: index into the `n` items of the catalogue; anything at padding.
        targets: the item that follows in the same history; anything at padding.
        segments: number of the history within its row, from 1; 0 at padding, which is last.
        positions: place of each item in its history, from 0.
    """

    items: Int32[AnyArray, "b t"]
    targets: Int32[AnyArray, "b t"]
    segments: Int32[AnyArray, "b t"]
    positions: Int32[AnyArray, "b t"]
