"""The variants of the ablation: what each changes, and what it is scored on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from experiments.recipes.prepared import Prepared
from recipe_jax.data.recipes import DataError, RecipeSets, split_of

Question: TypeAlias = Literal["foods", "amounts", "unseen"]
Data: TypeAlias = Callable[[Prepared, int], Prepared]

NUM_UNSEEN = 50
UNSEEN_COUNTS = (20, 2000)
UNSEEN_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant.

    Attributes:
        about: what it is, for people.
        flags: of `train`, where they differ from its defaults.
        asks: what it is scored on.
        data: the data it learns from, given all of it and the run's seed.
    """

    about: str
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    asks: tuple[Question, ...] = ("foods",)
    data: Data = lambda prepared, seed: prepared


def random_vectors(prepared: Prepared, seed: int) -> Prepared:
    """Every food's composition replaced by as many standard normal numbers, all observed."""
    features = prepared.features
    drawn = np.random.default_rng([seed, 1]).normal(size=features.components.shape)
    return dataclasses.replace(
        prepared,
        features=dataclasses.replace(
            features,
            components=drawn.astype(features.components.dtype),
            observed=np.ones_like(features.observed),
        ),
    )


def without_unseen(prepared: Prepared, seed: int) -> Prepared:
    """Leave out every training recipe that holds an unseen food.

    The recipe goes, not the food alone: what would remain is no recipe that anybody wrote, and it
    would teach that the set is complete exactly where the unseen food belongs.

    Args:
        prepared: all of the data.
        seed: of the run; the foods are the same in every run.
    """
    del seed
    sets = prepared.sets
    training = np.array([split_of(name) == "train" for name in sets.recipe_ids], bool)
    held = count_unseen(sets, unseen_foods(prepared)) > 0
    return dataclasses.replace(prepared, sets=sets.select(~(training & held)))


def unseen_foods(prepared: Prepared) -> Bool[np.ndarray, "v"]:
    """Foods that no training recipe may hold: 50 of those with 20 to 2,000, by a fixed seed.

    Where fewer than 200 have so many recipes, a quarter of them is taken.

    Raises:
        DataError: too few recipes.
    """
    v = len(prepared.foods)
    training = prepared.sets.select_completion().select_split("train")
    counts = np.bincount(training.foods, minlength=v)
    few, many = UNSEEN_COUNTS
    candidates = np.flatnonzero((counts >= few) & (counts <= many))
    if len(candidates) < 4:
        raise DataError(f"unseen foods: only {len(candidates)} have {few} to {many} recipes")
    count = min(NUM_UNSEEN, len(candidates) // 4)
    drawn = np.random.default_rng(UNSEEN_SEED).permutation(candidates)[:count]
    return np.isin(np.arange(v), drawn)


def count_unseen(sets: RecipeSets, unseen: Bool[np.ndarray, "v"]) -> Int64[np.ndarray, "n"]:
    """How many unseen foods each recipe holds."""
    rows = np.repeat(np.arange(len(sets)), sets.sizes)
    return np.bincount(rows[unseen[sets.foods]], minlength=len(sets))


AMOUNTS: Mapping[str, Any] = {
    "embed_dim": 96,
    "num_heads": 4,
    "learning_rate": 0.0025,
    "dropout": 0.2,
    "member_dropout": 0.2,
    "weight_decay": 0.1,
}
"""What all models of amounts share: the settings of the committed run."""

MOLECULES = ("composition", "flavour")


def _amounts(model: str) -> dict[str, Any]:
    return {**AMOUNTS, "model": model}


SHARED: Mapping[str, Any] = {"pairs": False}
"""Of every variant: a memory of pairs is the decoder-only generator's alone, and would hide what
food vectors, losses and architectures do."""

VARIANTS: Mapping[str, Variant] = {
    "base": Variant(about="decoder alone, all sources, remaining set, no positions"),
    "molecules": Variant(about="molecules only", flags={"sources": MOLECULES}),
    "learned": Variant(about="learned vectors only", flags={"sources": ("learned",)}),
    "random": Variant(
        about="random frozen vectors only",
        flags={"sources": ("composition",)},
        data=random_vectors,
    ),
    "positions": Variant(about="learned positions", flags={"positions": "learned"}),
    "next-food": Variant(about="loss of the next food alone", flags={"loss": "next-food"}),
    "encoder-decoder": Variant(about="encoder and decoder", flags={"model": "encoder-decoder"}),
    "masked-set": Variant(about="masked sets, in 8 passes", flags={"model": "masked-set"}),
    "joint": Variant(
        about="foods and grams in one", flags={"model": "joint"}, asks=("foods", "amounts")
    ),
    "amounts": Variant(
        about="mixture of 8 (split: base and this)", flags=_amounts("amounts"), asks=("amounts",)
    ),
    "mean-amounts": Variant(about="plain mean", flags=_amounts("mean-amounts"), asks=("amounts",)),
    "autoregressive-amounts": Variant(
        about="one after the other", flags=_amounts("autoregressive-amounts"), asks=("amounts",)
    ),
    "unseen-molecules": Variant(
        about="molecules only",
        flags={"sources": MOLECULES},
        asks=("unseen",),
        data=without_unseen,
    ),
    "unseen-learned": Variant(
        about="learned vectors only",
        flags={"sources": ("learned",)},
        asks=("unseen",),
        data=without_unseen,
    ),
    "unseen-both": Variant(about="both", asks=("unseen",), data=without_unseen),
}
"""Fifteen variants by name."""
