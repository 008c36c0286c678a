"""Templates: what each file may hold, and texts of items in which no token can stand."""

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_jax.data.files import DataError
from recipe_jax.data.id_templates import (
    TASKS,
    TRIGGER,
    Template,
    packaged_templates,
    plain_text,
    read_templates,
)
from recipe_jax.semantic_ids import id_tokens

FIELDS = ("title", "brand")
ASK = {"type": "predict_semantic_id", "query": "Find {title} [REC]", "response": "{id}"}
TELL = {"type": "predict_attribute", "query": "Name {id}", "response": "{title} of {brand}"}
NEXT = {"type": "predict_next_item", "query": "After {history}? [REC]", "response": "{id}"}


def write(path, *rows, system="You know items."):
    path.write_text(json.dumps({"system": system, "templates": list(rows)}))
    return path


def test_a_file_of_ones_own_is_read(tmp_path):
    found = read_templates(write(tmp_path / "mine.json", ASK, TELL, NEXT), FIELDS)
    assert found.system == "You know items."
    assert [found.of(task) for task in TASKS] == [
        (Template(**ASK),),
        (Template(**TELL),),
        (Template(**NEXT),),
    ]
    assert found.templates[1].fields == {"title", "brand"}


def test_braces_in_a_value_are_no_placeholders():
    values = {"title": "{brand} {id}", "brand": "{title}", "id": "ID"}
    assert Template(**TELL).fill(values) == ("Name ID", "{brand} {id} of {title}")


@pytest.mark.parametrize("fields", [("title", "brand", "category"), ("title", "tags"), ("text",)])
def test_the_package_has_templates_for_what_items_have(fields):
    found = packaged_templates(("text", *fields))
    for task in TASKS:
        assert len(found.of(task)) >= 2
    assert set().union(*(t.fields for t in found.templates)) == {"text", *fields}


def test_packaged_templates_keep_the_rules(tmp_path):
    whole = packaged_templates(("title", "brand", "category", "tags", "text"))
    rows = [template._asdict() for template in whole.templates]
    path = write(tmp_path / "same.json", *rows, system=whole.system)
    again = read_templates(path, ("title", "brand", "category", "tags", "text"))
    assert again.templates == whole.templates


