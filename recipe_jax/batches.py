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
