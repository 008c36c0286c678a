"""Do generated recipes look like real ones?  Two-sample tests, lengths, copies and rules.

A classifier is trained to tell generated sets of foods from test recipes (Lopez-Paz & Oquab 2017,
arXiv:1610.06545): its cross-validated AUC is .5 where it cannot and 1 where it always can.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from experiments.recipes.completion import food_bits
from recipe_jax.data.batching import pad_recipes
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.metrics import highest_jaccard, student_t_interval, wasserstein_distance

NEAR_COPY_JACCARD = 0.9
NEAR_COPY_MIN_FOODS = 5
NUM_PAIRS = {"logistic": 1000, "boosting": 300}
"""Pair features per classifier; boosted trees also find pairs in the food bits by themselves."""


def evaluate_generation(
    generated: Int[np.ndarray, "n m"],
    *,
    real: RecipeSets,
    training: RecipeSets,
    num_foods: int,
    forbidden: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Every measure of a batch of generated recipes against as many unseen real ones.

    Args:
        generated: foods of each recipe, padded with `num_foods`; repeats are counted, not hidden.
        real: unseen recipes; as many as were generated are drawn from them by `seed`.
        training: recipes that must not be copied.
        num_foods: size of the vocabulary, which is also the padding index.
        forbidden: foods that no generated recipe may hold.
        seed: of the draw and of the folds.

    Returns:
        Shares over the generated recipes; `*_of_real` is the same share of the real sample, the
        level that an honest sampler would reach.
    """
    bits = food_bits(generated.astype(np.int32), num_foods=num_foods)
    real_bits = food_bits(
        sample_recipes(real, len(bits), num_foods=num_foods, seed=seed), num_foods=num_foods
    )
    training_bits = food_bits(_padded(training, num_foods), num_foods=num_foods)
    lengths = (generated < num_foods).sum(axis=1)
    report: dict[str, Any] = {"n": len(bits)}
    for classifier in ("logistic", "boosting"):
        auc, interval = two_sample_auc(bits, real_bits, classifier=classifier, seed=seed)
        report |= {f"auc_{classifier}": auc, f"auc_{classifier}_interval": interval}
    return report | {
        "length_mean": float(lengths.mean()),
        "length_wasserstein": wasserstein_distance(lengths, real_bits.sum(axis=1)),
        "near_copy_share": float(near_copies(bits, training_bits).mean()),
        "near_copy_share_of_real": float(near_copies(real_bits, training_bits).mean()),
        "distinct_share": len(np.unique(bits, axis=0)) / len(bits),
        "repeat_share": float((lengths > bits.sum(axis=1)).mean()),
        "forbidden_share": float(bits[:, list(forbidden)].any(axis=1).mean()),
    }


def two_sample_auc(
    first: Bool[np.ndarray, "n v"],
    second: Bool[np.ndarray, "other_n v"],
    *,
    classifier: Literal["logistic", "boosting"] = "logistic",
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """How well a classifier tells two samples of sets apart: AUC, and its 95 % interval.

    The mean over stratified folds and Student's interval over them.  Pairs are chosen by their
    count in both samples together, so that the choice knows no label.

    Raises:
        ValueError: a sample with fewer sets than folds.
    """
    if min(len(first), len(second)) < folds:
        raise ValueError(f"{folds} folds need as many sets, got {len(first)} and {len(second)}")
    features = pair_features(np.concatenate([first, second]), num_pairs=NUM_PAIRS[classifier])
    labels = np.repeat([1, 0], [len(first), len(second)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels)
    aucs = []
    for fitted, held_out in splits:
        model = _classifier(classifier, seed).fit(features[fitted], labels[fitted])
        aucs.append(roc_auc_score(labels[held_out], model.predict_proba(features[held_out])[:, 1]))
    auc, low, high = student_t_interval(np.array(aucs))
    return auc, [low, high]


def pair_features(bits: Bool[np.ndarray, "n v"], *, num_pairs: int) -> Float32[np.ndarray, "n c"]:
    """Food bits, and bits of the pairs of foods that occur together most often."""
    rows = bits.astype(np.float32)
    together = np.triu(rows.T @ rows, 1).ravel()
    most = np.argsort(-together, kind="stable")[:num_pairs]
    first, second = np.divmod(most[together[most] > 0], bits.shape[1])
    return np.concatenate([rows, rows[:, first] * rows[:, second]], axis=1)


def near_copies(
    bits: Bool[np.ndarray, "n v"], training: Bool[np.ndarray, "other_n v"]
) -> Bool[np.ndarray, "n"]:
    """Sets of at least 5 foods with a Jaccard similarity of at least .9 to a training recipe."""
    large = bits.sum(axis=1) >= NEAR_COPY_MIN_FOODS
    return large & (highest_jaccard(bits, training) >= NEAR_COPY_JACCARD)


def sample_recipes(
    recipes: RecipeSets, count: int, *, num_foods: int, seed: int
) -> Int32[np.ndarray, "n m"]:
    """Foods of `count` different recipes, or of all where there are fewer, drawn at random."""
    rows = np.random.default_rng(seed).permutation(len(recipes))[:count]
    return _padded(recipes.select(np.isin(np.arange(len(recipes)), rows)), num_foods)


def _padded(recipes: RecipeSets, num_foods: int) -> Int32[np.ndarray, "n m"]:
    size = int(recipes.sizes.max(initial=0))
    return pad_recipes(recipes, range(len(recipes)), num_foods=num_foods, size=size).foods


def _classifier(name: str, seed: int) -> LogisticRegression | HistGradientBoostingClassifier:
    if name == "logistic":
        return LogisticRegression(C=0.1, max_iter=2000)
    return HistGradientBoostingClassifier(max_leaf_nodes=8, random_state=seed)
