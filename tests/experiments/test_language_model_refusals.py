"""What `python -m experiments.language_model` refuses: one line, exit code 2, and nothing written.

What the files of a model may not hold is tested beside their readers, in `huggingface/`; here it is
that a command says so.
"""

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import contents
from command_line import refused as refused_by
from safetensors.numpy import load_file, save_file
from story_checkpoint import TEXT, VOCAB_SIZE, write_checkpoint

from experiments.language_model.__main__ import main

refused = functools.partial(refused_by, main=main)
Change = Callable[[Path], object]
TENSORS = "model.safetensors"
NORM, QUERY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
LARGEST = 2**31 - 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    return path


def in_config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        (folder / "generation_config.json").unlink(missing_ok=True)  # its tokens would go before

    return change


def in_tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        edit(tensors)
        save_file(tensors, folder / TENSORS)

    return change


def holding(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def another_word(folder: Path) -> None:
    path = folder / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["model"]["vocab"]["zebra"] = 999
    path.write_text(json.dumps(vocabulary))


def cut(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-8])


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


SHORT = f"{TENSORS}: not a whole safetensors file (Error while deserializing header: "
MODELS: dict[str, Change] = {
    # A configuration of no model that is known here.
    "/config.json: num_attention_heads=4 must be a multiple of num_key_value_heads=3": in_config(
        num_key_value_heads=3
    ),
    "/config.json: hidden_size=24 must be a multiple of num_attention_heads=5, unless head_dim is "
    "given": in_config(num_attention_heads=5, num_key_value_heads=5, head_dim=None),
    "/config.json: model_type='bert' must be one of ['llama', 'qwen2', 'qwen3']": in_config(
        model_type="bert"
    ),
    f"/config.json: hidden_size='24' must be a whole number from 1 to {LARGEST}": in_config(
        hidden_size="24"
    ),
    "/config.json: rms_norm_eps='small' must be a finite number above 0": in_config(
        rms_norm_eps="small"
    ),
    "/config.json: eos_token_id='end' must be a token, or a list of them": in_config(
        eos_token_id="end"
    ),
    "/config.json: key 'num_attention_heads' is missing": in_config(num_attention_heads=None),
    "/config.json: not readable as JSON (": holding("config.json", "{"),
    "/config.json: must hold a JSON object, not a list": holding("config.json", "[]"),
    "/config.json: no such file; it is no model folder": without("config.json"),
    # Tensors of another model, or broken.
    f": tensor '{NORM}' is missing, config.json asks for [24]": in_tensors(lambda t: t.pop(NORM)),
    f"/{TENSORS}: tensor 'more' is not part of the model in config.json": in_tensors(
        lambda t: t.update(more=t[NORM])
    ),
    f"/{TENSORS}: tensor '{QUERY}' has the shape [24, 6], config.json asks for [24, 24]": (
        in_tensors(lambda t: t.update({QUERY: t[QUERY][:, :6].copy()}))
    ),
    f"/{TENSORS}: tensor '{NORM}' has dtype I32, must be one of ['BF16', 'F16', 'F32']": in_tensors(
        lambda t: t.update({NORM: t[NORM].astype(np.int32)})
    ),
    f"/{SHORT}incomplete metadata, file not fully covered)": cut,
    f"/{SHORT}header too large)": holding(TENSORS, struct.pack("<Q", 10**12) + b"{}"),
    f"/{TENSORS}: no such file; pytorch_model.bin is pickled, and no pickle is ever read": (
        lambda folder: (folder / TENSORS).rename(folder / "pytorch_model.bin")
    ),
    # A tokenizer that is missing, broken or of another model.
    f": the tokenizer has token 999 ('zebra'), but the model's vocab_size={VOCAB_SIZE}: it is the "
    "tokenizer of another model": another_word,
    ": no tokenizer.json; a tokenizer is needed to read text": without(
        "tokenizer.json", "tokenizer_config.json"
    ),
    ": its tokenizer cannot be read (TypeError: ": holding("tokenizer.json", "[]"),
    ": its tokenizer cannot be read (JSONDecodeError: ": holding("tokenizer.json", "{"),
}


