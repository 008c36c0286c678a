"""Sets drawn in passes: every rule holds, one pass is a draw without replacement, others revise."""

import dataclasses
import itertools
import types
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from additive_decoder import NO_MOLECULES
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.decoding import Sampling, SetConstraint
from recipe_jax.mask_predict import rank_draws, sample_masked_sets
from recipe_jax.models.masked_set_generator import MaskedLogits

V, M, B = 8, 5, 4


@dataclasses.dataclass(frozen=True)
class PairModel:
    """Logits of a hidden food are a start vector plus a row per visible food."""

    max_foods: int

    def bind(self, params: Any) -> Any:
        def predict(table, foods, visible, hidden):
            rows = jnp.concatenate([table, 0 * table[:1]])[foods]
            seen = jnp.where(visible[..., None], rows, 0.0).sum(axis=1)
            sizes = jnp.broadcast_to(params["sizes"], (len(foods), self.max_foods + 1))
            return MaskedLogits(params["start"][None] + seen, sizes)

        return types.SimpleNamespace(
            cfg=types.SimpleNamespace(max_foods=self.max_foods),
            embedding=lambda molecules: params["food"],
            predict=predict,
        )


def random_params(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    shapes = {"start": (V,), "food": (V, V), "sizes": (M + 1,)}
    return {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}


def sample(params, prompts, *, num_passes, seed=0, allowed=None, least=0, most=M, **sampling):
    v = len(params["food"])
    size = len(params["sizes"]) - 1
    prompt = np.full((len(prompts), size), v, np.int32)
    for row, foods in zip(prompt, prompts, strict=True):
        row[: len(foods)] = foods
    allowed = np.ones(v, bool) if allowed is None else allowed
    found = sample_masked_sets(
        PairModel(size),
        params,
        NO_MOLECULES,
        jnp.asarray(prompt),
        jnp.array([len(foods) for foods in prompts], jnp.int32),
        jax.random.key(seed),
        num_passes=num_passes,
        constraint=SetConstraint(jnp.asarray(allowed), jnp.int32(least), jnp.int32(most)),
        sampling=Sampling(**sampling),
    )
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    ("num_passes", "sampling"), [(1, {}), (3, {"top_k": 2}), (3, {"temperature": 0.0})]
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_set_obeys_every_rule(num_passes, sampling, data):
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=V, max_size=V)))
    least, most = data.draw(st.integers(0, M + 1)), data.draw(st.integers(0, M + 2))
    seed = data.draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    prompts = [rng.permutation(V)[: rng.integers(M + 1)].tolist() for _ in range(B)]
    found = sample(
        random_params(seed),
        prompts,
        num_passes=num_passes,
        seed=seed,
        allowed=allowed,
        least=least,
        most=most,
        **sampling,
    )
    for prompt, foods, length in zip(prompts, found.foods, found.lengths, strict=True):
        members = foods[:length].tolist()
        assert (foods[length:] == V).all()
        assert members[: len(prompt)] == prompt
        assert len(set(members)) == length
        assert allowed[members[len(prompt) :]].all()
        assert len(prompt) <= length <= max(len(prompt), min(most, M))
        if length < min(least, most, M):
            assert set(np.flatnonzero(allowed)) <= set(members)


def test_one_pass_draws_without_replacement():
    """The probability of a sequence of draws, each in proportion to what is left."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (n, 4))
    order = rank_draws(logits, jnp.ones((n, 4), bool), Sampling(), jax.random.key(0))
    counts = Counter(map(tuple, np.asarray(order)[:, :2].tolist()))
    for first, second in itertools.permutations(range(4), 2):
        expected = p[first] * p[second] / (1 - p[first])
        tolerance = 5 * np.sqrt(expected * (1 - expected) / n)
        assert abs(counts[first, second] / n - expected) < tolerance


def test_what_top_k_drops_follows_in_order_and_what_is_forbidden_comes_last():
    logits = jnp.array([[0.0, 5.0, 4.0, 3.0, 9.0]])
    allowed = jnp.array([[True, True, True, True, False]])
    masked = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    for seed in range(8):
        order = rank_draws(masked, allowed, Sampling(top_k=2), jax.random.key(seed))[0].tolist()
        assert set(order[:2]) == {1, 2}
        assert order[2:] == [3, 0, 4]
    greedy = rank_draws(masked, allowed, Sampling(temperature=0.0), jax.random.key(0))
    assert greedy.tolist() == [[1, 2, 3, 0, 4]]


def test_sizes_have_the_distribution_of_the_model():
    params = random_params(1, scale=1.0)
    n = 8000
    found = sample(params, [()] * n, num_passes=1)
    expected = np.exp(params["sizes"] - np.logaddexp.reduce(params["sizes"]))
    observed = np.bincount(found.lengths, minlength=M + 1) / n
    assert np.abs(observed - expected).max() < 0.03


def test_refining_finds_pairs_that_one_pass_cannot():
    """Foods 0 and 1 go together, and 2 and 3, but alone each is as likely as any other."""
    table = np.full((4, 4), -8.0, np.float32)
    for a, b in ((0, 1), (2, 3)):
        table[a, b] = table[b, a] = 8.0
    params = {
        "start": np.zeros(4, np.float32),
        "food": table,
        "sizes": np.array([-99.0, -99.0, 0.0], np.float32),
    }

    def share_of_pairs(num_passes):
        found = sample(params, [()] * 2000, num_passes=num_passes, most=2)
        assert (found.lengths == 2).all()
        return np.mean([set(row[:2].tolist()) in ({0, 1}, {2, 3}) for row in found.foods])

    assert abs(share_of_pairs(1) - 1 / 3) < 0.05
    assert share_of_pairs(2) > 0.99


def test_the_least_confident_food_is_the_one_taken_back():
    """Of a sure and a doubtful food only the doubtful one is drawn again."""
    params = {
        "start": np.array([6.0, 0.0, 0.0], np.float32),
        "food": np.array([[0.0, -40.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32),
        "sizes": np.array([-99.0, -99.0, 0.0], np.float32),
    }
    found = sample(params, [()] * 200, num_passes=2, most=2, seed=1)
    # Beside food 0, food 1 is ruled out: half of the first draws hold it, none of the last.
    holds_sure = (found.foods[:, :2] == 0).any(axis=1)
    assert holds_sure.mean() > 0.95
    assert not (found.foods[holds_sure, :2] == 1).any()
    assert np.isfinite(found.confidence).all()


def test_the_prompt_has_infinite_confidence_and_is_not_revised():
    found = sample(random_params(0), [(3, 1), ()], num_passes=3, least=4)
    assert found.foods[0, :2].tolist() == [3, 1]
    assert np.isposinf(found.confidence[0, :2]).all()
    assert np.isfinite(found.confidence[0, 2:]).all()
    assert np.isfinite(found.confidence[1]).all()


def test_no_pass_and_too_wide_a_prompt_are_refused():
    with pytest.raises(ValueError, match="num_passes=0"):
        sample(random_params(0), [()], num_passes=0)
    rules = SetConstraint(jnp.ones(V, bool), jnp.int32(0), jnp.int32(M))
    wide = jnp.full((1, M + 1), V, jnp.int32)
    with pytest.raises(ValueError, match=f"prompt has {M + 1} places"):
        sample_masked_sets(
            PairModel(M),
            random_params(0),
            NO_MOLECULES,
            wide,
            jnp.zeros(1, jnp.int32),
            jax.random.key(0),
            num_passes=1,
            constraint=rules,
        )
