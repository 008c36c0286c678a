"""Training a generative recommender from the command line, and what it is asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from circle_walkers import circle_walkers
from command_line import TINY
from command_line import headline as headline_of
from command_line import refused as refused_of

from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.choices import Choices, as_json
from experiments.semantic_ids.datasets import read_dataset
from experiments.semantic_ids.protocol import item_bits
from experiments.semantic_ids.trained import load_recommender
from recipe_jax.semantic_ids import parse_id
from recipe_jax.training.tracker import read_metrics

ITEMS = 30
FEW = ["--batch-size", "8", "--max-items", "8", "--validation-users", "20", "--dropout", "0"]


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    return headline_of(capsys, *arguments, main=main)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refused_of(capsys, *arguments, main=main)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk along a circle of thirty items, one step at a time."""
    path = tmp_path_factory.mktemp("data") / "users.txt"
    path.write_text("\n".join(circle_walkers(64, num_items=ITEMS)) + "\n")
    return path


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `quantize` leaves them; items 0 and 6, 1 and 7, … share theirs."""
    run = tmp_path_factory.mktemp("codes")
    names = [f"i{item}" for item in range(ITEMS)]
    found = np.array([[item % 6, item // 12] for item in range(ITEMS)], np.int32)
    np.savez(run / "codes.npz", ids=names, codes=found, num_codes=[6, 3])
    return run


@pytest.fixture(scope="module")
def learned(users: Path, codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to walk on."""
    run = tmp_path_factory.mktemp("runs") / "learned"
    flags = ["train", "--model", "generative", "--data", users, "--codes", codes, "--run", run]
    steps = ["--steps", "150", "--evaluate-every", "150", "--learning-rate", "0.02"]
    assert main([*map(str, flags), *TINY, *FEW, *steps, "--encoder-layers", "1"]) == 0
    return run


def test_it_learns_to_name_the_next_item_among_all(learned: Path):
    (row,) = (r for r in read_metrics(learned / "metrics.jsonl") if r["split"] == "validation")
    assert row["recall_at_5"] > 0.9


def test_its_folder_knows_the_ids_and_refuses_others(
    learned: Path, users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset = read_dataset(str(users))
    recommender = load_recommender(learned)
    assert recommender.ids is not None and recommender.ids.items == dataset.item_ids
    queries = dataset.split.test
    scores = recommender.scorer()(queries.histories)
    assert np.isfinite(scores).all()
    # What a user knows is never found: it scores as the rest does.
    known = item_bits(queries.histories, ITEMS)
    assert (scores[known] == np.broadcast_to(scores.min(axis=1)[:, None], known.shape)[known]).all()
    ids = learned / "model" / "ids.npz"
    content = ids.read_bytes()
    try:
        ids.write_bytes(content[:-1])
        (tmp_path / "choices.json").write_text(json.dumps({"choices": as_json(Choices())}))
        given = ["--data", users, "--runs", learned, "--choices", tmp_path / "choices.json"]
        line = refused(capsys, "evaluate", *given)
        assert "ids.npz: is not the one that the model was saved with" in line
    finally:
        ids.write_bytes(content)


@pytest.mark.parametrize("k", [1, 10, 24])
def test_as_many_items_are_recommended_as_are_asked_for(
    k: int, learned: Path, capsys: pytest.CaptureFixture[str]
):
    history = [f"i{item}" for item in range(3, 9)]
    found = headline(capsys, "recommend", "--run", learned, "--history", *history, "--k", k)
    assert len(set(found["items"])) == len(found["items"]) == k
    assert not set(found["items"]) & set(history)
    assert found["items"][0] == "i9"
    ids = load_recommender(learned).ids
    for name, text in zip(found["items"], found["semantic_ids"], strict=True):
        assert parse_id(text, ids.sizes) == tuple(ids.codes[ids.items.index(name)])
    assert found["scores"] == sorted(found["scores"], reverse=True)


def test_histories_that_cannot_be_answered_are_refused(
    learned: Path, capsys: pytest.CaptureFixture[str]
):
    def said(*arguments: object) -> str:
        return refused(capsys, "recommend", "--run", learned, *arguments)

    assert "item 'x' of the history is none of the model's 30 items" in said("--history", "x")
    assert "give either --history, of one item at least, or --query" in said("--history")
    assert "--query is for a language model of tune" in said("--query", "soap")
    line = said("--history", "i1", "i2", "i1", "--k", "29")
    assert "k=29 must be from 1 to 28: there are 30 items, 2 of them in the history" in line
    assert "--k 0 must be at least 1" in said("--history", "i1", "--k", "0")
    # Longer than the model reads: the latest items are.
    long = [f"i{item}" for item in range(12)]
    found = headline(capsys, "recommend", "--run", learned, "--history", *long, "--k", "1")
    assert found["items"] == ["i12"]


def test_it_learns_alike_on_one_device_and_on_eight(
    users: Path, codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    losses = []
    for name, mesh in (("one", []), ("eight", ["--mesh", "data=2,fsdp=2,tensor=2"])):
        flags = ["train", "--model", "generative", "--data", users, "--codes", codes, *TINY, *FEW]
        # With the validation items learned nothing is validated.
        flags += ["--learn-validation", "--steps", "3", "--evaluate-every", "1"]
        headline(capsys, *flags, *mesh, "--run", tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        losses.append([row["loss"] for row in rows if row["split"] == "train"])
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_it_needs_codes_of_all_items(
    users: Path, codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["train", "--model", "generative", "--data", users, "--run", tmp_path / "run", *TINY]
    assert "--model generative needs --codes" in refused(capsys, *flags)
    assert "codes.npz: no such file" in refused(capsys, *flags, "--codes", tmp_path)
    with np.load(codes / "codes.npz") as held:
        arrays = dict(held)
    np.savez(
        tmp_path / "codes.npz", **arrays | {name: arrays[name][2:] for name in ("ids", "codes")}
    )
    line = refused(capsys, *flags, "--codes", tmp_path)
    assert "has no codes of item " in line and "nor of 1 others" in line
    np.savez(tmp_path / "codes.npz", ids=arrays["ids"])
    assert "must be what quantize writes" in refused(capsys, *flags, "--codes", tmp_path)
    assert not (tmp_path / "run").exists()
