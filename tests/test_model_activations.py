"""What the library's models mark: names, formulas between them, and that marks cost nothing."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tiny_language_model import tiny_config, tiny_model
from tolerances import assert_close

import recipe_jax
from recipe_jax.activations import Replacement, capture, patch
from recipe_jax.batches import Molecules, TokenBatch
from recipe_jax.functional import purify
from recipe_jax.huggingface import load_llama2c, load_model
from recipe_jax.huggingface.tokenizers import load_llama2c_tokenizer
from recipe_jax.layers import attention, feed_forward, set_transformer, transformer
from recipe_jax.layers.attention import attention_weights, dot_product_attention
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.set_transformer import InducedSetAttentionBlock, SetConfig
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.autoregressive_amounts import (
    AutoregressiveAmounts,
    AutoregressiveAmountsConfig,
)
from recipe_jax.models.causal_language_model import next_token_loss
from recipe_jax.models.encoder_decoder_generator import (
    EncoderDecoderConfig,
    EncoderDecoderGenerator,
)
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
    Source,
)
from recipe_jax.models.food_embedding import FoodEmbeddingConfig

TOKENS = jnp.arange(18).reshape(2, 9) % 13
OTHER = (TOKENS + 5) % 13
SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2], [1] * 9])
INDICES = jnp.array([[0, 1, 2, 3, 0, 2, 3, 5, 9], [*range(9)]])
BLOCK = {
    "attention/query": (6, 4),
    "attention/key": (2, 4),
    "attention/value": (2, 4),
    "attention/attended": (6, 4),
    "attention/output": (12,),
    "feed_forward/hidden": (20,),
    "feed_forward/output": (12,),
    "residual": (12,),
}
"""Name -> shape after layers, batch and tokens."""


@pytest.fixture(scope="module")
def captured():
    fn, params = tiny_model()
    return fn, params, *jax.jit(capture(fn))(params, TOKENS)


def test_a_language_model_names_these_values(captured):
    *_, found = captured
    expected = {name: (2, 2, 9, *shape) for name, shape in BLOCK.items()}
    expected |= {"embeddings": (2, 9, 12), "states": (2, 9, 12)}
    assert {name: value.shape for name, value in found.items()} == expected


def test_every_layer_is_what_its_block_computes_by_itself(captured):
    fn, params, logits, found = captured
    model = fn.bind(params)
    x = model.embedding(TOKENS)
    assert_close(found["embeddings"], x)
    block, layers = purify(model.stack.blocks)

    @jax.jit
    def run(params, x):
        return capture(lambda x: block.bind(params)(x, mask=Mask(causal=True)))(x)

    for layer in range(2):
        x, inside = run(jax.tree.map(lambda leaf, i=layer: leaf[i], layers), x)
        assert inside.keys() == BLOCK.keys()
        assert_close(inside, {name: found[name][layer] for name in BLOCK})
    assert_close(model.logits(found["states"]), logits)


def test_the_residual_stream_is_the_sum_of_what_its_layers_write(captured):
    *_, found = captured
    written = found["attention/output"] + found["feed_forward/output"]
    assert_close(found["residual"], found["embeddings"][None] + jnp.cumsum(written, axis=0))


def test_attention_maps_are_those_of_queries_and_keys(captured):
    fn, params, *_ = captured
    kwargs = {"segments": SEGMENTS, "indices": INDICES}
    weights = jax.jit(lambda params: fn.bind(params).weights(TOKENS, **kwargs))(params)
    assert weights.shape == (2, 2, 6, 9, 9)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
    assert not weights[:, 0, :, 4:, :4].any()  # another segment
    _, found = jax.jit(capture(fn))(params, TOKENS, **kwargs)
    mask = Mask(causal=True, query_segments=SEGMENTS, key_segments=SEGMENTS)
    for layer in range(2):
        query, key, value, attended = (
            found[f"attention/{name}"][layer] for name in ("query", "key", "value", "attended")
        )
        assert_close(attention_weights(query, key, mask=mask), weights[layer])
        assert_close(dot_product_attention(query, key, value, mask=mask), attended)
    # Without them all tokens are one sequence.
    whole = jax.jit(lambda params: fn.bind(params).weights(TOKENS))(params)
    assert_close(whole[0, 1], weights[0, 1])
    assert whole[0, 0, 0, 4, 0] > 0


@pytest.mark.parametrize("options", [{}, {"remat": "block"}, {"unroll": 2}])
def test_the_last_residual_of_another_prompt_gives_its_output(options):
    fn, params = tiny_model(**options)

    @jax.jit
    def run(tokens, values, layer):
        """One program for all runs, so that equal values give equal bits."""
        edits = {"residual": Replacement(values, layers=layer)}
        return capture(patch(fn, edits))(params, tokens)

    nothing = jnp.zeros((2, 2, 9, 12))
    expected, found = run(OTHER, nothing, 2)
    logits, _ = run(TOKENS, nothing, 2)
    assert_close(logits, jax.jit(lambda: fn.bind(params)(TOKENS))())
    np.testing.assert_array_equal(run(TOKENS, found["residual"], 1)[0], expected)
    # So does an earlier one: it is all that a layer hands on.
    np.testing.assert_array_equal(run(TOKENS, found["residual"], 0)[0], expected)
    assert not np.array_equal(logits, expected)


def test_a_patch_at_one_position_leaves_those_before_it():
    fn, params = tiny_model()

    @jax.jit
    def run(values, position):
        edits = {"residual": Replacement(values, layers=0, positions=position)}
        return patch(fn, edits)(params, TOKENS)

    (plain, _), (_, other) = (jax.jit(capture(fn))(params, tokens) for tokens in (TOKENS, OTHER))
    patched = jax.vmap(run, in_axes=(None, 0))(other["residual"], jnp.arange(9))
    change = np.abs(patched - plain[None])
    for position in range(9):
        np.testing.assert_allclose(change[position, :, :position], 0.0, atol=1e-5)
        assert (change[position, :, position:].max(axis=-1) > 1e-3).all()


def test_gradients_through_a_patch_that_changes_nothing_are_those_of_the_model():
    fn, params = tiny_model(remat="elementwise")
    names = ("attention/output", "residual", "states")
    same = patch(fn, {name: lambda value, layer: value for name in names})
    gradients = [
        jax.jit(jax.grad(lambda params, call=call: jnp.tanh(call(params)).sum()))(params)
        for call in (lambda params: same(params, TOKENS), lambda p: fn.bind(p)(TOKENS))
    ]
    assert_close(*gradients, kind="gradient")


def test_decoding_marks_what_reading_at_once_marks(captured):
    fn, params, _, found = captured

    def decode(params, tokens, lengths, cache):
        return fn.bind(params).decode(tokens, lengths, cache)

    cache, read = fn.bind(params).empty_cache(2, 9), jax.jit(capture(decode))
    pieces = []
    for part in (TOKENS[:, :6], TOKENS[:, 6:]):
        (_, cache), inside = read(params, part, jnp.full(2, part.shape[1]), cache)
        pieces.append(inside)
    assert pieces[0].keys() == found.keys()
    for name, value in found.items():
        axis = value.ndim - 2 if value.shape[-1] in (12, 20) else value.ndim - 3
        assert_close(jnp.concatenate([piece[name] for piece in pieces], axis=axis), value)


def scopes_of(function, *args) -> set[str]:
    """First parts of all names; no number tells two places of one name apart."""
    _, found = jax.eval_shape(capture(function), *args)
    assert not [name for name in found if ":" in name]
    return {name.split("/")[0] for name in found}


def test_models_of_two_stacks_name_both():
    shape = TransformerConfig(num_layers=2, embed_dim=12, num_heads=2)
    cfg = EncoderDecoderTransformerConfig(vocab_size=13, encoder_layers=3, transformer=shape)
    fn, params = draw_parameters(lambda rngs: EncoderDecoderTransformer(cfg, rngs=rngs))
    source = Source(TOKENS, jnp.array([9, 5]))

    def decode(params):
        model = fn.bind(params)
        return model.decode(TOKENS[:, :1], jnp.ones(2, jnp.int32), model.empty_cache(2, 4, source))

    assert scopes_of(fn, params, source, TOKENS) == {"encoder", "decoder"}
    assert scopes_of(decode, params) == {"encoder", "decoder"}
    _, found = jax.eval_shape(capture(fn), params, source, OTHER[:, :4])
    assert found["encoder/residual"].shape == (3, 2, 9, 12)
    assert found["decoder/cross_attention/query"].shape == (2, 2, 4, 2, 6)
    assert found["decoder/cross_attention/key"].shape == (2, 2, 9, 2, 6)


def test_recipe_models_of_two_stacks_name_both():
    embedding = FoodEmbeddingConfig(num_foods=9, num_components=3, num_compounds=4, embed_dim=8)
    shape = TransformerConfig(num_layers=2, embed_dim=8, num_heads=2)
    molecules = Molecules(jnp.ones((9, 3)), jnp.ones((9, 3)), jnp.ones((9, 4)), jnp.ones(9))
    foods, lengths = jnp.array([[3, 1, 7], [2, 8, 9]]), jnp.array([3, 2])
    cfg = EncoderDecoderConfig(embedding=embedding, transformer=shape, encoder_layers=1)
    fn, params = draw_parameters(lambda rngs: EncoderDecoderGenerator(cfg, rngs=rngs))
    assert scopes_of(fn, params, molecules, foods, lengths - 1) == {"encoder", "decoder"}

    def decode(params):
        model = fn.bind(params)
        table = model.embedding(molecules)
        cache = model.encode_prompt(table, foods, lengths)
        return model.decode(table, jnp.full((2, 1), -1), jnp.ones(2, jnp.int32), cache)

    assert scopes_of(decode, params) == {"encoder", "decoder"}
    amounts = AutoregressiveAmountsConfig(embedding=embedding, transformer=shape)
    fn, params = draw_parameters(lambda rngs: AutoregressiveAmounts(amounts, rngs=rngs))
    args = params, molecules, foods, lengths, jnp.ones(foods.shape)
    assert scopes_of(fn, *args) == {"encoder", "decoder"}


def test_set_blocks_name_both_their_attentions():
    cfg = SetConfig(embed_dim=8, num_heads=2)
    fn, params = draw_parameters(lambda rngs: InducedSetAttentionBlock(cfg, 3, rngs=rngs))
    assert scopes_of(fn, params, jnp.ones((2, 5, 8))) == {"gather", "spread"}


def lowered_texts(fn, params):
    """What the compiler gets: a gradient through scans and rematerialization, prefill, one step."""
    ones = jnp.ones_like(TOKENS)
    batch = TokenBatch(TOKENS, ones, jnp.cumsum(ones, axis=1) - 1, ones.astype(jnp.float32))
    cache = fn.bind(params).empty_cache(2, 12)

    def loss(params):
        return next_token_loss(fn.bind(params), batch).nats.sum()

    def decode(params, tokens, cache):
        return fn.bind(params).decode(tokens, jnp.full(2, tokens.shape[1]), cache)

    yield jax.jit(jax.grad(loss)).lower(params).as_text()
    for tokens in (TOKENS, TOKENS[:, :1]):
        yield jax.jit(decode).lower(params, tokens, cache).as_text()


@pytest.mark.parametrize(
    "options", [{"remat": "none"}, {"remat": "elementwise"}, {"remat": "block"}]
)
def test_marks_change_nothing_that_is_compiled(options, monkeypatch: pytest.MonkeyPatch):
    """Also what is kept for the backward pass: it is in the text of the gradient."""
    fn, params = tiny_model(tiny_config(), **options)
    marked = list(lowered_texts(fn, params))
    for module in (attention, feed_forward, set_transformer, transformer):
        monkeypatch.setattr(module, "checkpoint_name", lambda x, name: x)
    assert not jax.eval_shape(capture(fn), params, TOKENS)[1]
    assert list(lowered_texts(fn, params)) == marked


def test_the_pretrained_generator_hands_on_all_by_its_residuals():
    model = load_model(Path(recipe_jax.__file__).parent / "assets" / "pretrained" / "generator")
    names = (("flour", "butter", "sugar"), ("tomato", "basil", "garlic"))
    foods = jnp.array([[model.foods.index(name) for name in row] for row in names])
    num_layers, width = model.cfg.transformer.num_layers, model.cfg.transformer.embed_dim

    def logits(params, foods):
        """Without the memory of pairs, which reads the foods themselves."""
        generator = model.fn.bind(params)
        table = generator.embedding(model.molecules)
        return generator.logits(
            table, generator.stack(generator.embed(table, foods), mask=Mask(causal=True))
        )

    @jax.jit
    def run(foods, values, layer):
        edits = {"residual": Replacement(values, layers=layer)}
        return capture(patch(logits, edits))(model.params, foods)

    nothing = jnp.zeros((num_layers, 1, 4, width))
    (baking, _), (sauce, found) = (run(row[None], nothing, num_layers) for row in foods)
    assert_close(baking, jax.jit(logits)(model.params, foods[:1]))
    assert np.abs(baking - sauce).max() > 1.0
    patched, _ = run(foods[:1], found["residual"], num_layers - 1)
    np.testing.assert_array_equal(patched, sauce)


@pytest.mark.real_data
def test_a_story_follows_the_prompt_whose_residuals_it_is_given():
    folder = Path(os.environ["RECIPE_JAX_DATA"]) / "llama_stories260k"
    model = load_llama2c(folder / "stories260K.bin")
    encode = load_llama2c_tokenizer(folder / "tok512.bin")
    prompts = ("Once upon a time, there was a dog", "Once upon a time, there was a cat")
    rows = [encode(prompt)["input_ids"] for prompt in prompts]
    (dog, cat), t = jnp.asarray(rows)[:, None], len(rows[0])
    differs = int(np.argmax(dog[0] != cat[0]))
    num_layers, width = model.cfg.transformer.num_layers, model.cfg.transformer.embed_dim
    assert 0 < differs < t

    @jax.jit
    def run(tokens, values, layer, positions):
        """One program for all runs; no position has the index `t`."""
        edits = {"residual": Replacement(values, layer, positions)}
        return capture(patch(model.fn, edits))(model.params, tokens)

    nothing, everywhere = jnp.zeros((num_layers, 1, t, width)), jnp.arange(t)
    expected, found = run(cat, nothing, 0, jnp.full(t, t))
    logits, own = run(dog, nothing, 0, jnp.full(t, t))
    assert np.abs(logits - expected)[0, -1].max() > 0.5
    for layer in range(num_layers):
        patched, _ = run(dog, found["residual"], layer, everywhere)
        np.testing.assert_array_equal(patched, expected)
        later, _ = run(dog, found["residual"], layer, jnp.maximum(everywhere, differs))
        np.testing.assert_array_equal(later, expected)
        # The prompts begin alike: what is put in there was there.
        before, _ = run(dog, found["residual"], layer, jnp.minimum(everywhere, differs - 1))
        np.testing.assert_array_equal(before, logits)
        same, _ = run(dog, own["residual"], layer, everywhere)
        np.testing.assert_array_equal(same, logits)
