"""Beam search over sets: the best sets there are, each once, whatever the order of its foods."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from additive_decoder import (
    NO_MOLECULES,
    AdditiveDecoder,
    random_params,
    sequence_log_probability,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.beam_search import BeamSearch, beam_search
from recipe_jax.decoding import SetConstraint

V, M = 5, 4
FN = AdditiveDecoder(M)


def search(params, prompts, *, allowed=(True,) * V, least=0, most=M, fn=FN, **options):
    prompt = np.full((len(prompts), M), V, np.int32)
    for row, foods in zip(prompt, prompts, strict=True):
        row[: len(foods)] = foods
    found = beam_search(
        fn,
        params,
        NO_MOLECULES,
        jnp.asarray(prompt),
        jnp.array([len(foods) for foods in prompts], jnp.int32),
        constraint=SetConstraint(jnp.array(allowed), jnp.int32(least), jnp.int32(most)),
        search=BeamSearch(**options),
    )
    return jax.tree.map(np.asarray, found)


def best_by_hand(params, prompt, *, count, power=0.0, **limits):
    """All sets by the score of their best order."""
    best = {}
    others = [food for food in range(V) if food not in prompt]
    for size in range(len(others) + 1):
        for tail in itertools.permutations(others, size):
            total = sequence_log_probability(params, [*prompt, *tail], len(prompt), **limits)
            members = frozenset([*prompt, *tail])
            score = total / (size + 1) ** power
            if np.isfinite(score):
                best[members] = max(best.get(members, (-np.inf, 0.0)), (score, total))
    ranked = sorted(best.items(), key=lambda item: -item[1][0])[:count]
    return [members for members, _ in ranked], np.array([pair for _, pair in ranked]).T


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_beam_wide_enough_finds_the_best_sets_of_all(power):
    params = random_params(2, V)
    limits = {"allowed": np.array([True, True, False, True, True]), "least": 1, "most": 3}
    prompts = [(), (2,), (4, 0)]
    found = search(params, prompts, num_beams=12, length_power=power, **limits)
    for i, prompt in enumerate(prompts):
        members, (scores, totals) = best_by_hand(params, prompt, count=12, power=power, **limits)
        n = len(members)
        rows = [row[:k].tolist() for row, k in zip(found.foods[i], found.lengths[i], strict=True)]
        assert [frozenset(row) for row in rows[:n]] == members
        assert all(row[: len(prompt)] == list(prompt) for row in rows[:n])
        np.testing.assert_allclose(found.score[i, :n], scores, rtol=1e-5)
        np.testing.assert_allclose(found.log_probability[i, :n], totals, rtol=1e-5)
        assert (found.score[i, n:] == -np.inf).all()
        assert (found.lengths[i, n:] == 0).all()
        assert (found.foods[i, n:] == V).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sets_are_distinct_obey_every_rule_and_have_the_probability_they_report(data):
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=V, max_size=V)))
    least, most = data.draw(st.integers(0, M + 1)), data.draw(st.integers(0, M + 1))
    seed = data.draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    prompts = [rng.permutation(V)[: rng.integers(M + 1)].tolist() for _ in range(3)]
    params = random_params(seed, V, scale=2.0)
    limits = {"allowed": allowed, "least": least, "most": min(most, M)}
    found = search(params, prompts, num_beams=3, **limits)
    assert (found.score[:, 1:] <= found.score[:, :-1]).all()
    for i, prompt in enumerate(prompts):
        exists = np.isfinite(found.score[i])
        assert exists[0]
        rows = [found.foods[i, j, : found.lengths[i, j]].tolist() for j in np.flatnonzero(exists)]
        assert len({frozenset(row) for row in rows}) == len(rows)
        for row, reported in zip(rows, found.log_probability[i], strict=False):
            assert row[: len(prompt)] == prompt
            assert len(set(row)) == len(row)
            assert allowed[row[len(prompt) :]].all()
            assert len(row) <= max(len(prompt), min(most, M))
            if len(row) < min(least, most, M):
                assert set(np.flatnonzero(allowed)) <= set(row)
            expected = sequence_log_probability(params, row, len(prompt), **limits)
            np.testing.assert_allclose(reported, expected, rtol=1e-4, atol=1e-4)


def test_orders_of_one_set_leave_room_for_other_sets():
    """Two foods far above the rest: without merging, both beams would hold that one pair."""
    params = random_params(0, V, scale=0.0)
    params["start"][:] = [6.0, 6.0, 1.0, 0.0, 0.0, -9.0]
    params["food"][:, :] = 0.0
    found = search(params, [()], num_beams=2, least=2, most=2)
    sets = [frozenset(row[:2].tolist()) for row in found.foods[0]]
    assert sets == [frozenset({0, 1}), frozenset({0, 2})] or sets[1] == frozenset({1, 2})
    assert sets[0] == frozenset({0, 1})


def test_a_prompt_goes_to_the_encoder_of_a_model_that_has_one():
    params = random_params(5, V)
    found = search(params, [(1, 3)], num_beams=12, fn=AdditiveDecoder(M, encodes=True))
    shifted = params | {"start": params["start"] - 2 * params["food"][[1, 3]].sum(axis=0)}
    limits = {"allowed": np.ones(V, bool), "least": 0, "most": M}
    members, (scores, _) = best_by_hand(shifted, (1, 3), count=12, **limits)
    n = len(members)
    assert [
        frozenset(row[:k].tolist())
        for row, k in zip(found.foods[0, :n], found.lengths[0, :n], strict=True)
    ] == members
    np.testing.assert_allclose(found.score[0, :n], scores, rtol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("num_beams", 0), ("length_power", 1.5)])
def test_impossible_searches_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        BeamSearch(**{field: value})
