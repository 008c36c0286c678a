"""Autoregressive grams: nothing later leaks, the order means nothing, proportions sum to one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import helmert
from tolerances import assert_close
from two_cakes import (
    EMBEDDING,
    MOLECULES,
    TRANSFORMER,
    E,
    build,
    butter_ratio,
    cakes,
    fit,
    holds_both_cakes,
    padded,
)

from recipe_jax.models.autoregressive_amounts import (
    AutoregressiveAmounts,
    AutoregressiveAmountsConfig,
    next_amount_loss,
    proportions_log_density,
    random_order,
    sample_grams,
    sample_proportions,
)
from recipe_jax.models.gram_bins import GramBins, gram_log_density
from recipe_jax.models.simplex import geometric_mean, member_mask

CFG = AutoregressiveAmountsConfig(embedding=EMBEDDING, transformer=TRANSFORMER)
BATCH = padded([[4, 0, 2, 5], [1, 6], [3]], 5, [[10.0, 200.0, 5.0, 80.0], [3.0, 400.0], [250.0]])


@functools.cache
def model(cfg=CFG):
    return build(lambda: AutoregressiveAmounts(cfg, rngs=nnx.Rngs(0)))


@functools.partial(jax.jit, static_argnums=0)
def run(fn, params, batch):
    return fn.bind(params)(MOLECULES, batch.foods, batch.lengths, batch.grams)


@functools.partial(jax.jit, static_argnums=0)
def gradient_and_terms(fn, params, batch):
    def loss(params):
        terms = next_amount_loss(run(fn, params, batch), batch, bins=CFG.bins)
        return terms.total.sum(), terms

    return jax.grad(loss, has_aux=True)(params)


def logits_of(batch):
    return np.asarray(run(*model(), batch))


@pytest.mark.parametrize("place", range(4))
def test_an_amount_is_seen_by_later_members_only_bit_for_bit(place):
    before, after = (
        logits_of(BATCH),
        logits_of(BATCH._replace(grams=BATCH.grams.at[0, place].multiply(7.0))),
    )
    np.testing.assert_array_equal(after[0, : place + 1], before[0, : place + 1])
    for later in range(place + 1, 4):
        assert np.abs(after[0, later] - before[0, later]).max() > 1e-3
    np.testing.assert_array_equal(after[1:], before[1:])


def test_every_member_sees_all_foods():
    other = BATCH._replace(foods=BATCH.foods.at[0, 3].set(6))
    changes = np.abs(logits_of(other) - logits_of(BATCH)).max(axis=-1)
    assert (changes[0, :4] > 1e-3).all()
    assert (changes[1:] == 0).all()


def test_the_order_of_earlier_members_changes_nothing():
    turned = padded([[2, 4, 0, 5]], 5, [[5.0, 10.0, 200.0, 80.0]])
    assert_close(logits_of(turned)[0, 3], logits_of(BATCH)[0, 3])


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_padding_may_hold_anything(garbage):
    members = member_mask(BATCH.lengths, 5)
    dirty = BATCH._replace(
        foods=jnp.where(members, BATCH.foods, 1), grams=jnp.where(members, BATCH.grams, garbage)
    )
    gradients, terms = zip(
        *(gradient_and_terms(*model(), batch) for batch in (dirty, BATCH)), strict=True
    )
    assert_close(*terms)
    assert_close(*gradients, kind="gradient")


def test_the_size_of_the_padding_changes_nothing():
    wide = padded([[4, 0, 2, 5], [1, 6], [3]], 7)
    wide = wide._replace(grams=jnp.pad(BATCH.grams, ((0, 0), (0, 2))))
    members = np.asarray(member_mask(BATCH.lengths, 5))
    assert_close(logits_of(wide)[:, :5][members], logits_of(BATCH)[members])


def test_the_loss_is_the_density_of_the_true_amounts():
    terms = next_amount_loss(run(*model(), BATCH), BATCH, bins=CFG.bins)
    densities = np.asarray(
        gram_log_density(jnp.asarray(logits_of(BATCH)), jnp.maximum(BATCH.grams, 1e-3), CFG.bins)
    )
    for row, length in enumerate([4, 2, 1]):
        assert_close(terms.nats[row], -densities[row, :length].sum())
        assert_close(terms.total[row], -densities[row, :length].mean())
    assert_close(terms.members, jnp.array([4.0, 2.0, 1.0]))


def test_recipes_without_weights_teach_nothing():
    batch = padded([[4, 0, 2], [], [1]], 5)
    gradient, terms = gradient_and_terms(*model(), batch)
    for values in terms:
        assert_close(values, jnp.zeros(3))
    assert_close(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_decoding_member_by_member_gives_the_logits_of_the_forward_pass():
    fn, params = model()

    @jax.jit
    def decode(params):
        bound = fn.bind(params)
        states = bound.encode(MOLECULES, BATCH.foods, BATCH.lengths)
        cache, found = bound.empty_cache(3, 5), []
        for place in range(4):
            state, foods = states[:, place], BATCH.foods[:, place]
            found.append(bound.next_logits(state, foods, jnp.array(place), cache))
            grams = jnp.maximum(BATCH.grams[:, place], 1.0)
            cache = bound.visit(state, grams, jnp.array(place), cache)
        return jnp.stack(found, axis=1)

    members = np.asarray(member_mask(BATCH.lengths, 4))
    assert_close(np.asarray(decode(params))[members], logits_of(BATCH)[:, :4][members])


def test_samples_sum_to_one_and_padding_gets_nothing():
    fn, params = model()
    arguments = (fn, params, MOLECULES, BATCH.foods, BATCH.lengths, jax.random.key(3))
    samples = np.asarray(sample_proportions(*arguments, num_samples=16))
    grams = np.asarray(sample_grams(*arguments, num_samples=16))
    members = np.asarray(member_mask(BATCH.lengths, 5))
    assert_close(samples.sum(axis=-1), np.ones((16, 3)))
    assert_close(samples, grams / grams.sum(axis=-1, keepdims=True))
    assert (grams[:, members] >= CFG.bins.min_grams).all()
    assert (grams[:, ~members] == 0).all() and (samples[:, ~members] == 0).all()
    assert np.unique(grams[:, 0, 0]).size == 16
    centre = geometric_mean(jnp.asarray(samples), jnp.asarray(members))
    assert_close(centre.sum(axis=-1), jnp.ones(3))


def test_a_random_order_moves_members_and_keeps_padding_last():
    members = jnp.broadcast_to(member_mask(jnp.array([3]), 5), (600, 5))
    order = np.asarray(random_order(members, jax.random.key(0)))
    assert (np.sort(order[:, :3]) == np.arange(3)).all()
    assert (np.sort(order[:, 3:]) == [3, 4]).all()
    firsts = np.bincount(order[:, 0], minlength=3)
    assert np.abs(firsts - 200).max() < 60


@pytest.mark.parametrize("size", [2, 3])
def test_the_density_of_proportions_integrates_to_one(size):
    bins = GramBins(num_bins=3, min_grams=1.0, max_grams=20.0)
    fn, params = model(dataclasses.replace(CFG, bins=bins))
    # Log grams differ by at most log 20 = 3.0: all of the density lies within this square.
    axis = np.linspace(-2.6, 2.6, 200 if size == 2 else 45)
    grid = np.stack(np.meshgrid(*[axis] * (size - 1)), axis=-1).reshape(-1, size - 1)
    batch = padded([list(range(size))] * len(grid), size, np.exp(grid @ helmert(size)))
    density = proportions_log_density(fn, params, MOLECULES, batch, num_totals=48)
    total = np.exp(np.asarray(density)).sum() * (axis[1] - axis[0]) ** (size - 1)
    assert total == pytest.approx(1.0, abs=0.02)
    doubled = batch._replace(grams=2.0 * batch.grams)
    again = proportions_log_density(fn, params, MOLECULES, doubled, num_totals=48)
    inside = np.isfinite(np.asarray(density)) & np.isfinite(np.asarray(again))
    assert_close(np.median(np.abs(np.asarray(again - density)[inside])), 0.0)


def test_both_cakes_come_out_of_the_oven():
    fn, params = build(lambda: AutoregressiveAmounts(CFG, rngs=nnx.Rngs(0)))

    def loss(params, batch, key):
        return next_amount_loss(run(fn, params, batch), batch, bins=CFG.bins).total.mean()

    rng = np.random.default_rng(0)
    params = fit(params, loss, [cakes(rng, 64) for _ in range(600)])
    asked = padded([[0, 1, 2]], 4)
    samples = sample_proportions(
        fn, params, MOLECULES, asked.foods, asked.lengths, jax.random.key(0), num_samples=320
    )
    assert holds_both_cakes(butter_ratio(samples))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding": dataclasses.replace(EMBEDDING, embed_dim=8)}, f"embed_dim=8 .*={E}"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **fields)
