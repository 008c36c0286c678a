"""`python -m experiments.language_model`: train, evaluate, generate."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import headline as headline_of
from command_line import refused as refused_of
from safetensors.numpy import load_file
from story_checkpoint import TEXT, write_checkpoint

from experiments.language_model.__main__ import main

headline = functools.partial(headline_of, main=main)
refused = functools.partial(refused_of, main=main)
TRAIN = ("--batch-size", "2", "--num-tokens", "24", "--evaluate-every", "50", "--no-progress")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


def test_a_model_learns_a_text_and_is_a_hugging_face_folder(capsys, checkpoint, text, tmp_path):
    run = tmp_path / "run"
    command = ("train", "--model", checkpoint, "--text", text, "--run", run, "--steps", 150)
    result = headline(capsys, *command, *TRAIN, "--learning-rate", 0.03)
    assert result["nats_per_token"] < result["baselines"]["before"]["nats_per_token"] - 1
    assert result["num_trained"] == result["num_parameters"]
    record = json.loads((run / "record.json").read_text())
    assert record["command"].startswith(
        "python -m experiments.language_model train --text DIR/cats.txt --model DIR/tiny --run RUN"
    )
    assert str(tmp_path.parent) not in (run / "record.json").read_text()
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (run / "model").iterdir()
    }
    scored = headline(capsys, "evaluate", "--model", run, "--text", text, "--num-tokens", 24)
    assert scored["nats_per_token"] < scored["baselines"]["unigram"]["nats_per_token"]
    # A run is known by what the text says, not by where it lies.
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT)
    command = (*command, *TRAIN, "--learning-rate", 0.03, "--text", moved)
    assert headline(capsys, *command)["nats_per_token"] == result["nats_per_token"]
    moved.write_text(TEXT.replace("cat", "dog"))
    assert "config.json: this folder holds a run with training=" in refused(capsys, *command)


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