WRONG = {
    "row 2: query='Find {title}' must end in [REC]": ASK | {"query": "Find {title}"},
    "row 2: query='Find {title} [REC] ' must end in [REC]": ASK | {"query": "Find {title} [REC] "},
    "row 2: query='After {history}?' must end in [REC]": NEXT | {"query": "After {history}?"},
    "row 2: query='Find {titel} ': {titel} is unknown here; allowed: brand, title": (
        ASK | {"query": "Find {titel} [REC]"}
    ),
    "row 2: query='{id} is {title} ': {id} is unknown here": ASK
    | {"query": "{id} is {title} [REC]"},
    "row 2: query='Find it [REC]' must name fields of the item": ASK | {"query": "Find it [REC]"},
    "row 2: query=' ' must be a text that is not empty": ASK | {"query": " [REC]"},
    "row 2: query='' must be a text that is not empty": TELL | {"query": ""},
    "row 2: query=7 must end in [REC]": ASK | {"query": 7},
    "row 2: response='It is {id}' must be {id} and nothing": ASK | {"response": "It is {id}"},
    "row 2: response=' ' must be a text that is not empty": TELL | {"response": " "},
    "row 2: response='so it is' must name fields of the item": TELL | {"response": "so it is"},
    "row 2: response='{id}': {id} is unknown here": TELL | {"response": "{id}"},
    "row 2: query='Name it' must hold {id}": TELL | {"query": "Name it"},
    "row 2: query='After that? [REC]' must hold {history}": NEXT | {"query": "After that? [REC]"},
    "row 2: query='Name {id} [REC]' must hold no [ ] or <": TELL | {"query": "Name {id} [REC]"},
    "row 2: query='[REC] {title} ' must hold no [ ] or <": ASK | {"query": "[REC] {title} [REC]"},
    "row 2: query='[{title}] ' must hold no [ ] or <": ASK | {"query": "[{title}] [REC]"},
    "row 2: query='<{title}> ' must hold no [ ] or <": ASK | {"query": "<{title}> [REC]"},
    "row 2: query='{title ' has a brace that is no placeholder": ASK | {"query": "{title [REC]"},
    "row 2: query='a\\x00{title} ' must hold no control": ASK | {"query": "a\0{title} [REC]"},
    "row 2: query: character 0 is '\\ud800', which is no": ASK | {"query": "\ud800{title} [REC]"},
    "row 2: type='predict_price' must be one of predict_": ASK | {"type": "predict_price"},
    "row 2: type=['a'] must be one of": ASK | {"type": ["a"]},
    "row 2: 'Find {title}' must be an object of type, query, response": "Find {title}",
    "row 2: {'type': 'predict_semantic_id'": {"type": "predict_semantic_id", "query": "x"},
    "row 2: query='Find  {title} [REC]' is that of row 1": ASK | {"query": "Find  {title} [REC]"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_template_that_breaks_a_rule_is_refused_by_row(tmp_path, message):
    path = write(tmp_path / "mine.json", ASK, WRONG[message])
    with pytest.raises(DataError) as caught:
        read_templates(path, FIELDS)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


FILES = {
    "not readable as JSON": b"{",
    "byte 1 is no UTF-8": b'"\xe9"',
    "must be a JSON object of 'system' and 'templates'": b"[]",
    "system=' ' must be a text that is not empty": b'{"system": " ", "templates": [1]}',
    "system='{title}': {title} is unknown": b'{"system": "{title}", "templates": [1]}',
    "system='[SEM_0_1]' must hold no [ ]": b'{"system": "[SEM_0_1]", "templates": [1]}',
    "templates=[] must be a list that is not empty": b'{"system": "a", "templates": []}',
}


@pytest.mark.parametrize("message", FILES)
def test_a_file_of_another_kind_is_refused(tmp_path, message):
    path = tmp_path / "mine.json"
    path.write_bytes(FILES[message])
    with pytest.raises(DataError) as caught:
        read_templates(path, FIELDS)
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        read_templates(tmp_path / "none.json", FIELDS)


def test_a_task_without_templates_is_refused(tmp_path):
    found = read_templates(write(tmp_path / "mine.json", ASK), FIELDS)
    with pytest.raises(DataError, match=r"mine\.json: holds no template of type 'predict_attri"):
        found.of("predict_attribute")


TOKENS = (*id_tokens((3, 2)), TRIGGER, "<|im_end|>", "</s>", "[INST]", "<start_of_turn>")


def test_no_token_is_left_in_a_text():
    for token in TOKENS:
        assert plain_text(f"a {token} b") not in (f"a {token} b", token)
        assert token not in plain_text(f"a{token}{token}b")
    assert plain_text("Soap [3 pack] \x00\x1b a\u2028b <5") == "Soap (3 pack) a b \u20395"
    assert plain_text("Beauty > Hair Care") == "Beauty > Hair Care"


@given(st.text(), st.text(), st.sampled_from(TOKENS))
def test_no_text_can_hold_half_a_token_whatever_form_a_tokenizer_gives_it(before, after, token):
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
    for form in (token, wide):
        found = plain_text(before + form + after)
        for normal in ("NFC", "NFKC"):
            assert not re.search(r"[\[\]<]", unicodedata.normalize(normal, found))
        assert not any(unicodedata.category(c) == "Cc" for c in found)


def test_every_character_that_normalizes_to_a_bracket_is_covered():
    for point in range(0x110000):
        if unicodedata.normalize("NFKC", chr(point)) in ("[", "]", "<"):
            assert plain_text(chr(point)) in "()\u2039"
