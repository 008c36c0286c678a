"""`python -m experiments.language_model`: train, evaluate, generate; and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import contents
from safetensors.numpy import load_file
from story_checkpoint import TEXT, write_checkpoint

from experiments.language_model.__main__ import main

TRAIN = ("--batch-size", "2", "--num-tokens", "24", "--evaluate-every", "50", "--no-progress")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


def headline(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("data: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_model_learns_a_text_and_is_a_hugging_face_folder(capsys, checkpoint, text, tmp_path):
    run = tmp_path / "run"
    command = ("train", "--model", checkpoint, "--text", text, "--run", run, "--steps", 150)
    result = headline(capsys, *command, *TRAIN, "--learning-rate", 0.03)
    assert result["nats_per_token"] < result["baselines"]["before"]["nats_per_token"] - 1
    assert result["num_trained"] == result["num_parameters"]
    record = json.loads((run / "record.json").read_text())
    assert record["command"].startswith("python -m experiments.language_model train --text")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (run / "model").iterdir()
    }
    scored = headline(capsys, "evaluate", "--model", run, "--text", text, "--num-tokens", 24)
    assert scored["nats_per_token"] < scored["baselines"]["unigram"]["nats_per_token"]
    again = headline(capsys, *command, *TRAIN, "--learning-rate", 0.03)
    assert again["nats_per_token"] == result["nats_per_token"]


def test_adapters_alone_are_trained_and_merged(capsys, checkpoint, text, tmp_path):
    run = tmp_path / "run"
    options = ("--lora-rank", 2, "--lora-targets", "query", "down", "--microbatches", 2)
    command = ("train", "--model", checkpoint, "--text", text, "--run", run, "--steps", 3)
    result = headline(capsys, *command, *options, *TRAIN)
    assert result["num_trained"] == 2 * 2 * ((24 + 24) + (32 + 24))
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, run / "model"))
    changed = {name.split(".", 3)[-1] for name in before if (before[name] != after[name]).any()}
    assert changed == {"self_attn.q_proj.weight", "mlp.down_proj.weight"}


def test_of_conversations_only_answers_are_learned(capsys, checkpoint, tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "cat"}]}
    ] * 30
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    command = ("train", "--model", checkpoint, "--text", tmp_path / "chats.jsonl")
    result = headline(capsys, *command, "--run", tmp_path / "run", "--steps", 2, *TRAIN)
    assert result["n"] == 3 * 2  # " cat", the line's end and the text's end, twice


@pytest.mark.parametrize(
    "options",
    [(), ("--temperature", 0.8, "--top-k", 5, "--repetition-penalty", 1.2), ("--beams", 3)],
)
def test_prompts_are_continued(capsys, checkpoint, options):
    command = ("generate", "--model", checkpoint, "--prompt", "the cat", "a", "--max-new-tokens", 7)
    result = headline(capsys, *command, *options)
    assert len(result["texts"]) == 2 and 2 <= result["n"] <= 14
    assert all(np.isfinite(result["log_probabilities"]))
    assert headline(capsys, *command, *options)["texts"] == result["texts"]


def test_a_streamed_text_is_the_text(capsys, checkpoint):
    command = ("generate", "--model", checkpoint, "--prompt", "the", "--max-new-tokens", "9")
    assert main([*map(str, command), "--stream"]) == 0
    printed = capsys.readouterr()
    (text,) = json.loads(printed.out.splitlines()[-1])["texts"]
    assert printed.err.startswith("the") and text.rstrip("\ufffd") in printed.err
    assert headline(capsys, *command)["texts"] == [text]


def test_a_chat_is_what_the_template_makes_of_it(capsys, checkpoint):
    command = ("generate", "--model", checkpoint, "--max-new-tokens", 5)
    chat = headline(capsys, *command, "--chat", "--system", "be", "--prompt", "hat")
    plain = headline(capsys, *command, "--prompt", "system: be\nuser: hat\nassistant:")
    assert chat["log_probabilities"] == plain["log_probabilities"]


def broken_folder(checkpoint: Path, tmp_path: Path, **changes) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, content in contents(checkpoint).items():
        (folder / name).write_bytes(content)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_cannot_be_trained_is_refused_in_one_line(capsys, checkpoint, text, tmp_path):
    def train(*options, model=checkpoint, text=text):
        run = tmp_path / "run"
        line = refused(
            capsys, "train", "--model", model, "--text", text, "--run", run, "--steps", 2, *options
        )
        assert not (run / "model").exists()
        return line

    assert "missing.txt: cannot be read" in train(text=tmp_path / "missing.txt")
    (tmp_path / "one.txt").write_text("the cat sat.")
    assert "holds 1 document, must hold at least 2" in train(text=tmp_path / "one.txt")
    assert "--num-tokens 65 must be at most the model's max_positions=64" in train(
        "--num-tokens", 65
    )
    assert "--batch-size 8 must be a multiple of --microbatches 3" in train("--microbatches", 3)
    assert "rank=0 must be at least 1" in train("--lora-rank", 0)
    assert "batch_size=800 rows" in train("--batch-size", 800)
    assert "must use" in train("--mesh", "data=3") or "devices" in train("--mesh", "data=3")
    assert "no such file; it is no model folder" in train(model=tmp_path)
    assert "model_type='bert' must be one of" in train(
        model=broken_folder(checkpoint, tmp_path, model_type="bert")
    )


def test_what_cannot_be_continued_is_refused_in_one_line(capsys, checkpoint, tmp_path, monkeypatch):
    def generate(*options):
        return refused(capsys, "generate", "--model", checkpoint, *options)

    long = ("--prompt", "the", "--max-new-tokens", 64)
    assert "together be at most the model's max_positions=64" in generate(*long)
    assert "--stream takes one --prompt" in generate("--prompt", "a", "b", "--stream")
    assert "--system is for --chat" in generate("--prompt", "a", "--system", "x")
    assert "temperature=-1.0" in generate(
        *("--prompt", "a", "--max-new-tokens", 3, "--temperature", -1)
    )
    small = broken_folder(checkpoint, tmp_path)
    vocabulary = json.loads((small / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["zebra"] = 999
    (small / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "it is the tokenizer of another model" in refused(
        capsys, "generate", "--model", small, "--prompt", "a"
    )
    (small / "tokenizer.json").unlink()
    (small / "tokenizer_config.json").unlink()
    assert "no tokenizer.json" in refused(capsys, "generate", "--model", small, "--prompt", "a")
    monkeypatch.delenv("RECIPE_JAX_DATA", raising=False)
    assert "--model is not given" in refused(capsys, "generate", "--prompt", "a")
