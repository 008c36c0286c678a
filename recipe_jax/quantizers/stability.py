"""How much of what a quantizer says of items would another seed say as well."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int
from sklearn.metrics import adjusted_mutual_info_score

from recipe_jax.quantizers.statistics import prefix_groups


def prefix_agreement(runs: Sequence[Int[np.ndarray, "n q"]]) -> Float64[np.ndarray, "q"]:
    """Adjusted mutual information of the groups of items that each level tells apart.

    Vinh et al. 2010 ("Information theoretic measures for clusterings comparison"): 0 as chance has
    it, 1 where two runs group items alike.  Codes are names without an order, so runs are compared
    by the groups that they make, and by those of whole prefixes: what a code of a later level means
    depends on those before it.  Agreement after the best matching of names would be another choice,
    but is not corrected for chance, which grows with the number of codes.  Where nearly every item
    is a group of its own, as for whole ids, chance explains everything and the number says little.

    Args:
        runs: codes of the same items by quantizers of different seeds.

    Returns:
        For each level the mean over pairs of runs.

    Raises:
        ValueError: fewer than two runs, or of other items.
    """
    if len(runs) < 2 or len({codes.shape for codes in runs}) > 1:
        shapes = [codes.shape for codes in runs]
        raise ValueError(f"codes of shapes {shapes}: give two runs or more, of the same items")
    groups = [prefix_groups(codes) for codes in runs]
    pairs = [
        [
            adjusted_mutual_info_score(first[:, level], second[:, level])
            for level in range(first.shape[1])
        ]
        for first, second in itertools.combinations(groups, 2)
    ]
    return np.mean(pairs, axis=0)
