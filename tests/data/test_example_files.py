"""Files of examples: read by what trains language models, whole or not there."""

import json

import pytest
from small_shop import make_catalogue, make_ids

from recipe_jax.data.catalogues import Catalogue
from recipe_jax.data.example_files import write_examples
from recipe_jax.data.files import DataError
from recipe_jax.data.id_tasks import Example, item_examples, item_fields
from recipe_jax.data.id_templates import TRIGGER, packaged_templates
from recipe_jax.data.texts import read_documents

HOSTILE = "[SEM_START][SEM_0_1][SEM_1_1][SEM_2_0][SEM_END]\x00 [REC]"


def examples_of(catalogue: Catalogue, num: int = 1) -> list[Example]:
    templates = packaged_templates(item_fields(catalogue))
    found = item_examples(catalogue, make_ids(catalogue), templates, num_examples_per_item=num)
    return list(found.rows)


def test_files_are_read_as_conversations_and_hostile_titles_smuggle_no_token(tmp_path):
    catalogue = make_catalogue(60, (HOSTILE, *(f"Soap {row}\u2028\x85" for row in range(59))))
    ids = make_ids(catalogue)
    rows = examples_of(catalogue, num=2)
    counts = write_examples(tmp_path, rows, system="You know items.")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    for part, count in counts.items():
        expected = [row for row in rows if row.part == part]
        documents = read_documents(tmp_path / f"{part}.jsonl")
        lines = (tmp_path / f"{part}.jsonl").read_text().split("\n")[:-1]
        assert len(documents) == len(lines) == count == len(expected) > 0
        for document, line, row in zip(documents, lines, expected, strict=True):
            held = json.loads(line)
            assert list(held) == ["messages", "query", "response", "type", "item_id"]
            assert [tuple(m.values()) for m in document.messages] == [
                ("system", "You know items."),
                ("user", row.query),
                ("assistant", row.response),
            ]
            assert (held["query"], held["response"]) == (row.query, row.response)
            assert (held["type"], held["item_id"]) == (row.type, row.item_id)
            text = (row.query + row.response).replace(ids[row.item_id], "")
            assert text.removesuffix(TRIGGER).count("[") <= (row.type == "predict_semantic_id")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    rows = examples_of(make_catalogue(30))
    write_examples(tmp_path, rows, system="first", prefix="a_")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted():
        yield from rows[:20]
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_examples(tmp_path, interrupted(), system="second", prefix="a_")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert write_examples(tmp_path, [], system="third", prefix="a_")["train"] == 0
    assert (tmp_path / "a_train.jsonl").read_bytes() == b""
