"""Sampling: no repeat, no forbidden food, the stated lengths, and the probabilities it reports."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from additive_decoder import (
    NO_MOLECULES,
    AdditiveDecoder,
    random_params,
    sequence_log_probability,
    step_log_probabilities,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recipe_jax.decoding import (
    Sampling,
    SetConstraint,
    choose,
    filter_logits,
    sample_sets,
)

V, M, B = 9, 5, 6
ROW = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=V, max_size=V)


def rules(allowed=None, least=0, most=M, num_foods=V) -> SetConstraint:
    allowed = np.ones(num_foods, bool) if allowed is None else np.asarray(allowed)
    return SetConstraint(jnp.asarray(allowed), jnp.int32(least), jnp.int32(most))


def decode(fn, params, prompts, *, width=None, seed=0, constraint=None, **sampling):
    v = len(params["food"])
    width = fn.max_foods if width is None else width
    prompt = np.full((len(prompts), width), v, np.int32)
    for row, foods in zip(prompt, prompts, strict=True):
        row[: len(foods)] = foods
    lengths = np.array([len(foods) for foods in prompts], np.int32)
    constraint = rules(num_foods=v) if constraint is None else constraint
    found = sample_sets(
        fn,
        params,
        NO_MOLECULES,
        jnp.asarray(prompt),
        jnp.asarray(lengths),
        jax.random.key(seed),
        constraint=constraint,
        sampling=Sampling(**sampling),
    )
    return jax.tree.map(np.asarray, found)


def filtered_by_hand(logits, temperature, top_k, top_p):
    """Which choices stay, by sorting in numpy; all that tie with the last one kept stay too."""
    x = np.asarray(logits, np.float64) / temperature
    order = np.sort(x)[::-1]
    kept = x >= order[(top_k or len(x)) - 1]
    shares = np.exp(x - x.max()) * kept
    shares /= shares.sum()
    ranked = np.sort(shares)[::-1]
    count = int(np.searchsorted(np.cumsum(ranked), top_p - 1e-6)) + 1
    return kept & (shares >= ranked[min(count, len(x)) - 1] * (1 - 1e-6))


@settings(max_examples=40, deadline=None)
@given(
    row=ROW,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3, V, V + 4]),
    top_p=st.sampled_from([0.05, 0.37, 0.83, 1.0]),
)
@example(
    row=[0.25, 0.0, 0.25, -0.5, -0.5, 1.0, -2.0, -2.0, -2.0], temperature=1.0, top_k=3, top_p=0.83
)
def test_top_k_and_top_p_keep_what_sorting_by_hand_keeps(row, temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    found = np.asarray(filter_logits(jnp.array([row]), sampling))[0]
    by_hand = filtered_by_hand(row, temperature, min(top_k, V) if top_k else None, top_p)
    kept = found > np.finfo(np.float32).min
    np.testing.assert_array_equal(kept, by_hand)
    x = np.array(row)[kept] / temperature
    np.testing.assert_allclose(found[kept] - found[kept].max(), x - x.max(), atol=1e-6)


def test_a_tiny_temperature_is_the_most_probable_choice_and_never_nan():
    logits = jnp.array([[5.0, 4.0, -3.0], [-8.0, -7.0, jnp.finfo(jnp.float32).min]])
    assert np.isfinite(filter_logits(logits, Sampling(temperature=1e-30))).all()
    for sampling in (Sampling(temperature=1e-30), Sampling(temperature=0.0, top_p=0.3)):
        assert choose(logits, sampling, jax.random.key(0)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -0.1), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1)]
)
def test_impossible_ways_to_choose_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        Sampling(**{field: value})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_set_obeys_every_rule_and_has_the_probability_it_reports(data):
    seed = data.draw(st.integers(0, 2**20))
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=V, max_size=V)))
    least, most = data.draw(st.integers(0, M + 1)), data.draw(st.integers(0, M + 2))
    sizes = data.draw(st.lists(st.integers(0, M), min_size=B, max_size=B))
    rng = np.random.default_rng(seed)
    prompts = [rng.permutation(V)[:size].tolist() for size in sizes]
    params = random_params(seed, V, scale=2.0)
    found = decode(
        AdditiveDecoder(M), params, prompts, seed=seed, constraint=rules(allowed, least, most)
    )
    for prompt, foods, length, reported in zip(
        prompts, found.foods, found.lengths, found.log_probability, strict=True
    ):
        members, chosen = foods[:length].tolist(), foods[len(prompt) : length]
        assert (foods[length:] == V).all()
        assert members[: len(prompt)] == prompt
        assert len(set(members)) == length
        assert allowed[chosen].all()
        assert len(prompt) <= length <= max(len(prompt), min(most, M))
        if length < min(least, most, M):
            assert set(np.flatnonzero(allowed)) <= set(members)
        expected = sequence_log_probability(
            params, members, len(prompt), allowed=allowed, least=least, most=min(most, M)
        )
        np.testing.assert_allclose(reported, expected, rtol=1e-4, atol=1e-4)


def test_samples_have_the_distribution_of_the_model():
    v, m, n = 3, 2, 10_000
    params = random_params(4, v)
    found = decode(AdditiveDecoder(m), params, [()] * n, width=0, seed=1)
    counts = Counter(
        tuple(row[:k].tolist()) for row, k in zip(found.foods, found.lengths, strict=True)
    )
    sequences = [s for size in range(m + 1) for s in itertools.permutations(range(v), size)]
    limits = {"allowed": np.ones(v, bool), "least": 0, "most": m}
    for foods in sequences:
        p = np.exp(sequence_log_probability(params, list(foods), 0, **limits))
        assert abs(counts[foods] / n - p) < 5 * np.sqrt(p * (1 - p) / n), foods


def test_temperature_zero_takes_the_most_probable_choice_each_time():
    params = random_params(7, V, scale=2.0)
    prompts = [(), (3,), (4, 1)]
    found = decode(AdditiveDecoder(M), params, prompts, temperature=0.0)
    for prompt, row, length in zip(prompts, found.foods, found.lengths, strict=True):
        foods = list(prompt)
        while True:
            choice = step_log_probabilities(
                params, foods, allowed=np.ones(V, bool), least=0, most=M
            ).argmax()
            if choice == V:
                break
            foods.append(int(choice))
        assert row[:length].tolist() == foods


def test_a_row_depends_neither_on_its_neighbours_nor_on_the_width_of_the_prompt():
    params = random_params(3, V, scale=2.0)
    prompts = [(), (1,), (2, 0, 5, 7, 8), (6, 4)]
    together = decode(AdditiveDecoder(M), params, prompts, temperature=0.0)
    assert len(set(together.lengths.tolist())) > 1  # some rows are done before others
    for i, prompt in enumerate(prompts):
        alone = decode(AdditiveDecoder(M), params, [prompt], width=len(prompt), temperature=0.0)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], many[i], rtol=1e-6)


def test_a_full_prompt_is_returned_as_it_is():
    params = random_params(0, V)
    found = decode(
        AdditiveDecoder(M), params, [(4, 3, 2, 1, 0), (8, 7, 6)], constraint=rules(most=3)
    )
    assert found.foods.tolist() == [[4, 3, 2, 1, 0], [8, 7, 6, V, V]]
    assert found.lengths.tolist() == [5, 3]
    assert found.log_probability.tolist() == [0.0, 0.0]


def test_where_no_food_is_allowed_the_end_is_certain():
    params = random_params(0, V)
    nothing = rules(np.zeros(V, bool), least=4)
    found = decode(AdditiveDecoder(M), params, [(), (2,)], constraint=nothing)
    assert found.lengths.tolist() == [0, 1]
    assert found.log_probability.tolist() == [0.0, 0.0]


def test_a_model_with_an_encoder_reads_its_prompt_there_and_nowhere_else():
    params = random_params(11, V, scale=2.0)
    found = decode(AdditiveDecoder(M, encodes=True), params, [(3, 5), ()], seed=2)
    for i, prompt in enumerate([[3, 5], []]):
        foods = found.foods[i, : found.lengths[i]].tolist()
        assert foods[: len(prompt)] == prompt
        assert len(set(foods)) == len(foods)
        # Twice the opposite sign: a prompt read by the decoder too would cancel out.
        shifted = params | {"start": params["start"] - 2 * params["food"][prompt].sum(axis=0)}
        expected = sequence_log_probability(
            shifted, foods, len(prompt), allowed=np.ones(V, bool), least=0, most=M
        )
        np.testing.assert_allclose(found.log_probability[i], expected, rtol=1e-4)


def test_a_prompt_wider_than_the_model_is_refused():
    with pytest.raises(ValueError, match=f"prompt has {M + 1} places.*max_foods={M}"):
        decode(AdditiveDecoder(M), random_params(0, V), [(0,)], width=M + 1)
