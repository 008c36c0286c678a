"""Adapters of a language model: added without a change, trained alone, merged without a change."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model
from tolerances import assert_close

from recipe_jax.functional import flat_params
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.models.adapters import adapter_mask, add_adapters, is_adapter, merge_adapters

EVERYWHERE = ("query", "key", "value", "output", "gate", "up", "down")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 6)), jnp.int32)


def adapted():
    fn, params = tiny_model()
    adapters = LowRank(rank=3, targets=EVERYWHERE)
    return fn, params, *add_adapters(tiny_config(), params, adapters, seed=1)


def test_at_first_nothing_changes():
    fn, params, _, with_adapters, all_params = adapted()
    before = fn.bind(params)(TOKENS)
    np.testing.assert_array_equal(with_adapters.bind(all_params)(TOKENS), before)
    found = {path[-2] for path in flat_params(all_params) if is_adapter(path)}
    assert found == {f"{name}_adapter" for name in ("query", "key", "value", "output", "kernel")}


def test_merged_weights_give_the_same_logits():
    _, _, cfg, fn, params = adapted()
    mask = adapter_mask(params)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf, moved: leaf + 0.2 * rng.normal(size=leaf.shape) if moved else leaf,
        params,
        mask,
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    plain, merged = merge_adapters(cfg, params)
    assert plain == tiny_config()
    expected = fn.bind(params)(TOKENS)
    logits = tiny_model()[0].bind(merged)(TOKENS)
    assert np.abs(expected - tiny_model()[0].bind(tiny_model()[1])(TOKENS)).max() > 0.1
    assert_close(logits, expected, kind="gradient")  # hundreds of logits, summed in another order
