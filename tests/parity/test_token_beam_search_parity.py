"""Our beam search and that of transformers: the same texts with the same scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from recipe_jax.huggingface import load_language_model
from recipe_jax.token_beam_search import TokenBeamSearch, beam_search_tokens

pytestmark = pytest.mark.parity

PROMPTS = [(1, 12, 9, 17), (1, 5, 9, 20), (1, 7), (1, 3, 3), (4,), (1, 21, 8, 8, 14, 6, 10)]
# Not 0: behind the end of a text, transformers' beam search takes that for no padding token.
PADDING, ENDS = 22, [2, 11]
NUM_BEAMS, NEW = 4, 10


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random Llama whose logits differ as those of a trained one do, there and here."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cfg = transformers.LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.35,
        bos_token_id=1,
        eos_token_id=ENDS,
        pad_token_id=PADDING,
    )
    theirs = transformers.LlamaForCausalLM(cfg).eval()
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    return theirs, load_language_model(folder)


def search_theirs(model, prompts, length_penalty: float, early_stopping: str | bool):
    import torch

    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), PADDING)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt)
    found = model.generate(
        tokens,
        attention_mask=torch.arange(width) >= width - torch.tensor([[len(p)] for p in prompts]),
        num_beams=NUM_BEAMS,
        num_return_sequences=NUM_BEAMS,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = found.sequences[:, width:].numpy()
    scores = found.sequences_scores.numpy().reshape(len(prompts), NUM_BEAMS)
    return texts.reshape(len(prompts), NUM_BEAMS, -1), scores


def search_ours(model, prompts, length_power: float):
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.full((len(prompts), lengths.max()), PADDING, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    found = beam_search_tokens(
        model.fn,
        model.params,
        jnp.asarray(tokens),
        jnp.asarray(lengths),
        max_new_tokens=NEW,
        ends=model.ends,
        search=TokenBeamSearch(num_beams=NUM_BEAMS, length_power=length_power),
    )
    return jax.tree.map(np.asarray, found)


def assert_same(ours, texts, scores) -> None:
    width = texts.shape[-1]
    expected = np.where(np.arange(width) < ours.lengths[..., None], ours.tokens[..., :width], -1)
    np.testing.assert_array_equal(np.where(expected < 0, PADDING, expected), texts)
    assert ours.lengths.max() == width
    assert_close(ours.score, scores)


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, 2.0])
def test_texts_and_scores_are_those_of_transformers(models, power):
    """With `early_stopping="never"`, whose bound is the same as ours."""
    theirs, model = models
    assert model.ends == tuple(ENDS)
    ours = search_ours(model, PROMPTS, power)
    assert_same(ours, *search_theirs(theirs, PROMPTS, power, "never"))
    last = np.take_along_axis(ours.tokens, ours.lengths[..., None] - 1, axis=2)[..., 0]
    assert np.isin(last, ENDS).any()


def test_the_default_of_transformers_is_the_same_without_a_length_power(models):
    theirs, model = models
    assert_same(search_ours(model, PROMPTS, 0.0), *search_theirs(theirs, PROMPTS, 0.0, False))


def test_the_default_of_transformers_stops_too_soon_for_a_length_power(models):
    """It takes a live text to reach at most its score so far, though a longer one may beat that."""
    theirs, model = models
    ours = search_ours(model, PROMPTS, 1.0)
    _, scores = search_theirs(theirs, PROMPTS, 1.0, False)
    assert (ours.score >= scores - 1e-5).all()
    assert (ours.score > scores + 1e-2).any()
