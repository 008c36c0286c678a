"""Products with weights against numpy's einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from recipe_jax.layers.products import project

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("x", "weight", "num_summed", "spec"),
    [
        (draw(2, 3, 4), draw(4, 5), 1, "bte,ef->btf"),
        (draw(2, 3, 4), draw(4, 5, 6), 1, "bte,ehd->bthd"),
        (draw(2, 3, 4, 5), draw(4, 5, 6), 2, "bthd,hde->bte"),
        (draw(4), draw(4, 5), 1, "e,ef->f"),
    ],
)
def test_it_sums_over_the_last_axes_and_the_first(x, weight, num_summed, spec):
    y = project(x, weight, num_summed=num_summed)
    assert_close(y, np.einsum(spec, x, weight))


def test_sums_are_float32_whatever_the_activations():
    x, weight = draw(2, 300).astype(jnp.bfloat16), draw(300, 3)
    y = project(x, weight)
    exact = np.asarray(x, np.float64) @ np.asarray(weight.astype(jnp.bfloat16), np.float64)
    assert y.dtype == jnp.float32
    assert_close(y, exact)


def test_gradients_are_those_of_einsum():
    x, weight = draw(2, 3, 4), draw(4, 5, 6)

    def total(product):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1))(x, weight)

    plain = total(lambda x, w: jnp.einsum("bte,ehd->bthd", x, w))
    assert_close(total(project), plain, kind="gradient")
