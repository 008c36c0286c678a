"""The tokenizer of llama2.c against its own algorithm, and tokenizers that fit no model."""

import json
import os
import struct
from pathlib import Path

import pytest
from story_checkpoint import PIECES, write_tokenizer

from recipe_jax.huggingface import ModelFolderError
from recipe_jax.huggingface.tokenizers import (
    check_vocabulary,
    load_llama2c_tokenizer,
    load_tokenizer,
    tokenizer_files,
    with_words,
)

TEXTS = (
    "Zoo",
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces, and one at the end ",
    "naïve café — “quoted” 🍕 日本",
    "a\nb\tc",
)


def read_pieces(path: Path) -> list[tuple[float, bytes]]:
    data, place, pieces = path.read_bytes(), 4, []
    while place < len(data):
        score, size = struct.unpack_from("<fi", data, place)
        pieces.append((score, data[place + 8 : place + 8 + size]))
        place += 8 + size
    return pieces


def encode_as_llama2c(pieces: list[tuple[float, bytes]], text: str) -> list[int]:
    """Its `encode`: characters or bytes, then the best-scored pair merged until there is none."""
    number = {piece: i for i, (_, piece) in enumerate(pieces)}
    tokens = [number[b" "]] if text else []
    for character in text:
        known = number.get(character.encode())
        tokens += [byte + 3 for byte in character.encode()] if known is None else [known]
    while True:
        pairs = [
            (pieces[number[joined]][0], -place, number[joined])
            for place in range(len(tokens) - 1)
            if (joined := pieces[tokens[place]][1] + pieces[tokens[place + 1]][1]) in number
        ]
        if not pairs:
            return [1, *tokens]
        _, place, token = max(pairs)
        tokens[-place : -place + 2] = [token]


@pytest.mark.parametrize("text", ["the cat", "a at", "that cat sat there", "c é", ""])
def test_it_is_the_algorithm_of_llama2c(tmp_path, text):
    path = write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = load_llama2c_tokenizer(path)
    tokens = tokenizer(text)["input_ids"]
    if text:
        assert tokens == encode_as_llama2c(read_pieces(path), text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.real_data
@pytest.mark.parametrize("text", TEXTS)
def test_so_it_is_on_the_published_one(tmp_path, text):
    path = Path(os.environ["RECIPE_JAX_DATA"]) / "llama_stories260k" / "tok512.bin"
    tokenizer = load_llama2c_tokenizer(path)
    tokens = tokenizer(text)["input_ids"]
    assert tokens == encode_as_llama2c(read_pieces(path), text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_it_survives_as_a_folder(tmp_path):
    tokenizer = load_llama2c_tokenizer(write_tokenizer(tmp_path / "tokenizer.bin"))
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(tmp_path, vocab_size=len(PIECES))
    assert again("the cat é")["input_ids"] == tokenizer("the cat é")["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token, again.eos_token) == ("<s>", "</s>")


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = load_llama2c_tokenizer(write_tokenizer(tmp_path / "tokenizer.bin"))
    check_vocabulary(tokenizer, len(PIECES), "here")
    with pytest.raises(ModelFolderError, match=f"here: the tokenizer has token {len(PIECES) - 1}"):
        check_vocabulary(tokenizer, len(PIECES) - 1, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<ifi", 3, 0.0, 99), "no llama2.c tokenizer .token 0 has length 99"),
        (struct.pack("<if", 3, 0.0), "no llama2.c tokenizer"),
        (struct.pack("<ifi", 3, 0.0, 1) + b"\xff", "no llama2.c tokenizer"),
        (struct.pack("<i", 3), "0 tokens, which must be distinct and above 259"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "tokenizer.bin").write_bytes(content)
    with pytest.raises(ModelFolderError, match=message):
        load_llama2c_tokenizer(tmp_path / "tokenizer.bin")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "", "\x00"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_refused(tmp_path, name, content):
    tokenizer = load_llama2c_tokenizer(write_tokenizer(tmp_path / "tokenizer.bin"))
    for file, data in tokenizer_files(tokenizer).items():
        (tmp_path / file).write_bytes(data)
    (tmp_path / name).write_text(content)
    if (name, content) == ("tokenizer_config.json", "{}"):
        return  # which says nothing, and needs not
    with pytest.raises(ModelFolderError, match="its tokenizer cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)


def test_no_code_of_a_folder_is_run(tmp_path, monkeypatch):
    """Nor is anybody asked whether to."""
    tokenizer = load_llama2c_tokenizer(write_tokenizer(tmp_path / "tokenizer.bin"))
    for file, data in tokenizer_files(tokenizer).items():
        (tmp_path / file).write_bytes(data)
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelFolderError, match=r"its tokenizer cannot be read .*custom code"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_new_words_are_one_token_wherever_they_stand(tmp_path):
    tokenizer = load_llama2c_tokenizer(write_tokenizer(tmp_path / "tokenizer.bin"))
    known = tokenizer.get_vocab()
    grown, first = with_words(tokenizer, ["[SEM_0_1]", "[SEM_0_10]", "[REC]"])
    assert first == len(known) and tokenizer.get_vocab() == known
    text = "the cat[SEM_0_10][SEM_0_1] sat [REC]"
    numbers = grown(text, add_special_tokens=False)["input_ids"]
    assert [n for n in numbers if n >= first] == [first + 1, first, first + 2]
    assert grown.decode(numbers).replace("  ", " ") == text
    plain = "the cat sat. [SEM_0_2]"
    assert grown(plain)["input_ids"] == tokenizer(plain)["input_ids"]
    for words in (["[REC]", "[REC]"], [" the".replace(" ", "▁")]):
        with pytest.raises(ModelFolderError, match=r"has the word .* already: it must be new"):
            with_words(tokenizer, words)
