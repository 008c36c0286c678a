"""Search from the command line, on a few made-up recipes."""

import json
from pathlib import Path

import pytest
from command_line import headline as headline_of
from command_line import refused as refused_of
from made_up_recipes import write_folder

from experiments.semantic_ids import search
from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.catalogue_vectors import read_items
from experiments.semantic_ids.text_queries import read_text_queries

SYSTEMS = {"bm25", "bm25_as_usual", "nearest_texts"}


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    return headline_of(capsys, "search", *arguments, main=main)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refused_of(capsys, "search", *arguments, main=main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_JAX_DATA", str(folder))
    for name, values in {
        "K1S": (0.3, 1.2),
        "BS": (0.5,),
        "DIMS": (4, 8),
        "NEIGHBOURS": (5, 30),
        "EXPANSIONS": (0.3, 1.0),
    }.items():
        monkeypatch.setattr(search, name, values)


def test_what_is_chosen_on_validation_is_asked_for_in_the_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    choices, record = tmp_path / "choices.json", tmp_path / "record.json"
    chosen = headline(capsys, "--choose", "--choices", choices)
    assert chosen["split"] == "validation" and set(chosen["choices"]["blend"]) == {
        "bm25",
        "bm25_expanded",
        "nearest_texts",
    }
    sweep = json.loads(choices.read_text())["sweep"]
    best = max(row["ndcg_at_10"] for row in sweep)
    assert chosen["ndcg_at_10"] == best
    found = headline(capsys, "--split", "test", "--choices", choices, "--record", record)
    assert set(found["baselines"]) == {*SYSTEMS, "bm25_expanded"}
    rows = found["baselines"]
    assert rows["bm25_expanded"]["mrr"] > rows["bm25"]["mrr"] and found["n"] == rows["bm25"]["n"]
    low, high = found["recall_at_10_interval"]
    assert low <= found["recall_at_10"] <= high
    written = json.loads(record.read_text())
    assert written["command"].startswith("python -m experiments.semantic_ids search --task recipe-")
    assert written["choices"] == chosen["choices"] and written["seed"] == 0
    for text in ("number", "spice", str(tmp_path)):  # no text of a recipe, no place of a machine
        assert text not in record.read_text() and text not in choices.read_text()


def test_requests_are_a_test_of_what_pantries_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    choices = tmp_path / "choices.json"
    headline(capsys, "--task", "pantrypilot-pantries", "--choose", "--choices", choices)
    given = ["--choices", choices, "--split", "test"]
    pantries = headline(capsys, "--task", "pantrypilot-pantries", *given)
    requests = headline(capsys, "--task", "pantrypilot-requests", *given)
    assert (pantries["n"], requests["n"]) == (60, 5)
    assert set(requests["baselines"]) == SYSTEMS and requests["recall_at_1"] == 1.0
    assert pantries["items"] == requests["items"] and pantries["num_items"] == 120


def test_a_sample_is_the_same_for_a_seed_and_no_larger_than_asked_for():
    def of(seed: int):
        found = read_text_queries("pantrypilot-pantries", split="test", num_queries=9, seed=seed)
        return found.queries, found.targets.tolist()

    whole = read_text_queries("pantrypilot-pantries", split="test")
    assert of(0) == of(0) != of(1) and len(of(0)[0]) == 9
    query_of = dict(zip(whole.targets.tolist(), whole.queries, strict=True))
    assert all(query_of[target] == query for query, target in zip(*of(3), strict=True))


def test_what_is_quantized_is_what_is_asked_of():
    asked = read_text_queries("recipe-titles", split="test")
    assert read_items("recipe-titles").fingerprint == asked.items.fingerprint
    asked = read_text_queries("pantrypilot-requests", split="test")
    assert read_items("pantrypilot").fingerprint == asked.items.fingerprint


def test_wrong_calls_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert "--choose looks at validation alone" in refused(capsys, "--choose", "--split", "test")
    assert "--queries 1 must be at least 2" in refused(capsys, "--queries", 1)
    assert "5 requests are too few to split" in refused(capsys, "--task", "pantrypilot-requests")
    missing = tmp_path / "none.json"
    assert "run `search --choose` first" in refused(capsys, "--choices", missing)
    missing.write_text('{"choices": {"k": 1}}')
    assert "not a record of choices for text" in refused(capsys, "--choices", missing)
    monkeypatch.delenv("RECIPE_JAX_DATA")
    assert "$RECIPE_JAX_DATA is not set" in refused(capsys)
