"""Faults of earlier libraries of layers and language models, each with a test that names it.

As in `test_known_faults`, `ELSEWHERE` names the tests that stand beside what they test.
"""

import ast
import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from flax import nnx
from jax.extend.core import jaxprs_in_params
from named_tests import missing_tests
from pickle_trap import Trap
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model
from tolerances import assert_close

from recipe_jax.decoding import Sampling, choose
from recipe_jax.functional import abstract
from recipe_jax.huggingface import (
    LanguageModel,
    ModelFolderError,
    load_language_model,
    save_language_model,
)
from recipe_jax.layers.attention import (
    Attention,
    AttentionConfig,
    attention_weights,
    dot_product_attention,
)
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import Alibi, NoPositions, Rope, alibi_slopes
from recipe_jax.token_decoding import TokenSampling, generate

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "RoPE along the head axis": (
        "layers/test_positions.py::test_rotation_follows_the_token_axis_and_treats_heads_alike",
        "layers/test_positions.py::test_rotary_scores_do_depend_on_distance",
        "layers/test_attention_module.py::test_order_matters_with_positions_only",
    ),
    "grouped queries that need as many key heads": (
        "layers/test_attention.py::test_grouped_heads_are_repeated_heads",
        "layers/test_attention.py::test_shapes_against_loops",
        "layers/test_attention_module.py::test_cached_decoding_is_the_full_forward",
    ),
    "ALiBi that rewards the future": (
        "layers/test_positions.py::test_alibi_never_rewards_the_future",
    ),
    "softmax applied twice": (
        "layers/test_attention.py::test_masks_against_loops",
        "models/test_causal_language_model.py::"
        "test_the_loss_is_the_mean_by_hand_whatever_the_chunks",
    ),
    "a uniform row where everything is masked": (
        "layers/test_attention.py::"
        "test_a_query_that_may_attend_to_nothing_gives_zeros_and_zero_gradients",
        "test_token_decoding.py::test_what_pads_a_prompt_changes_nothing",
    ),
    "a prefix read anew for every token": (
        "test_token_decoding.py::test_no_step_reads_the_text_again",
        "test_token_beam_search.py::test_a_prompt_is_read_once_and_not_once_for_each_beam",
    ),
    "sampling at temperature 0": (
        "test_token_decoding.py::test_greedy_rows_are_what_each_is_alone_and_read_anew",
    ),
    "text after the end": (
        "test_token_decoding.py::test_each_row_ends_by_itself_and_writes_nothing_after",
        "test_token_beam_search.py::test_the_search_stops_when_no_live_text_can_win",
    ),
    "pickled weights": (
        "test_known_faults.py::test_no_module_can_load_a_pickle",
        "test_known_faults.py::test_a_pickle_in_the_place_of_a_model_is_refused_unread",
    ),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_tests_of_a_fault_are_there(fault: str):
    assert not missing_tests(ELSEWHERE[fault])


E, HEADS, WIDTH = 32, 4, 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, E)), jnp.float32)


def make_attention(positions: NoPositions = NoPositions(), **shape: Any) -> Attention:  # noqa: B008
    cfg = AttentionConfig(embed_dim=E, num_heads=HEADS, **shape)
    fn, params = draw_parameters(lambda rngs: Attention(cfg, positions=positions, rngs=rngs))
    return fn.bind(params)


def decoded_weights(module: Attention, x: jax.Array, capacity: int, mask: Mask) -> jax.Array:
    """With which weights `decode` reads a cache that holds no token yet."""

    def weights_as_values(query, key, value, **options):
        weights = attention_weights(query, key, **options)
        weights = jnp.pad(weights, [(0, 0)] * 3 + [(0, WIDTH - weights.shape[3])])
        return weights.swapaxes(1, 2)

    module.attend = weights_as_values
    module.output = nnx.Param(jnp.eye(E).reshape(HEADS, WIDTH, E))
    found = module.decode(x, module.empty_cache(x.shape[0], capacity), mask=mask)[0]
    return found.reshape(*x.shape[:2], HEADS, WIDTH).swapaxes(1, 2)[..., :capacity]


# RoPE along the head axis: every token is turned alike, and position means nothing.


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_tokens_of_one_head_and_leaves_heads_of_one_token_alike(interleaved: bool):
    """With one head the fault would turn nothing at all."""
    rope, frequency = Rope(interleaved=interleaved), 1.0
    head = jnp.zeros((1, 5, 1, 2)).at[..., 0].set(1.0)
    angles = frequency * np.arange(5)
    turned = rope.rotate(head, jnp.arange(5)[None])[0, :, 0]
    assert_close(turned, np.stack([np.cos(angles), np.sin(angles)], axis=-1))


