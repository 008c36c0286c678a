"""Generation against the plain forward pass, row by row, and the rules it must obey."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from tiny_language_model import VOCAB_SIZE, tiny_model
from tolerances import assert_close

from recipe_jax.decoding import Sampling
from recipe_jax.token_beam_search import beam_search_tokens
from recipe_jax.token_decoding import TokenSampling, generate

FN, PARAMS = tiny_model()
RNG = np.random.default_rng(0)
LENGTHS = np.array([3, 1, 6], np.int32)
PROMPT = RNG.integers(0, VOCAB_SIZE, (3, 6)).astype(np.int32)
NEW = 12


@jax.jit
def full_logits(tokens):
    return FN.bind(PARAMS)(tokens)


def next_logits(tokens: list[int]) -> np.ndarray:
    padded = jnp.asarray([tokens + [0] * (40 - len(tokens))], jnp.int32)
    return np.asarray(full_logits(padded)[0, len(tokens) - 1])


def continue_by_hand(prompt: list[int], steps: int = NEW, *, end=(), choose=np.argmax):
    """The whole sequence read anew for every token: tokens, and their log-probability."""
    tokens, total = list(prompt), 0.0
    for _ in range(steps):
        logits = next_logits(tokens)
        token = int(
            choose(logits, tokens[len(prompt) :]) if choose is not np.argmax else logits.argmax()
        )
        total += logits[token] - np.logaddexp.reduce(logits)
        tokens.append(token)
        if token in end:
            break
    return tokens[len(prompt) :], total


def rows_of(found):
    return [
        row[:n].tolist() for row, n in zip(np.asarray(found.tokens), found.lengths, strict=True)
    ]


def run(**options):
    return generate(
        FN, PARAMS, jnp.asarray(PROMPT), jnp.asarray(LENGTHS), max_new_tokens=NEW, **options
    )


def test_greedy_rows_are_what_each_is_alone_and_read_anew():
    found = run()
    for row, (tokens, length) in enumerate(zip(rows_of(found), LENGTHS, strict=True)):
        expected, total = continue_by_hand(PROMPT[row, :length].tolist())
        assert tokens == expected
        assert_close(found.log_probability[row], np.float32(total), kind="gradient")


def test_what_pads_a_prompt_changes_nothing():
    found = run()
    other = np.where(np.arange(6) < LENGTHS[:, None], PROMPT, (PROMPT + 5) % VOCAB_SIZE)
    again = generate(FN, PARAMS, jnp.asarray(other), jnp.asarray(LENGTHS), max_new_tokens=NEW)
    np.testing.assert_array_equal(again.tokens, found.tokens)


def test_each_row_ends_by_itself_and_writes_nothing_after():
    unended = rows_of(run())
    end = unended[0][4]
    for ends in ((end,), jnp.array([[end], [-1], [unended[2][2]]])):
        found = run(ends=ends)
        for row, tokens in enumerate(rows_of(found)):
            own = (end,) if isinstance(ends, tuple) else ends[row].tolist()
            cut = next((i + 1 for i, t in enumerate(unended[row]) if t in own), NEW)
            assert tokens == unended[row][:cut]
            assert (found.tokens[row, cut:] == -1).all()


def test_a_constraint_acts_before_top_k_and_top_p():
    """The most probable tokens are forbidden: a filter that came first would leave nothing."""
    allowed = (
        jnp.zeros(VOCAB_SIZE, bool).at[jnp.argsort(jnp.asarray(next_logits([1])))[:3]].set(True)
    )
    constraint = jax.tree_util.Partial(lambda mask, so_far: mask[None], allowed)
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.5), Sampling(temperature=0.0)):
        found = run(constraint=constraint, sampling=sampling, key=jax.random.key(1))
        assert allowed[found.tokens].all()
        assert np.isfinite(found.log_probability).all()


def test_a_constraint_sees_what_was_written_and_ends_what_has_nothing_left():
    """Strictly rising tokens: rows stop once no larger token is left."""

    def rising(so_far):
        last = jnp.max(so_far.tokens, axis=1)
        return jnp.arange(VOCAB_SIZE)[None] > last[:, None]

    found = run(constraint=rising, sampling=Sampling(), key=jax.random.key(3))
    for tokens in rows_of(found):
        assert tokens == sorted(set(tokens)) and tokens[-1] == VOCAB_SIZE - 1


def test_log_probabilities_are_of_the_constrained_model():
    constraint = jax.tree_util.Partial(lambda so_far: (jnp.arange(VOCAB_SIZE) < 2)[None])
    found = run(constraint=constraint)
    for row, length in enumerate(LENGTHS):
        tokens, total = PROMPT[row, :length].tolist(), 0.0
        for token in rows_of(found)[row]:
            logits = next_logits(tokens)[:2]
            total += logits[token] - np.logaddexp.reduce(logits)
            tokens.append(token)
        assert_close(found.log_probability[row], np.float32(total), kind="gradient")


def test_the_repetition_penalty_is_that_of_the_paper():
    """With prompt and text both counted; log-probabilities stay the model's own."""
    penalty = 1.7

    def penalised(row):
        prompt = PROMPT[row, : LENGTHS[row]].tolist()

        def choose(logits, written):
            seen = np.isin(np.arange(VOCAB_SIZE), prompt + written)
            changed = np.where(logits > 0, logits / penalty, logits * penalty)
            return np.where(seen, changed, logits).argmax()

        return continue_by_hand(prompt, choose=choose)

    found = run(sampling=TokenSampling(temperature=0.0, repetition_penalty=penalty))
    assert rows_of(found) != rows_of(run())
    for row in range(3):
        tokens, total = penalised(row)
        assert rows_of(found)[row] == tokens
        assert_close(found.log_probability[row], np.float32(total), kind="gradient")


