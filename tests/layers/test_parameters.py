"""Parameters carry axes, in float32, and refuse what does not fit."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from recipe_jax.functional import purify
from recipe_jax.layers import initializers
from recipe_jax.layers.parameters import parameter

KEY = jax.random.key(0)


class Holder(nnx.Module):
    def __init__(self, axes):
        self.kernel = parameter(KEY, (2, 3), axes, initializers.ones)


def test_axes_reach_the_table_that_sharding_reads():
    fn, params = purify(Holder(("embed", None)))
    assert fn.axes == {"kernel": ("embed", None)}
    assert params["kernel"].dtype == jnp.float32


def test_axes_must_name_every_dimension():
    with pytest.raises(ValueError, match=r"axes=\('embed',\) must name each .* shape=\(2, 3\)"):
        Holder(("embed",))


def test_an_initializer_must_keep_its_contract():
    with pytest.raises(ValueError, match=r"gave bfloat16\[2\], expected float32\[2\]"):
        parameter(KEY, (2,), (None,), lambda key, shape: jnp.ones(shape, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"gave float32\[3\], expected float32\[2\]"):
        parameter(KEY, (2,), (None,), lambda key, shape: jnp.ones((3,)))