def test_a_rotary_model_of_equal_tokens_knows_how_far_they_are():
    """All keys are alike but for the angle: with it along the heads all weights are equal."""
    module = make_attention(Rope())
    same = jnp.broadcast_to(X[:1, :1], (1, 6, E))
    weights = module.weights(same)[0]
    assert (np.abs(weights - 1 / 6) > 0.01).any(axis=-1).all()
    for row in range(1, 5):  # and only the distance counts
        odds = weights[:, row, row + 1] / weights[:, row, row]
        assert_close(odds, weights[:, 1, 2] / weights[:, 1, 1], "gradient")


# Grouped-query attention that fails as soon as there are fewer key/value heads.


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("positions", [Rope(), Alibi()], ids=["rope", "alibi"])
def test_fewer_key_heads_are_shared_heads(num_kv_heads: int, positions: NoPositions):
    """In the module and from the cache: as many heads whose weights are the shared ones."""
    module = make_attention(positions, num_kv_heads=num_kv_heads)
    whole = make_attention(positions)
    for name in ("query", "output"):
        setattr(whole, name, getattr(module, name))
    for name in ("key", "value"):
        shared = jnp.repeat(getattr(module, name)[...], HEADS // num_kv_heads, axis=1)
        setattr(whole, name, nnx.Param(shared))
    causal = Mask(causal=True)
    assert_close(module(X, mask=causal), whole(X, mask=causal))
    decoded, cache = module.decode(X, module.empty_cache(2, 9))
    assert cache.keys.shape[1] == num_kv_heads
    assert_close(decoded, whole(X, mask=causal))


# ALiBi that rewards future tokens when not causal.


@pytest.mark.parametrize("by", ["formula", "indices", "cache"])
def test_alibi_falls_with_distance_into_the_past_and_the_future(by: str):
    """Queries and keys are 0, so that only the bias counts: `softmax(-slope |i - j|)`."""
    i, j = np.indices((6, 6))
    falls = np.exp(-np.asarray(alibi_slopes(HEADS))[:, None, None] * np.abs(i - j))
    expected = falls / falls.sum(axis=-1, keepdims=True)
    module = make_attention(Alibi())
    module.query = nnx.Param(jnp.zeros_like(module.query[...]))
    if by == "cache":
        weights = decoded_weights(module, X[:1], 6, Mask())
    else:
        weights = module.weights(X[:1], indices=jnp.arange(6)[None] if by == "indices" else None)
    assert_close(weights[0], expected)


# Softmax applied twice.


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=True)], ids=["all", "causal"])
def test_a_clear_preference_is_a_weight_of_one(mask: Mask):
    """Twice over, the best of `n` keys gets at most `e / (e + n - 1)`."""
    n = 5
    query = 40.0 * jnp.eye(n)[None, :, None]
    key = jnp.eye(n)[None, :, None]
    weights = attention_weights(query, key, mask=mask)[0, 0]
    assert_close(weights, jnp.eye(n))
    assert_close(dot_product_attention(query, key, key, mask=mask), key)


def test_the_probability_of_a_text_is_one_softmax_of_its_logits():
    fn, params = tiny_model()
    prompt = jnp.array([[3, 1]])
    found = generate(fn, params, prompt, jnp.array([2]), max_new_tokens=1)
    logits = np.asarray(fn.bind(params)(prompt)[0, -1], np.float64)
    assert_close(found.log_probability[0], logits.max() - np.logaddexp.reduce(logits))


# A mask of -1e9, and a uniform row where everything is masked.


@pytest.mark.parametrize("by", ["mask", "cache"])
def test_what_is_masked_stays_so_however_low_the_rest_is(by: str):
    """Logits of -4e9 are below -1e9: the masked keys would get all the weight."""
    n = 4
    low = jnp.full((1, 1, 1, n), -4e9)
    if by == "mask":
        allowed = Mask(dense=jnp.array([[[[True, True, False, False]]]]))
        weights = attention_weights(
            jnp.ones((1, 1, 1, 2)), jnp.ones((1, n, 1, 2)), mask=allowed, bias=low
        )
        assert_close(weights, jnp.array([[[[0.5, 0.5, 0.0, 0.0]]]]))
        return
    module = make_attention()
    # Keys that are opposite to queries: the first token's logit is far below -1e9.
    module.key = nnx.Param(-1e6 * module.query[...])
    weights = decoded_weights(module, 1e3 * X[:1, :3], n, Mask(causal=True))
    assert_close(weights[:, :, 0], jnp.zeros((1, HEADS, n)).at[..., 0].set(1.0))


