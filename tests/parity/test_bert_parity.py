"""`BertModel` of the transformers library: last states and sentence vectors of ragged batches."""

from pathlib import Path

import jax
import numpy as np
import pytest
from bert_folder import CONFIG, WORDS, make_tokenizer

from recipe_jax.huggingface import load_bert_encoder
from recipe_jax.huggingface.tokenizers import tokenizer_files
from recipe_jax.sentence_encoding import load_sentence_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CASES = {
    "bert": ("BertModel", {}),
    "bert with a head": ("BertForMaskedLM", {}),
    "tanh approximation, other epsilon": (
        "BertModel",
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "num_attention_heads": 2},
    ),
}
TOKENS = np.array([[2, 5, 9, 4, 3, 0], [2, 7, 3, 0, 0, 0], [2, 4, 4, 8, 15, 3]])
LENGTHS = np.array([5, 3, 6])
TYPES = np.array([[0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
TEXTS = ["abcabc", "h", "", "kale and leek", "a" * 60, "fig", "cabbage"]
MASK = np.arange(6)[None] < LENGTHS[:, None]


@pytest.fixture(scope="module", params=CASES)
def twins(request, tmp_path_factory):
    """The model of transformers and the folder that it wrote."""
    transformers.logging.disable_progress_bar()
    kind, changes = CASES[request.param]
    names = ("model_type", "architectures", "position_embedding_type")
    shape = {key: value for key, value in (CONFIG | changes).items() if key not in names}
    torch.manual_seed(0)
    config = transformers.BertConfig(**shape, initializer_range=0.3)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # scales of one and biases of zero would hide a mistake
                parameter += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    for name, content in tokenizer_files(make_tokenizer()).items():
        (folder / name).write_bytes(content)
    return getattr(model, "bert", model), folder


def their_states(model, tokens, mask, types=None):
    types = np.zeros_like(tokens) if types is None else types
    inputs = [torch.tensor(np.asarray(x)).long() for x in (tokens, mask, types)]
    with torch.no_grad():
        return model(
            input_ids=inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2]
        ).last_hidden_state.numpy()


def assert_within(found, expected, share=1e-5):
    """The largest difference, as a share of the largest value."""
    assert np.abs(np.asarray(found) - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("types", [None, TYPES])
def test_last_states_of_a_ragged_batch_agree(twins, types):
    model, folder = twins
    ours = load_bert_encoder(folder)
    assert ours.cfg.vocab_size == len(WORDS)
    states = jax.jit(ours.fn.bind(ours.params))(
        TOKENS.astype(np.int32), LENGTHS.astype(np.int32), token_types=types
    )
    assert_within(np.asarray(states)[MASK], their_states(model, TOKENS, MASK, types)[MASK])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_vectors_agree(twins, pooling, normalize):
    model, folder = twins
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="np")
    mask = batch["attention_mask"]
    states = their_states(model, batch["input_ids"], mask)
    expected = states[:, 0]
    if pooling == "mean":
        weights = mask[..., None].astype(np.float32)
        expected = (states * weights).sum(axis=1) / weights.sum(axis=1)
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    encoder = load_sentence_encoder(Path(folder), pooling=pooling, normalize=normalize)
    assert_within(encoder.encode(TEXTS, batch_size=4), expected)