@pytest.mark.parametrize("message", MODELS)
def test_a_broken_model_is_refused_by_every_command(
    message: str,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folder, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(checkpoint, folder)
    MODELS[message](folder)
    before = contents(folder)
    commands = {
        "generate": ("--prompt", "a"),
        "evaluate": ("--text", text),
        "train": ("--text", text, "--run", run),
    }
    for command, flags in commands.items():
        line = refused(capsys, command, "--model", folder, *flags)
        whole = f"{command}: {folder}{message}"
        assert line.startswith(whole) if message.endswith(("(", ": ")) else line == whole
    assert not run.exists() and contents(folder) == before


def test_a_place_that_is_no_model_is_refused(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    def generate(*options: object) -> str:
        return refused(capsys, "generate", "--prompt", "a", *options)

    missing = tmp_path / "nothing"
    assert generate("--model", missing) == (
        f"generate: {missing}/config.json: no such file; it is no model folder"
    )
    assert generate("--model", text) == (
        f"generate: {text}/config.json: cannot be read (Not a directory)"
    )
    assert generate("--model", tmp_path / "no.bin") == (
        f"generate: {tmp_path}/no.bin: cannot be read (No such file or directory)"
    )
    monkeypatch.delenv("RECIPE_JAX_DATA", raising=False)
    assert generate() == (
        "generate: --model is not given, and $RECIPE_JAX_DATA holds no "
        "llama_stories260k/stories260K.bin: name a folder"
    )


# Prompts, and how they are continued.


def without_a_beginning(folder: Path) -> None:
    """A tokenizer that begins no text, so that an empty one has no token."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": None}))
    in_config(bos_token_id=None)(folder)


def test_a_prompt_without_a_token_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(checkpoint, tmp_path / "model")
    without_a_beginning(tmp_path / "model")
    command = ("generate", "--model", tmp_path / "model", "--max-new-tokens", 2)
    line = refused(capsys, *command, "--prompt", "a", "")
    assert line == "generate: --prompt '' has no tokens, must have at least one"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("a b c " * 40, "--max-new-tokens", 2),
            "--prompt of 202 tokens and --max-new-tokens 2 must together be at most the model's "
            "max_positions=64",
        ),
        (
            ("\udc80",),
            "--prompt '\\udc80': character 0 is '\\udc80', which is no character of UTF-8",
        ),
        (("a", "b", "--stream"), "--stream takes one --prompt and no --beams"),
        (("a", "--system", "x"), "--system is for --chat"),
        (("a", "--max-new-tokens", 0), "--max-new-tokens 0 must be at least 1"),
        (("a", "--temperature", -1), "temperature=-1.0 must be finite and not negative"),
        (("a", "--temperature", "nan"), "temperature=nan must be finite and not negative"),
        (("a", "--top-k", 0), "top_k=0 must be at least 1; None keeps all"),
        (("a", "--top-p", 0), "top_p=0.0 must be above 0 and at most 1"),
        (("a", "--top-p", 1.5), "top_p=1.5 must be above 0 and at most 1"),
        (
            ("a", "--repetition-penalty", 0),
            "repetition_penalty=0.0 must be positive; 1 for none",
        ),
        (("a", "--beams", 0), "--beams 0 must be at least 1"),
        (
            ("a", "--beams", 2, "--top-k", 3),
            "--beams 2 searches for the most probable text and draws nothing: it takes no "
            "--temperature, --top-k, --top-p or --repetition-penalty",
        ),
        (("a", "--seed", -1), "--seed -1 must be from 0 to 9223372036854775807"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    flags: tuple[object, ...],
    message: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
):
    line = refused(capsys, "generate", "--model", checkpoint, "--prompt", *flags)
    assert line == f"generate: {message}"


def test_a_chat_template_that_fails_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(checkpoint, tmp_path / "model")
    template = "{{ raise_exception('no system here') }}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    command = ("generate", "--model", tmp_path / "model", "--prompt", "a", "--chat")
    assert refused(capsys, *command, "--system", "x") == (
        "generate: the chat template cannot write the roles ['system', 'user'] (no system here)"
    )


# Texts, and how they are learned.

TEXTS: dict[str, tuple[str, str | bytes]] = {
    ": holds no text": ("empty.txt", " \n\n"),
    ": byte 3 is no UTF-8": ("latin.txt", b"caf\xe9\n\nx"),
    ": holds 1 document, must hold at least 2": ("one.txt", "the cat sat."),
    ":2: not readable as JSON (": ("broken.jsonl", '{"text": "a"}\n{'),
    ":1: must be an object with either 'messages' or 'text'": ("neither.jsonl", "[]"),
    ":1: message 1: role='bot' must be one of ('system', 'user', 'assistant')": (
        "role.jsonl",
        '{"messages": [{"role": "bot", "content": "a"}]}',
    ),
    ":1: message 1: content=None must be a text that is not empty": (
        "content.jsonl",
        '{"messages": [{"role": "user", "content": null}]}',
    ),
    ":1: text: character 0 is '\\ud800', which is no character of UTF-8": (
        "half.jsonl",
        '{"text": "\\ud800"}',
    ),
}


@pytest.mark.parametrize("message", TEXTS)
def test_a_text_that_cannot_be_read_is_refused_by_file_and_row(
    message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name, content = TEXTS[message]
    path, run = tmp_path / name, tmp_path / "run"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    command = ("train", "--model", checkpoint, "--text", path, "--run", run)
    line = refused(capsys, *command)
    assert line.startswith(f"train: {path}{message}")
    assert line.endswith(message) or message.endswith("(")
    assert not run.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-tokens", 65), "--num-tokens 65 must be at most the model's max_positions=64"),
        (("--num-tokens", 1), "--num-tokens 1 must be at least 2"),
        (("--num-tokens", 0), "--num-tokens 0 must be at least 2"),
        (("--steps", 0), "--steps 0 must be at least 1"),
        (("--batch-size", 0), "--batch-size 0 must be at least 1"),
        (("--microbatches", 0), "--microbatches 0 must be at least 1"),
        (("--microbatches", 3), "--batch-size 8 must be a multiple of --microbatches 3"),
        (("--evaluate-every", 0), "--evaluate-every 0 must be at least 1"),
        (("--learning-rate", "nan"), "--learning-rate nan must be at least 0.0"),
        (("--learning-rate", "inf"), "--learning-rate inf must be finite"),
        (("--lora-rank", 0), "--lora-rank 0 must be at least 1"),
        (("--lora-rank", 2, "--lora-alpha", "nan"), "--lora-alpha nan must be at least 0.0"),
        (
            ("--lora-rank", 2, "--lora-targets", "nose"),
            "targets=('nose',) must be some of query, key, value, output, gate, up, down",
        ),
        (("--validation-share", 1), "--validation-share 1.0 must be between 0 and 1"),
        (
            ("--batch-size", 800),
            "batch_size=800 rows of num_tokens=64 are more than the 250 tokens of 17 sequences: "
            "take smaller batches or more text",
        ),
        (("--seed", -1), "--seed -1 must be from 0 to 9223372036854775807"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run_folder_is_made(
    flags: tuple[object, ...],
    message: str,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    run = tmp_path / "run"
    command = ("train", "--model", checkpoint, "--text", text, "--run", run, *flags)
    assert refused(capsys, *command) == f"train: {message}"
    assert not run.exists()


def test_a_run_folder_below_a_file_is_refused(
    checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]
):
    few = ("--batch-size", 2, "--num-tokens", 24, "--steps", 1, "--no-progress")
    command = ("train", "--model", checkpoint, "--text", text, "--run", text / "run", *few)
    assert f"{text}/run: cannot write (Not a directory)" in refused(capsys, *command)
    assert text.read_text() == TEXT


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-tokens", 65), "--num-tokens 65 must be at most the model's max_positions=64"),
        (("--num-tokens", 0), "--num-tokens 0 must be at least 2"),
        (("--batch-size", -1), "--batch-size -1 must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    flags: tuple[object, ...],
    message: str,
    checkpoint: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ("evaluate", "--model", checkpoint, "--text", text, *flags)
    assert refused(capsys, *command) == f"evaluate: {message}"


def test_a_record_below_a_file_is_refused_before_the_work(
    checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]
):
    command = ("evaluate", "--model", checkpoint, "--text", text, "--record", text / "a.json")
    assert refused(capsys, *command) == f"evaluate: {text}: is a file, must be a folder"