def test_samples_follow_the_distribution():
    rows = 4000
    prompt = jnp.full((rows, 1), 4, jnp.int32)
    found = generate(
        FN,
        PARAMS,
        prompt,
        jnp.ones(rows, jnp.int32),
        max_new_tokens=1,
        sampling=Sampling(temperature=3.0),
        key=jax.random.key(0),
    )
    logits = next_logits([4]) / 3.0
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    shares = np.bincount(np.asarray(found.tokens[:, 0]), minlength=VOCAB_SIZE) / rows
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / rows)


def test_tokens_are_streamed_as_they_are_chosen():
    seen = []
    ends = (rows_of(run())[1][3],)
    found = run(ends=ends, on_token=lambda token, added: seen.append((token.copy(), added.copy())))
    jax.effects_barrier()
    for row, tokens in enumerate(rows_of(found)):
        assert [int(token[row]) for token, added in seen if added[row]] == tokens


def test_no_step_reads_the_text_again():
    """One token goes in for each that comes out: the loop's flops do not grow with the prompt."""

    def flops(width):
        prompt = jnp.zeros((1, width), jnp.int32)
        from recipe_jax import token_decoding

        logits, cache = token_decoding.prefill(
            FN, PARAMS, prompt, jnp.array([width]), capacity=20 + NEW
        )
        compiled = token_decoding._generate_from.lower(
            FN,
            PARAMS,
            logits,
            cache,
            None,
            jnp.zeros((1, 0), jnp.int32),
            jax.random.key(0),
            None,
            NEW,
            Sampling(temperature=0.0),
            None,
        ).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(2) == flops(20)


RANGE = "must have from 1 to 6: start an empty text with the token that begins one"


@pytest.mark.parametrize("decode", [generate, beam_search_tokens])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lengths": [3, 0, 6]}, f"prompt 1 has 0 tokens, {RANGE}"),
        ({"prompt_lengths": [3, 1, 7]}, f"prompt 2 has 7 tokens, {RANGE}"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 35}, "capacity=41 must be at most max_positions=40"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_the_same_words(decode, options, message):
    given = {"prompt_lengths": LENGTHS, "max_new_tokens": NEW} | options
    lengths = jnp.asarray(given.pop("prompt_lengths"), jnp.int32)
    with pytest.raises(ValueError) as caught:
        decode(FN, PARAMS, jnp.asarray(PROMPT), lengths, **given)
    assert str(caught.value) == message


@pytest.mark.parametrize("decode", [generate, beam_search_tokens])
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (PROMPT[0], "prompt has shape (6,) and dtype int32"),
        (PROMPT.astype(np.float32), "prompt has shape (3, 6) and dtype float32"),
    ],
)
def test_what_is_no_rows_of_tokens_is_refused(decode, prompt, said):
    # As users call it: without the checks of types that tests add.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=re.escape(said)):
            decode(FN, PARAMS, jnp.asarray(prompt), jnp.asarray(LENGTHS), max_new_tokens=2)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("decode", [generate, beam_search_tokens])
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_token_that_the_model_has_not_is_refused_but_as_padding(decode, token):
    prompt = PROMPT.copy()
    prompt[0, 3] = token
    decode(FN, PARAMS, jnp.asarray(prompt), jnp.asarray(LENGTHS), max_new_tokens=2)
    prompt[2, 5] = token
    with pytest.raises(ValueError) as caught:
        decode(FN, PARAMS, jnp.asarray(prompt), jnp.asarray(LENGTHS), max_new_tokens=2)
    assert str(caught.value) == f"prompt 2 has token {token}, must be from 0 to {VOCAB_SIZE - 1}"


def test_a_draw_needs_a_key():
    with pytest.raises(ValueError, match=r"temperature=1\.0 needs a key; 0 needs none"):
        run(sampling=Sampling())


def test_a_penalty_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="must be positive; 1 for none"):
        TokenSampling(repetition_penalty=0.0)
