"""The one table of tolerances: how far two ways of computing the same thing may be apart."""

import jax
import numpy as np

RELATIVE_AND_ABSOLUTE = {
    ("float32", "elementwise"): (1e-6, 1e-6),
    ("float32", "forward"): (1e-5, 2e-5),
    ("float32", "gradient"): (1e-4, 1e-4),
    ("bfloat16", "elementwise"): (1e-2, 1e-2),
    ("bfloat16", "forward"): (2e-2, 2e-2),
    ("bfloat16", "gradient"): (5e-2, 5e-2),
}
"""By dtype and kind: one pointwise formula, a layer's or a stack's outputs, gradients of these."""


def assert_close(actual, expected, kind: str = "forward", dtype: str = "float32") -> None:
    """Compare two trees of arrays leaf by leaf; NaN is equal to nothing."""
    relative, absolute = RELATIVE_AND_ABSOLUTE[dtype, kind]
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float64),
            np.asarray(wanted, np.float64),
            rtol=relative,
            atol=absolute,
            equal_nan=False,
        )
