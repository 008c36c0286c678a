"""The variants of the ablation: what each changes, and what it is scored on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from experiments.recipes.prepared import Prepared
from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import RecipeSets

Question: TypeAlias = Literal["foods", "amounts", "unseen"]
Data: TypeAlias = Callable[[Prepared, int], Prepared]

NUM_UNSEEN = 50
UNSEEN_SHARES = (1 / 3000, 1 / 50)
UNSEEN_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant.

    Attributes:
        about: what it is, for people.
        flags: of `train`, where they differ from its defaults.
        asks: what it is scored on.
        data: what it learns from, given what all learn from and the run's seed.
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


def without_unseen(prepared: Prepared) -> Prepared:
    """Leave out every recipe that holds an unseen food.

    The recipe goes, not the food alone: what would remain is no recipe that anybody wrote, and it
    would teach that the set is complete exactly where the unseen food belongs.

    Args:
        prepared: all of the data.
    """
    keep = count_unseen(prepared.sets, unseen_foods(prepared)) == 0
    return dataclasses.replace(prepared, sets=prepared.sets.select(keep))


def unseen_foods(prepared: Prepared) -> Bool[np.ndarray, "v"]:
    """Foods that no run may learn from: 50 that are neither rare nor common, by a fixed seed.

    They are drawn from the foods in 1/3,000 to 1/50 of the training recipes; where these are fewer
    than 500, a tenth of them.

    Raises:
        DataError: too few recipes.
    """
    v = len(prepared.foods)
    training = prepared.sets.select_completion().select_split("train")
    counts = np.bincount(training.foods, minlength=v)
    few, many = (max(1.0, share * len(training)) for share in UNSEEN_SHARES)
    candidates = np.flatnonzero((counts >= few) & (counts <= many))
    count = min(NUM_UNSEEN, len(candidates) // 10)
    if count == 0:
        raise DataError(
            f"unseen foods: only {len(candidates)} foods are in {few:.0f} to {many:.0f} of the "
            f"{len(training)} training recipes; 10 are needed"
        )
    drawn = np.random.default_rng(UNSEEN_SEED).permutation(candidates)[:count]
    return np.isin(np.arange(v), drawn)


def count_unseen(sets: RecipeSets, unseen: Bool[np.ndarray, "v"]) -> Int64[np.ndarray, "n"]:
    """How many unseen foods each recipe holds."""
    rows = np.repeat(np.arange(len(sets)), sets.sizes)
    return np.bincount(rows[unseen[sets.foods]], minlength=len(sets))


AMOUNTS: Mapping[str, Any] = {
    "embed_dim": 96,
    "num_layers": 3,
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
"""Of every variant but one: a memory of pairs is the decoder-only generator's alone, and would hide
what food vectors, losses and architectures do."""

ALONE: tuple[Question, ...] = ("foods", "unseen")
"""What a decoder alone is asked: it can rank any food, seen or not."""

VARIANTS: Mapping[str, Variant] = {
    "base": Variant(about="decoder alone, all sources, remaining set, no positions", asks=ALONE),
    "molecules": Variant(about="molecules only", flags={"sources": MOLECULES}, asks=ALONE),
    "learned": Variant(about="learned vectors only", flags={"sources": ("learned",)}, asks=ALONE),
    "random": Variant(
        about="random frozen vectors only",
        flags={"sources": ("composition",)},
        asks=ALONE,
        data=random_vectors,
    ),
    "pairs": Variant(about="and a memory of pairs", flags={"pairs": True}, asks=ALONE),
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
}
"""Thirteen variants by name.  What all learn from has no recipe with an unseen food."""
