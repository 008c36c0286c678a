"""Low-rank adapters: nothing at first, then exactly the correction they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.low_rank import Adapter, LowRank, make_adapter, merged_weight

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)
CFG = LowRank(rank=2, alpha=6.0)


def make():
    return Adapter(CFG, (8,), (3, 4), ("embed",), ("heads", "head_dim"), rngs=nnx.Rngs(0))


def test_an_adapter_starts_as_zero_and_can_leave_it():
    fn, params = purify(make())
    assert not jnp.any(fn.bind(params)(X))
    assert jnp.any(params["down"])
    assert fn.axes == {"down": ("embed", None), "up": (None, "heads", "head_dim")}


def test_it_is_the_scaled_product_and_merges_into_the_weight():
    fn, params = drawn(make)
    expected = 3.0 * np.einsum("bte,er,rhd->bthd", X, params["down"], params["up"])
    assert_close(fn.bind(params)(X), expected)
    weight = jnp.ones((8, 3, 4))
    merged = merged_weight(weight, params["down"], params["up"], 3.0)
    assert_close(np.einsum("bte,ehd->bthd", X, merged - weight), expected)


def test_only_targets_get_one():
    def of(target):
        return make_adapter(CFG, target, (8,), (4,), ("embed", "mlp"), nnx.Rngs(0))

    assert of("query") is not None and of("up") is None
    assert make_adapter(None, "query", (8,), (4,), ("embed", "mlp"), nnx.Rngs(0)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [({"rank": 0}, "rank=0 must"), ({"rank": 1, "targets": ("query", "norm")}, "norm")],
)
def test_nonsense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LowRank(**given)
