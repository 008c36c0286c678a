"""Dropout: a key drops, no key does not, and the mean stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipe_jax.layers.dropout import dropout, split_key

KEY = jax.random.key(0)
X = jnp.full((200, 500), 2.0)


def test_without_a_key_or_a_rate_nothing_changes():
    assert dropout(X, 0.9, None) is X
    assert dropout(X, 0.0, KEY) is X


def test_a_share_is_dropped_and_the_rest_makes_up_for_it():
    y = np.asarray(dropout(X, 0.3, KEY))
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(y[y > 0], 2.0 / 0.7, rtol=1e-6)


def test_the_key_decides():
    assert (dropout(X, 0.5, KEY) == dropout(X, 0.5, KEY)).all()
    assert (dropout(X, 0.5, KEY) != dropout(X, 0.5, jax.random.key(1))).any()


def test_each_place_gets_its_own_key():
    first, second = split_key(KEY, 2)
    assert (jax.random.key_data(first) != jax.random.key_data(second)).any()
    assert split_key(None, 2) == (None, None)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(ValueError, match=r"dropout_rate=.* must be at least 0 and below 1"):
        dropout(X, rate, KEY)