def test_a_forbidden_token_is_never_chosen_however_improbable_the_rest_is():
    """Logits scaled until those that are allowed are below -1e9."""
    fn, params = tiny_model()
    params = {**params, "head": {"kernel": 1e12 * params["head"]["kernel"]}}
    prompt = jnp.array([[3, 1]])
    worst = jnp.argmin(fn.bind(params)(prompt)[0, -1])
    assert fn.bind(params)(prompt)[0, -1, worst] < -1e9
    for sampling in (TokenSampling(temperature=0.0), TokenSampling(), TokenSampling(top_k=2)):
        found = generate(
            fn,
            params,
            prompt,
            jnp.array([2]),
            max_new_tokens=1,
            constraint=jax.tree_util.Partial(lambda x, _: x, jnp.arange(VOCAB_SIZE)[None] == worst),
            sampling=sampling,
            key=jax.random.key(0),
        )
        assert found.tokens[0, 0] == worst


def test_no_source_holds_a_large_negative_number_for_a_mask():
    for path in sorted((ROOT / "recipe_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                value = getattr(node.operand, "value", 0)
                is_number = isinstance(value, int | float)
                assert not (is_number and value >= 1e4), f"{path}:{node.lineno}"


@pytest.mark.parametrize("form", ["mask", "lengths", "segments"])
def test_a_row_that_may_attend_to_nothing_is_zeros(form: str):
    masks = {
        "mask": Mask(dense=jnp.zeros((1, 1, 3, 3), bool).at[:, :, 0].set(True)),
        "lengths": Mask(query_lengths=jnp.array([1])),
        "segments": Mask(query_segments=jnp.array([[1, 2, 2]]), key_segments=jnp.array([[1] * 3])),
    }
    heads = jnp.ones((1, 3, 1, 2))
    weights = attention_weights(heads, heads, mask=masks[form])[0, 0]
    assert_close(weights, jnp.zeros((3, 3)).at[0].set(1 / 3))
    attended = dot_product_attention(heads, heads, heads, mask=masks[form])[0, :, 0, 0]
    assert attended.tolist() == [1.0, 0.0, 0.0]


# `generate` that reads the prefix anew, samples at temperature 0 and goes on after the end.

TRACED: dict[str, list[tuple[int, ...]]] = {}
RAN: dict[str, list[int]] = {}


@dataclasses.dataclass(frozen=True)
class Watched:
    """A pure function that notes each `decode`: its tokens' shape when traced, each run of it."""

    fn: Any
    name: str

    def bind(self, params: Any) -> Any:
        model, name = self.fn.bind(params), self.name

        class Model:
            empty_cache, logits = model.empty_cache, model.logits

            def decode(self, tokens, lengths, cache):
                TRACED.setdefault(name, []).append(tokens.shape)
                jax.debug.callback(lambda: RAN.setdefault(name, []).append(1))
                return model.decode(tokens, lengths, cache)

        return Model()


FN, PARAMS = tiny_model()
PROMPT = jnp.array([[3, 1, 4, 1, 5, 9, 2], [9, 2, 0, 0, 0, 0, 0]])
LENGTHS = jnp.array([7, 2])


def write(fn: Any = FN, *, max_new_tokens: int = 12, **options: Any) -> Any:
    found = generate(fn, PARAMS, PROMPT, LENGTHS, max_new_tokens=max_new_tokens, **options)
    jax.effects_barrier()
    return jax.tree.map(np.asarray, found)


def test_a_prompt_is_read_once_and_then_one_token_at_a_time():
    fn = Watched(FN, "once")
    found = write(fn)
    assert TRACED[fn.name] == [(2, 7), (2, 1)]  # the prefill, and the body of the loop
    assert len(RAN[fn.name]) == 1 + 11  # the last token is written and not read
    np.testing.assert_array_equal(found.tokens, write().tokens)


def test_every_product_of_a_step_has_one_query():
    """In the program itself: no array of the loop has as many tokens as the prompt."""
    p, capacity = PROMPT.shape[1], PROMPT.shape[1] + 12
    program = jax.make_jaxpr(
        lambda params: generate(FN, params, PROMPT, LENGTHS, max_new_tokens=12)
    )
    (loop,) = [
        eqn
        for eqn in equations(program(PARAMS).jaxpr)
        if eqn.primitive.name == "while" and capacity_in(eqn, capacity)
    ]
    body = loop.params["body_jaxpr"].jaxpr
    shapes = {value.aval.shape for eqn in equations(body) for value in eqn.outvars}
    assert (2, 1, 12) in shapes  # a token's embedding
    assert not [shape for shape in shapes if p in shape]


def test_temperature_zero_draws_nothing():
    """Two tokens all but alike: a draw would take either."""
    logits = jnp.array([[0.0, 1.0, 1.0 - 1e-6]] * 3)
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}):
        sampling = Sampling(temperature=0.0, **options)
        chosen = [choose(logits, sampling, jax.random.key(seed)) for seed in range(20)]
        assert {tuple(row.tolist()) for row in chosen} == {(1, 1, 1)}
    flat = {**PARAMS, "head": {"kernel": 1e-3 * PARAMS["head"]["kernel"]}}

    def texts(key, temperature):
        sampling = TokenSampling(temperature=temperature)
        found = generate(FN, flat, PROMPT, LENGTHS, max_new_tokens=6, sampling=sampling, key=key)
        return found.tokens.tolist()

    first = texts(None, 0.0)
    assert all(texts(jax.random.key(seed), 0.0) == first for seed in range(3))
    assert texts(jax.random.key(0), 1.0) != first  # the logits are flat: a draw differs


