"""Sentences to vectors: in order, by themselves, in few shapes, cut where positions end."""

import json
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from bert_folder import WORDS, draw_tensors, plain_states, write_bert_folder, write_sentence_modules
from tokenizers import Tokenizer
from tolerances import assert_close

from recipe_jax import sentence_encoding
from recipe_jax.data.vector_cache import cached_vectors
from recipe_jax.huggingface import ModelFolderError
from recipe_jax.sentence_encoding import load_sentence_encoder
from recipe_jax.sharding import make_mesh

TENSORS = draw_tensors()
RNG = np.random.default_rng(0)
TEXTS = ["".join(RNG.choice(list("abcdefghijklz"), size)) for size in (3, 30, 1, 7, 20, 0, 60, 5)]
LONGEST = 38  # letters, beside [CLS] and [SEP], of 40 positions


def tokens_of(text: str, longest: int = LONGEST) -> list[int]:
    letters = [WORDS.index(letter) if letter in WORDS else 1 for letter in text.lower()]
    return [2, *letters[:longest], 3]


def means(texts: list[str], longest: int = LONGEST) -> np.ndarray:
    return np.stack([plain_states(TENSORS, tokens_of(t, longest)).mean(axis=0) for t in texts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_sentence_encoder(folder, pooling="mean")


def test_vectors_are_those_of_the_formulas_in_the_order_of_the_texts(encoder):
    found = encoder.encode(TEXTS, batch_size=4)
    assert found.dtype == np.float32
    assert_close(found, means(TEXTS))
    assert_close(encoder.encode(TEXTS[::-1], batch_size=4), means(TEXTS)[::-1])


def test_a_vector_depends_on_its_text_alone(encoder):
    texts = TEXTS[:4]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert_close(encoder.encode(texts), alone)
    assert encoder.encode([]).shape == (0, 12)


def test_few_shapes_are_compiled(encoder, monkeypatch):
    shapes = []

    def recorded(fn, params, tokens, lengths, **options):
        shapes.append(tokens.shape)
        real = np.arange(tokens.shape[1])[None] < np.asarray(lengths)[:, None]
        assert (np.asarray(tokens)[~real] == 0).all() and np.asarray(lengths).min() >= 1
        return np.zeros((len(tokens), 12), np.float32)

    monkeypatch.setattr(sentence_encoding, "_encode", recorded)
    texts = ["a" * size for size in range(60)] * 5
    encoder.encode(texts, batch_size=16)
    assert set(shapes) <= {(16, 16), (16, 24), (16, 32), (16, 40)}
    assert len(shapes) == -(-len(texts) // 16)
    padded = sum(rows * size for rows, size in shapes)
    assert padded < 1.3 * sum(min(len(text), LONGEST) + 2 for text in texts)
    shapes.clear()
    encoder.encode(["a"] * 5, batch_size=64)  # one query does not pay for a batch
    assert shapes == [(8, 16)]


def test_long_texts_are_cut(folder):
    encoder = load_sentence_encoder(folder, pooling="mean", max_tokens=6)
    assert_close(encoder.encode(TEXTS), means(TEXTS, longest=4))


def test_padding_and_truncation_kept_in_the_tokenizer_are_not_followed(tmp_path: Path):
    """Checkpoints bring those of their last training, such as padding to 128 tokens."""
    path = write_bert_folder(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(path))
    encoder = load_sentence_encoder(tmp_path, pooling="mean")
    assert_close(encoder.encode(TEXTS[:4]), means(TEXTS[:4]))


def test_a_tokenizer_of_word_pieces_alone_will_do(tmp_path: Path):
    """As BERT was published: `vocab.txt`."""
    (write_bert_folder(tmp_path) / "tokenizer.json").unlink()
    pieces = [*WORDS[:4], "[MASK]", *"abcdef", *(f"##{letter}" for letter in "abcde")]
    assert len(pieces) == len(WORDS)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = load_sentence_encoder(tmp_path, pooling="mean")
    tokens = [2, 7, 11, 5, 3]  # [CLS] c ##a a [SEP]
    assert_close(encoder.encode(["Ca a"])[0], plain_states(TENSORS, tokens).mean(axis=0))


def test_vectors_are_cached_by_the_fingerprint(encoder, folder, tmp_path: Path):
    options = {"fingerprint": encoder.fingerprint, "folder": tmp_path, "batch_size": 4}
    found = cached_vectors(TEXTS, encoder.encode, **options)
    assert_close(found.vectors, means(TEXTS))
    again = load_sentence_encoder(folder, pooling="mean")
    options["fingerprint"] = again.fingerprint
    assert cached_vectors(TEXTS[::-1], again.encode, **options).num_computed == 0


def test_a_folder_of_sentence_transformers_says_how(tmp_path: Path):
    write_sentence_modules(write_bert_folder(tmp_path))
    encoder = load_sentence_encoder(tmp_path)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("cls", True, 9)
    first = np.stack([plain_states(TENSORS, tokens_of(text, 7))[0] for text in TEXTS])
    unit = first / np.linalg.norm(first, axis=1, keepdims=True)
    assert_close(encoder.encode(TEXTS, batch_size=4), unit)
    other = load_sentence_encoder(tmp_path, pooling="mean", normalize=False, max_tokens=40)
    assert_close(other.encode(TEXTS, batch_size=4), means(TEXTS))


def test_a_longer_limit_than_positions_is_theirs(tmp_path: Path):
    write_sentence_modules(write_bert_folder(tmp_path))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert load_sentence_encoder(tmp_path).max_tokens == 40


def test_the_fingerprint_is_of_all_that_counts(folder, encoder, tmp_path: Path):
    before = load_sentence_encoder(folder, pooling="mean")
    after = load_sentence_encoder(folder, pooling="mean")
    after.encode(["abc"])  # which leaves its truncation in the tokenizer
    same = {encoder.fingerprint, before.fingerprint, after.fingerprint}
    changed = dict(TENSORS)
    name = "encoder.layer.1.output.dense.bias"
    changed[name] = changed[name] + np.eye(12, dtype=np.float32)[3]
    others = {
        load_sentence_encoder(folder, pooling="cls").fingerprint,
        load_sentence_encoder(folder, pooling="mean", normalize=True).fingerprint,
        load_sentence_encoder(folder, pooling="mean", max_tokens=9).fingerprint,
        load_sentence_encoder(folder, pooling="mean", dtype="bfloat16").fingerprint,
        load_sentence_encoder(
            write_bert_folder(tmp_path / "other", changed), pooling="mean"
        ).fingerprint,
    }
    path = write_bert_folder(tmp_path / "cased") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": None}))
    others.add(load_sentence_encoder(path.parent, pooling="mean").fingerprint)
    assert len(same) == 1 and len(others) == 6 and not same & others


def test_what_does_not_fit_is_refused(folder, encoder, tmp_path: Path, monkeypatch):
    with pytest.raises(ModelFolderError, match=r"has no 1_Pooling/config\.json .* give pooling"):
        load_sentence_encoder(folder)
    for limit in (2, 41):
        with pytest.raises(ValueError, match=f"max_tokens={limit} must be from 3, .* to max_pos"):
            load_sentence_encoder(folder, pooling="mean", max_tokens=limit)
    with pytest.raises(ValueError, match="texts='abc' must be a list of texts"):
        encoder.encode("abc")
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        encoder.encode(["abc"], batch_size=0)
    other = write_bert_folder(tmp_path)
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"no tokenizer\.json"):
        load_sentence_encoder(other, pooling="mean")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="pooling='max' must be one of"):
        load_sentence_encoder(folder, pooling="max")


def test_a_text_without_a_token_is_refused(tmp_path: Path):
    path = write_bert_folder(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    encoder = load_sentence_encoder(tmp_path, pooling="mean")
    with pytest.raises(ValueError, match="text 2='' has no token"):
        encoder.encode(["abc", ""])


def test_it_is_computed_on_the_mesh_that_holds_the_parameters(folder, encoder):
    mesh = make_mesh("fsdp=2,tensor=2", jax.devices()[:4])
    sharded = load_sentence_encoder(folder, pooling="mean", mesh=mesh)
    assert_close(sharded.encode(TEXTS[:3]), encoder.encode(TEXTS[:3]))
