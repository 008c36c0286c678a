"""Beam search over items: what brute force finds, for any catalogue, filter and model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fading_decoder import ANY
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language_model import tiny_model
from tolerances import assert_close

from recipe_jax.item_beam_search import Available, search_items
from recipe_jax.item_scores import score_items
from recipe_jax.prefix_index import build_prefix_index, count_allowed
from recipe_jax.semantic_ids import level_offsets

SIZES = (4, 3, 3)
# Codes are numbered from 2 on, with a token between the levels that is no code.
OFFSETS = (2, 7, 11)
V = 15
ALL = np.array([(a, b, c) for a in range(4) for b in range(3) for c in range(3)])
PROMPT, LENGTHS = jnp.array([[0, 1], [14, 0]]), jnp.array([2, 1])
MAIN, LATER = 12, 4


def random_params(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1.5, (V, V)).astype(np.float32)


def next_logits(params, tokens) -> np.ndarray:
    states = np.zeros(V)
    for token in tokens:
        states = 0.5 * states + params[token]
    return states


def expected(params, codes, *, renormalize: bool = False) -> np.ndarray:
    """Log-probabilities of all IDs, written out; `renormalize` among prefixes of these alone."""
    result = []
    for prompt in ([0, 1], [14]):
        row = []
        for code in codes:
            tokens, total = list(prompt), 0.0
            for level, offset in enumerate(OFFSETS):
                logits = next_logits(params, tokens)
                same = (codes[:, :level] == code[:level]).all(axis=1)
                among = offset + np.unique(codes[same, level]) if renormalize else np.arange(V)
                total += logits[offset + code[level]] - np.logaddexp.reduce(logits[among])
                tokens.append(offset + code[level])
            row.append(total)
        result.append(row)
    return np.array(result)


def search(params, indexes, *, num_beams: int, **options):
    return search_items(
        ANY,
        params,
        PROMPT,
        LENGTHS,
        indexes=indexes,
        level_tokens=OFFSETS,
        num_beams=num_beams,
        **options,
    )


def check(found, codes, scores, allowed, num_beams: int) -> None:
    """Every result is an item that may be named, once, with its ID and log-probability."""
    for row in range(2):
        items = np.asarray(found.items[row])
        real = items[items >= 0]
        count = min(num_beams, allowed[row].sum())
        assert len(set(real.tolist())) == len(real) == count
        np.testing.assert_array_equal(items[count:], -1)
        np.testing.assert_array_equal(found.codes[row, count:], -1)
        assert np.isneginf(found.log_probability[row, count:]).all()
        assert allowed[row][real].all()
        np.testing.assert_array_equal(found.codes[row, :count], codes[real])
        assert_close(np.asarray(found.log_probability[row, :count]), scores[row][real])
        assert (np.diff(found.log_probability[row, :count]) <= 0).all()
        if num_beams >= len(codes):
            best = np.sort(scores[row][allowed[row]])[::-1]
            assert_close(np.asarray(found.log_probability[row, :count]), best)


@st.composite
def problems(draw):
    chosen = draw(
        st.lists(st.integers(0, len(ALL) - 1), min_size=1, max_size=MAIN + LATER, unique=True)
    )
    num_later = draw(st.integers(max(0, len(chosen) - MAIN), min(LATER, len(chosen))))
    booleans = st.lists(st.booleans(), min_size=MAIN + LATER, max_size=MAIN + LATER)
    allowed = np.array([draw(booleans), draw(booleans)])
    excluded = st.lists(st.integers(-1, MAIN + LATER), min_size=5, max_size=5)
    return ALL[chosen], num_later, allowed, np.array([draw(excluded), draw(excluded)], np.int32)


@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(0, 1000), st.sampled_from([2, MAIN + LATER]), st.booleans())
def test_any_model_names_items_of_any_catalogue_and_nothing_else(problem, seed, beams, filtered):
    codes, num_later, allowed, excluded = problem
    params, n = random_params(seed), len(codes)
    split = n - num_later
    indexes = (
        build_prefix_index(codes[:split], SIZES, capacity=MAIN),
        build_prefix_index(codes[split:], SIZES, first_item=split, capacity=LATER),
    )
    may = np.ones((2, n), bool)
    options = {}
    if filtered:
        may = allowed[:, :n].copy()
        for row in range(2):
            may[row, [item for item in excluded[row] if 0 <= item < n]] = False
        counts = (
            count_allowed(indexes[0], allowed[:, :MAIN]),
            count_allowed(indexes[1], allowed[:, split : split + LATER]),
        )
        options["available"] = Available(counts=counts, excluded=jnp.asarray(excluded))
    found = search(params, indexes, num_beams=beams, **options)
    check(found, codes, expected(params, codes), may, beams)


@pytest.mark.parametrize("renormalize", [False, True])
def test_results_do_not_depend_on_how_a_catalogue_is_split(renormalize):
    codes = ALL[::2]
    params = random_params(0)
    one = search(params, [build_prefix_index(codes, SIZES)], num_beams=18, renormalize=renormalize)
    parts = [
        build_prefix_index(codes[begin : begin + 6], SIZES, first_item=begin)
        for begin in (0, 6, 12)
    ]
    several = search(params, parts, num_beams=18, renormalize=renormalize)
    assert_close(several.log_probability, one.log_probability)
    np.testing.assert_array_equal(several.items, one.items)
    scores = expected(params, codes, renormalize=renormalize)
    check(one, codes, scores, np.ones((2, 18), bool), 18)
    if renormalize:
        np.testing.assert_allclose(np.exp(one.log_probability).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_it_keeps_the_best_prefixes(num_beams):
    codes, params = ALL[::2], random_params(3)
    found = search(params, [build_prefix_index(codes, SIZES)], num_beams=num_beams)
    for row, prompt in enumerate(([0, 1], [14])):
        beams = [((), 0.0)]
        for level, offset in enumerate(OFFSETS):
            grown = []
            for prefix, total in beams:
                tokens = [*prompt, *(OFFSETS[i] + code for i, code in enumerate(prefix))]
                logits = next_logits(params, tokens)
                same = (codes[:, :level] == np.array(prefix, int)).all(axis=1)
                for code in np.unique(codes[same, level]):
                    step = logits[offset + code] - np.logaddexp.reduce(logits)
                    grown.append(((*prefix, code), total + step))
            beams = sorted(grown, key=lambda beam: -beam[1])[:num_beams]
        np.testing.assert_array_equal(found.codes[row], [prefix for prefix, _ in beams])
        assert_close(np.asarray(found.log_probability[row]), np.array([s for _, s in beams]))


def test_as_many_results_as_are_asked_for_whatever_the_model_prefers():
    # A model that is sure of one first code: a search without an index would end with one item.
    params = np.zeros((V, V), np.float32)
    params[:, OFFSETS[0]] = 80.0
    found = search(params, [build_prefix_index(ALL, SIZES)], num_beams=10)
    assert (np.sort(found.items, axis=1)[:, 1:] != np.sort(found.items, axis=1)[:, :-1]).all()
    assert (found.items >= 0).all()


def test_all_items_are_scored():
    codes, params = ALL[::3], random_params(5)
    found = score_items(
        ANY, params, PROMPT, LENGTHS, codes=codes, level_tokens=OFFSETS, items_at_a_time=5
    )
    assert_close(np.asarray(found), expected(params, codes))


def test_a_model_with_a_cache_finds_what_its_plain_forward_pass_says():
    fn, params = tiny_model()
    offsets = (2, 6, 9)
    prompt, lengths = jnp.array([[0, 1], [12, 0]]), jnp.array([2, 1])
    index, codes = build_prefix_index(ALL, SIZES), ALL + np.array(offsets)[None]

    @jax.jit
    def run(params, index):
        return search_items(
            fn, params, prompt, lengths, indexes=[index], level_tokens=offsets, num_beams=36
        )

    assert "callback" not in run.lower(params, index).as_text()
    found = run(params, index)
    scores = score_items(fn, params, prompt, lengths, codes=ALL, level_tokens=offsets)
    for row, start in enumerate(([0, 1], [12])):
        texts = np.concatenate([np.tile(start, (36, 1)), codes], axis=1)
        steps = jax.nn.log_softmax(fn.bind(params)(jnp.asarray(texts))[:, len(start) - 1 : -1])
        whole = jnp.take_along_axis(steps, codes[..., None], axis=2).sum(axis=(1, 2))
        assert_close(scores[row], whole)
        assert_close(found.log_probability[row], whole[found.items[row]])


def test_more_items_run_in_the_same_program():
    traced = []
    index = functools.partial(build_prefix_index, sizes=SIZES, capacity=MAIN)

    @jax.jit
    def run(index):
        traced.append(1)
        return search(random_params(0), [index], num_beams=MAIN).items

    for count in (1, 5, MAIN):
        assert (np.asarray(run(index(ALL[:count]))) >= 0).sum() == 2 * count
    assert len(traced) == 1


WRONG = {
    "the index holds no item": {"indexes": [build_prefix_index(ALL[:0], SIZES)]},
    "num_beams=0 must be at least 1": {"num_beams": 0},
    "indexes must hold at least one": {"indexes": []},
    r"indexes\[1\] has levels of \(5, 3, 3\) codes": {
        "indexes": [build_prefix_index(ALL[:2], SIZES), build_prefix_index(ALL[:2], (5, 3, 3))]
    },
    "must be one for each of the 3 levels": {"level_tokens": (0, 4)},
    r"level_tokens\[2\]=13 must leave room for 3 codes": {"level_tokens": (0, 4, 13)},
    r"counts\[0\] has shape \(1, 5\), must have 1 or 2 rows of 37": {
        "available": Available(counts=(jnp.zeros((1, 5), jnp.int32),))
    },
    "available.counts has 2 entries": {"available": Available(counts=(None, None))},
    r"excluded has shape \(1, 2\), must have 2 rows": {
        "available": Available(excluded=jnp.zeros((1, 2), jnp.int32))
    },
    "prompt 1 has 0 tokens": {"prompt_lengths": jnp.array([2, 0])},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_refused(message):
    given = {
        "prompt": PROMPT,
        "prompt_lengths": LENGTHS,
        "indexes": [build_prefix_index(ALL, SIZES)],
        "level_tokens": OFFSETS,
        "num_beams": 2,
    } | WRONG[message]
    with pytest.raises(ValueError, match=message):
        search_items(ANY, random_params(0), **given)


def test_codes_that_do_not_fit_are_not_scored():
    with pytest.raises(ValueError, match=r"shape \(36, 3\), must have a column for each of 2"):
        score_items(ANY, random_params(0), PROMPT, LENGTHS, codes=ALL, level_tokens=(0, 4))
    assert level_offsets(SIZES) == (0, 4, 7)
