"""IDs are unique, stay as they are, and are read from text that is right to the letter."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.semantic_ids import (
    SemanticIdError,
    SemanticIds,
    collision_digits,
    format_id,
    id_tokens,
    ids_as_bytes,
    level_offsets,
    make_semantic_ids,
    pack_codes,
    parse_id,
    read_ids,
)

SIZES = (3, 5, 4)


def names(count: int, first: int = 0) -> list[str]:
    return [f"item {i}" for i in range(first, first + count)]


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZES[:2], (count, 2))


def test_the_digit_counts_earlier_items_with_the_same_codes():
    codes = np.array([[1, 2], [0, 4], [1, 2], [1, 2], [0, 4]])
    ids = make_semantic_ids(names(5), codes, num_codes=(3, 5), num_digits=4)
    np.testing.assert_array_equal(ids.codes[:, 2], [0, 0, 1, 2, 1])
    np.testing.assert_array_equal(ids.codes[:, :2], codes)
    assert ids.sizes == (3, 5, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=30))
def test_digits_make_all_ids_different_and_as_small_as_can_be(rows):
    codes = np.array(rows, int).reshape(-1, 2)
    seen: dict[tuple[int, ...], int] = {}
    expected = []
    for row in rows:
        expected.append(seen.get(row, 0))
        seen[row] = expected[-1] + 1
    np.testing.assert_array_equal(collision_digits(codes, (3, 5)), expected)


def test_items_that_come_later_change_no_id():
    codes = drawn(40)
    whole = make_semantic_ids(names(40), codes, num_codes=SIZES[:2], num_digits=20)
    grown = make_semantic_ids(names(25), codes[:25], num_codes=SIZES[:2], num_digits=20)
    before = grown.codes.copy()
    grown = grown.append(names(10, 25), codes[25:35]).append(names(5, 35), codes[35:])
    np.testing.assert_array_equal(grown.codes[:25], before)
    np.testing.assert_array_equal(grown.codes, whole.codes)
    assert grown.fingerprint == whole.fingerprint


def test_no_item_wins_silently_over_another_with_the_same_id():
    codes = np.array([[1, 2, 0], [0, 0, 0], [1, 2, 0]], np.int32)
    with pytest.raises(SemanticIdError, match=r"'a' and 'c' have one ID, .*SEM_0_1.*digits"):
        SemanticIds(items=("a", "b", "c"), codes=codes, sizes=SIZES)
    with pytest.raises(SemanticIdError, match=r"'c' is number 3 with the codes .1, 1..*=2"):
        make_semantic_ids(["a", "b", "c"], np.ones((3, 2), int), num_codes=(3, 5), num_digits=2)


WRONG = {
    "'b' has code 5 at level 1, must be from 0 to 4": ([[0, 0], [0, 5]], ["a", "b"]),
    "'a' has code -1 at level 0": ([[-1, 0], [0, 5]], ["a", "b"]),
    "'a' is there twice": ([[0, 0], [0, 1]], ["a", "a"]),
    r"shape \(2, 2\), must have 1 rows": ([[0, 0], [0, 1]], ["a"]),
    "dtype float64, must be whole numbers": ([[0.0, 0.0]], ["a"]),
}


@pytest.mark.parametrize("message", WRONG)
def test_codes_that_break_a_rule_are_refused(message, untyped):
    codes, items = WRONG[message]
    with pytest.raises(SemanticIdError, match=message):
        make_semantic_ids(items, np.array(codes), num_codes=(3, 5), num_digits=2)


def test_packed_codes_have_the_order_of_the_rows():
    sizes = (2048,) * 8
    codes = np.random.default_rng(0).integers(2046, 2048, (200, 8))
    packed = pack_codes(codes, sizes)
    assert packed.shape == (200, 2)
    by_words = sorted(range(200), key=lambda i: tuple(packed[i].tolist()))
    by_codes = sorted(range(200), key=lambda i: tuple(codes[i].tolist()))
    assert by_words == by_codes


def test_levels_are_numbered_one_after_the_other():
    tokens = id_tokens(SIZES)
    assert len(set(tokens)) == sum(SIZES) + 2
    for level, offset in enumerate(level_offsets(SIZES)):
        for code in range(SIZES[level]):
            assert tokens[offset + code] == f"[SEM_{level}_{code}]"


@given(st.tuples(*(st.integers(0, size - 1) for size in SIZES)))
def test_what_is_written_is_read(codes):
    assert parse_id(format_id(codes), SIZES) == codes


NO_ID = {
    "": "must begin with",
    "[SEM_START]": "must begin with",
    "[SEM_START][SEM_0_1][SEM_1_2][SEM_2_3]": "must begin with",
    "x[SEM_START][SEM_0_1][SEM_1_2][SEM_2_3][SEM_END]": "must begin with",
    "[SEM_START][SEM_0_1][SEM_1_2][SEM_2_3][SEM_END] ": "must begin with",
    "[SEM_START][SEM_END]": "level 0 is missing",
    "[SEM_START][SEM_0_1][SEM_1_2][SEM_END]": "level 2 is missing",
    "[SEM_START][SEM_0_1][SEM_0_1][SEM_2_3][SEM_END]": "level 0 stands where level 1 must",
    "[SEM_START][SEM_1_1][SEM_0_1][SEM_2_3][SEM_END]": "level 1 stands where level 0 must",
    "[SEM_START][SEM_0_1][SEM_1_2][SEM_2_3][SEM_3_0][SEM_END]": "has more than 3 levels",
    "[SEM_START][SEM_0_3][SEM_1_2][SEM_2_3][SEM_END]": r"\[SEM_0_3\] is above the last code",
    "[SEM_START][SEM_0_01][SEM_1_2][SEM_2_3][SEM_END]": "no code such as",
    "[SEM_START][SEM_0_1] [SEM_1_2][SEM_2_3][SEM_END]": "no code such as",
    "[SEM_START][SEM_0_-1][SEM_1_2][SEM_2_3][SEM_END]": "no code such as",
    "[SEM_START][SEM_0_\u0661][SEM_1_2][SEM_2_3][SEM_END]": "no code such as",
    "[SEM_START][SEM_0_1][SEM_1_2][SEM_2_3][SEM_END][SEM_END]": "no code such as",
}


@pytest.mark.parametrize("text", NO_ID)
def test_nothing_else_is_an_id(text):
    with pytest.raises(SemanticIdError, match=f"is no ID: .*{NO_ID[text]}"):
        parse_id(text, SIZES)


@given(st.text(st.sampled_from("[]SEM_0123TARND"), max_size=60) | st.permutations(id_tokens(SIZES)))
def test_any_text_is_refused_or_written_back_to_the_letter(text):
    text = "".join(text)
    try:
        found = parse_id(text, SIZES)
    except SemanticIdError:
        return
    assert format_id(found) == text


def test_a_file_of_ids_is_read_as_it_was_written(tmp_path):
    ids = make_semantic_ids(
        ["é", "b c", "\u4e2d"], drawn(3), num_codes=SIZES[:2], num_digits=SIZES[2]
    )
    (tmp_path / "ids.npz").write_bytes(ids_as_bytes(ids))
    found = read_ids(tmp_path / "ids.npz")
    assert (found.items, found.sizes) == (ids.items, ids.sizes)
    assert found.fingerprint == ids.fingerprint


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(SemanticIdError, match=re.escape(f"{tmp_path / 'none.npz'}: must be")):
        read_ids(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SemanticIdError, match=r"bad.npz: must be an .npz file of items"):
        read_ids(tmp_path / "bad.npz")
    (tmp_path / "one.npz").write_bytes(
        ids_as_bytes(make_semantic_ids(["a"], drawn(1), num_codes=(3, 5), num_digits=1))[:-30]
    )
    with pytest.raises(SemanticIdError, match=r"one.npz: must be"):
        read_ids(tmp_path / "one.npz")


@pytest.mark.parametrize("other", ["items", "codes", "sizes"])
def test_the_fingerprint_tells_other_ids(other):
    codes = drawn(5)
    ids = make_semantic_ids(names(5), codes, num_codes=SIZES[:2], num_digits=5)
    changed = {
        "items": dict(items=names(5, 1), num_digits=5),
        "codes": dict(codes=(codes + 1) % np.array(SIZES[:2]), num_digits=5),
        "sizes": dict(num_digits=6),
    }[other]
    given = {"items": names(5), "codes": codes, "num_codes": SIZES[:2]} | changed
    assert make_semantic_ids(**given).fingerprint != ids.fingerprint