def test_nothing_is_written_or_computed_after_the_end():
    whole = write().tokens
    ends = whole[[0, 1], [6, 1]][:, None]
    stops = [1 + row.tolist().index(end) for row, (end,) in zip(whole, ends, strict=True)]
    assert stops[1] < stops[0] < 12  # one goes on while the other has ended
    fn = Watched(FN, "ends")
    found = write(fn, ends=jnp.asarray(ends))
    for row, stop in enumerate(stops):
        assert found.lengths[row] == stop
        assert found.tokens[row].tolist() == whole[row, :stop].tolist() + [-1] * (12 - stop)
    assert len(RAN[fn.name]) == max(stops)  # the prefill, and one for each further token


# O(L^2 H) buffers of biases.

LENGTH = 64


def equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(getattr(inner, "jaxpr", inner))


def capacity_in(eqn: Any, capacity: int) -> bool:
    return any(capacity in value.aval.shape for value in eqn.outvars)


def largest_array(function: Any, *given: Any) -> int:
    """Numbers in the largest array that a program makes; its constants count as well."""
    program = jax.make_jaxpr(function)(*given)
    made = [value.aval.size for eqn in equations(program.jaxpr) for value in eqn.outvars]
    return max(made + [np.size(constant) for constant in program.consts])


@pytest.mark.parametrize(
    "positions", [NoPositions(), Rope(), Alibi()], ids=["none", "rope", "alibi"]
)
def test_positions_keep_no_table(positions: NoPositions):
    """Neither parameters nor constants of a program: slopes and angles come from the indices."""

    def make():
        cfg = AttentionConfig(embed_dim=E, num_heads=HEADS)
        return Attention(cfg, positions=positions, rngs=nnx.Rngs(0))

    assert set(abstract(make)[0].axes) == {"query", "key", "value", "output"}
    module, x = make_attention(positions), jnp.ones((1, LENGTH, E))
    program = jax.make_jaxpr(lambda x: module(x, mask=Mask(causal=True)))(x)
    weights = E * HEADS * (E // HEADS)
    assert all(np.size(constant) <= weights < LENGTH**2 for constant in program.consts)


@pytest.mark.parametrize(
    "positions", [NoPositions(), Rope(), Alibi()], ids=["none", "rope", "alibi"]
)
def test_attention_makes_no_array_beyond_its_weights(positions: NoPositions):
    """`h t s` is what the reference formula states; nothing of it is kept for each feature."""
    module, x = make_attention(positions), jnp.ones((1, LENGTH, E))
    largest = largest_array(lambda x: module(x, mask=Mask(causal=True)), x)
    assert largest == HEADS * LENGTH * LENGTH


@pytest.mark.parametrize(
    "positions", [NoPositions(), Rope(), Alibi()], ids=["none", "rope", "alibi"]
)
def test_a_step_of_decoding_makes_one_row_of_logits(positions: NoPositions):
    module = make_attention(positions)
    cache = module.empty_cache(1, LENGTH)
    largest = largest_array(module.decode, jnp.ones((1, 1, E)), cache)
    assert largest <= cache.keys.size < LENGTH**2


# Pickled weights.


def test_weights_that_are_only_there_as_a_pickle_are_refused_by_name_and_unread(tmp_path: Path):
    cfg = tiny_config()
    save_language_model(tmp_path, LanguageModel(cfg, *tiny_model(cfg)), card="")
    (tmp_path / "model.safetensors").unlink()
    trap, sprung = tmp_path / "pytorch_model.bin", tmp_path / "sprung"
    trap.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ModelFolderError) as caught:
        load_language_model(tmp_path)
    missing = tmp_path / "model.safetensors"
    rule = "pytorch_model.bin is pickled, and no pickle is ever read"
    assert str(caught.value) == f"{missing}: no such file; {rule}"
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFolderError, match="not a whole safetensors file"):
        load_language_model(tmp_path)
    assert not sprung.exists()
    pickle.loads(trap.read_bytes())
    assert sprung.exists()  # the trap works
