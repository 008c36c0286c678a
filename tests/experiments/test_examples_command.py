"""`examples`: what it writes for items and histories, and what it refuses."""

import json
from collections import Counter

import numpy as np
import pytest
from command_line import contents, headline, refused

from experiments.semantic_ids.__main__ import main
from recipe_jax.data.recipes import split_of
from recipe_jax.data.texts import read_documents
from recipe_jax.semantic_ids import format_id, parse_id, read_ids

ITEMS = [
    {"sku": f"s{row}", "name": f"Soap {row}", "brand": f"Brand {row % 3}"} for row in range(40)
]


def write_codes(run, ids):
    run.mkdir(exist_ok=True)
    rows = np.arange(len(ids))
    codes = np.stack([rows % 4, rows // 4 % 4, rows // 32], axis=1).astype(np.int32)
    np.savez(run / "codes.npz", ids=np.array(ids), codes=codes, num_codes=np.full(3, 512))
    return run


@pytest.fixture
def given(tmp_path):
    """A shop, codes of its items, and users, as arguments."""
    (tmp_path / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    lines = [" ".join(f"s{(user + step) % 40}" for step in range(4)) for user in range(40)]
    (tmp_path / "users.txt").write_text(
        "".join(f"u{user} {line}\n" for user, line in enumerate(lines))
    )
    codes = write_codes(tmp_path / "codes", [row["sku"] for row in ITEMS])
    table = ("--catalogue", tmp_path / "shop.jsonl", "--id-field", "sku", "--text-fields", "name")
    return ("examples", *table, "--codes", codes, "--out", tmp_path / "out")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_examples_of_items_and_of_histories(capsys, given, tmp_path):
    arguments = (*given, "--attribute-fields", "brand", "--num-examples-per-item", 2)
    arguments = (*arguments, "--histories", tmp_path / "users.txt", "--strict")
    found = headline(capsys, *arguments, main=main)
    out = tmp_path / "out"
    assert found["n"] == 40 and found["train"] + found["validation"] + found["test"] == 160
    assert (found["histories_train"], found["histories_test"]) == (40, 40)
    ids = read_ids(out / "ids.npz")
    assert ids.fingerprint == found["ids"]
    texts = dict(zip(ids.items, map(format_id, ids.codes), strict=True))
    seen = Counter()
    for part in ("train", "validation", "test"):
        assert len(read_documents(out / f"{part}.jsonl")) == found[part]
        assert len(read_documents(out / f"histories_{part}.jsonl")) == found[f"histories_{part}"]
        for row in rows_of(out / f"{part}.jsonl"):
            assert split_of(row["item_id"]) == part
            seen[row["item_id"], row["type"]] += 1
            if row["type"] == "predict_semantic_id":
                assert parse_id(row["response"], ids.sizes)
                assert row["response"] == texts[row["item_id"]]
    assert len(seen) == 80 and set(seen.values()) == {2}
    before = contents(out)
    assert headline(capsys, *arguments, main=main) == found and contents(out) == before


def test_items_without_codes_are_counted_and_templates_of_ones_own_taken(capsys, given, tmp_path):
    write_codes(tmp_path / "codes", [row["sku"] for row in ITEMS[5:]])
    way = {"type": "predict_semantic_id", "query": "The {name} [REC]", "response": "{id}"}
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"system": "Be brief.", "templates": [way]}))
    arguments = (*given, "--templates", mine, "--tasks", "predict_semantic_id")
    found = headline(capsys, *arguments, main=main)
    assert found["items_without_codes"] == 5
    row = rows_of(tmp_path / "out" / "train.jsonl")[0]
    assert row["query"] == "The Soap 5 [REC]" and row["messages"][0]["content"] == "Be brief."
    line = refused(capsys, *arguments, "--strict", main=main)
    assert "item 's0' has no ID, nor have 4 others of 40" in line


def test_items_that_share_codes_get_ids_that_no_order_of_the_catalogue_changes(
    capsys, given, tmp_path
):
    names = [row["sku"] for row in ITEMS]
    codes, sizes = np.zeros((40, 3), np.int32), np.full(3, 4)
    np.savez(tmp_path / "codes" / "codes.npz", ids=np.array(names), codes=codes, num_codes=sizes)
    first = headline(capsys, *given, main=main)
    before = rows_of(tmp_path / "out" / "train.jsonl")
    table = tmp_path / "shop.jsonl"
    table.write_text("".join(reversed(table.read_text().splitlines(keepends=True))))
    assert headline(capsys, *given, main=main)["ids"] == first["ids"]
    after = rows_of(tmp_path / "out" / "train.jsonl")
    assert sorted(map(json.dumps, after)) == sorted(map(json.dumps, before))
    answers = {r["item_id"]: r["response"] for r in before if r["type"] == "predict_semantic_id"}
    assert len(set(answers.values())) == len(answers) > 20


def test_bad_input_is_one_line_and_no_folder(capsys, given, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text('{"system": "a", "templates": [{"type": "predict_semantic_id"}]}')
    (tmp_path / "sold.txt").write_text("u1 x1 x2 x3\n")
    wrong = {
        "mine.json: row 1: {'type'": ("--templates", mine),
        "none.json: cannot be read": ("--templates", tmp_path / "none.json"),
        "codes.npz: no such file": ("--codes", tmp_path / "none"),
        "none of 3 items has an ID": ("--histories", tmp_path / "sold.txt"),
        "mealrec are sets, which have no next item": ("--histories", "mealrec"),
        "--num-examples-per-item 0 must be at least 1": ("--num-examples-per-item", 0),
        "--seed -1 must be from 0": ("--seed", -1),
        "--tasks must name one": ("--tasks",),
        "attribute 'id' must be called otherwise": ("--attribute-fields", "id"),
    }
    rows = [json.dumps(row | {"id": 1}) + "\n" for row in ITEMS]
    (tmp_path / "shop.jsonl").write_text("".join(rows))
    for message, arguments in wrong.items():
        assert message in refused(capsys, *given, *arguments, main=main)
        assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_every_item_of_beauty_is_asked_for(capsys, tmp_path):
    codes = write_codes(tmp_path / "codes", [str(item) for item in range(1, 12_102)])
    given = ("examples", "--codes", codes, "--out", tmp_path / "out", "--strict")
    found = headline(capsys, *given, main=main)
    parts = [found[part] for part in ("train", "validation", "test")]
    assert found["n"] == 12_101 and sum(parts) == 2 * 12_101
    assert min(parts) > 2000 and set(found["not_asked"].values()) == {0}
    for row in rows_of(tmp_path / "out" / "test.jsonl"):
        left = row["query"].count("[") - (6 if row["type"] == "predict_attribute" else 1)
        assert left == 0 and (row["type"] == "predict_semantic_id") == ("[" in row["response"])
