"""Pairs of texts: their table, their batches, the task made up by rule, and the four commands."""

import collections
import itertools
import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import TINY, contents
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from experiments.sequence_to_sequence import baselines
from experiments.sequence_to_sequence.__main__ import main
from experiments.sequence_to_sequence.byte_tokens import (
    BEGIN,
    END,
    SIZES,
    VOCAB_SIZE,
    all_batches,
    decode,
    encode_source,
    encode_target,
    make_batch,
    pair_batches,
)
from experiments.sequence_to_sequence.quantities import (
    FRACTIONS,
    NUM_PAIRS,
    ONES,
    TENS,
    UNITS,
    number_words,
    quantity_table,
)
from experiments.sequence_to_sequence.scores import wilson_interval
from experiments.sequence_to_sequence.text_pairs import (
    MAX_BYTES,
    Pair,
    PairTable,
    read_pairs,
    write_pairs,
)
from experiments.sequence_to_sequence.train import Flags, model_config
from experiments.sequence_to_sequence.translator import teacher_forced
from recipe_jax.functional import purify
from recipe_jax.huggingface import make_module

LETTERS = "abcd"
NEWS = ("data: ", "step ")


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith(NEWS)]
    assert len(lines) == 1, lines
    return lines[0]


def reversals() -> tuple[Pair, ...]:
    """Every text of one to three letters, and the same from its end."""
    texts = ("".join(text) for n in (1, 2, 3) for text in itertools.product(LETTERS, repeat=n))
    return tuple(Pair(text, text[::-1]) for text in texts)


# The table.


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    pairs = (Pair("1 cup  jalapeño ", "chili"), Pair("½ cup", "“half”\u2028a cup"))
    write_pairs(tmp_path / "new" / "pairs.tsv", pairs)
    assert read_pairs(tmp_path / "new" / "pairs.tsv").pairs == pairs


def test_line_ends_a_byte_order_mark_and_repeated_pairs_mean_nothing(tmp_path: Path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"\xef\xbb\xbfa\tb\r\nc\td\r\na\tb")
    assert read_pairs(path).pairs == (Pair("a", "b"), Pair("c", "d"))


def test_every_change_of_a_pair_changes_the_fingerprint():
    tables = [
        PairTable(name="", pairs=pairs)
        for pairs in [(Pair("a", "b"),), (Pair("a", "c"),), (Pair("b", "b"),), (Pair("ab", "b"),)]
    ]
    assert len({table.fingerprint for table in tables}) == len(tables)


def test_a_source_is_in_one_part_whatever_stands_around_it():
    pairs = quantity_table(3000).pairs
    table, turned = (PairTable(name="", pairs=rows) for rows in (pairs, pairs[:1500:-1]))
    parts = {split: table.part(split) for split in ("train", "validation", "test")}
    assert sorted(itertools.chain(*parts.values())) == sorted(pairs)
    for held_out in ("validation", "test"):
        assert 0.08 < len(parts[held_out]) / len(pairs) < 0.12
    for split, found in parts.items():
        kept = set(turned.pairs)
        assert turned.part(split) == tuple(pair for pair in found if pair in kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nonly\n", "row 2: value 'only' has 1 column(s), must have exactly 2"),
        (b"a\tb\n\nc\td\n", "row 2: value '' has 1 column(s), must have exactly 2"),
        (b"a\tb\tc\n", "row 1: value 'a\\tb\\tc' has 3 column(s), must have exactly 2"),
        (b"a\tb\n \tc\n", "row 2, column source: value ' ' must not be empty"),
        (b"a\t\n", "row 1, column target: value '' must not be empty"),
        (
            b"a\tb\n" + b"x" * 257 + b"\ty\n",
            f"row 2, column source: value '{'x' * 60}…' has 257 bytes, must have at most 256",
        ),
        (b"a\t" + "é".encode() * 129, "column target: value '" + "é" * 60),
        (
            b"a\tb\nc\td\na\tz\n",
            "row 3, column target: value 'z' is not the 'b' of row 1, which has the same source",
        ),
        (b"\xff\xfe\tb\n", "row 1, column source: value b'\\xff\\xfe' must be UTF-8 text"),
        (b"a\tb\nc\t\xe9t\xe9\n", "row 2, column target: value b'\\xe9t\\xe9' must be UTF-8 text"),
        (b"", "none of 0 pairs falls into train, which must have 1 or more"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_written(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    line = refused(capsys, "train", "--pairs", path, "--run", tmp_path / "run")
    assert line.startswith(f"train: {path}: ") and message in line
    assert not (tmp_path / "run").exists()


def test_a_missing_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "nothing.tsv"
    assert refused(capsys, "train", "--pairs", path) == f"train: {path}: no such file"
    assert "cannot be read" in refused(capsys, "train", "--pairs", tmp_path)


# Bytes and batches.


@given(st.text(max_size=60))
def test_a_text_survives_its_tokens(text: str):
    source, target = encode_source(text), encode_target(text)
    assert decode(source) == text and decode(target[1:]) == text
    assert target == [BEGIN, *source] and source[-1] == END
    assert max(target) < VOCAB_SIZE


def test_what_follows_the_end_and_half_characters_do_no_harm():
    assert decode([*b"ab", END, *b"cd", -1]) == "ab"
    assert decode(encode_source("é")[:1]) == "\ufffd"


def test_a_batch_holds_the_pairs_and_the_smallest_padding():
    batch = make_batch([Pair("ab", "x" * 15), Pair("a" * 15, "y")])
    assert batch.source.shape == (2, 16) and batch.target.shape == (2, 32)
    assert batch.source_lengths.tolist() == [3, 16] and batch.target_lengths.tolist() == [17, 3]
    assert batch.source[0, :3].tolist() == [97, 98, END]
    assert batch.target[1, :3].tolist() == [BEGIN, ord("y"), END]
    longest = "z" * MAX_BYTES
    assert make_batch([Pair(longest, longest)]).target.shape == (1, SIZES[-1])


def test_a_batch_is_a_function_of_seed_and_number():
    pairs = quantity_table(200).pairs
    make = iter(pair_batches(pairs, batch_size=16, seed=3))
    first = [next(make) for _ in range(3)]
    position = make.get_state()
    later = [next(make) for _ in range(20)]
    resumed = iter(pair_batches(pairs, batch_size=16, seed=3))
    resumed.set_state(position)
    for one, other in zip(later, resumed, strict=False):
        for array, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, same)
    another = next(iter(pair_batches(pairs, batch_size=16, seed=4)))
    assert another.source.tolist() != first[0].source.tolist()


def test_an_epoch_shows_no_pair_twice_and_pads_sources_alike():
    pairs = quantity_table(400).pairs
    batches = iter(pair_batches(pairs, batch_size=8, seed=0))
    known = {pair.source: pair.target for pair in pairs}
    seen = collections.Counter()
    for batch in itertools.islice(batches, 45):  # fewer than an epoch has, leftovers aside
        sizes = {next(s for s in SIZES if s >= length) for length in batch.source_lengths}
        assert len(sizes) == 1
        for source, target in zip(batch.source, batch.target, strict=True):
            assert known[decode(source)] == decode(target[1:])
            seen[decode(source)] += 1
    assert max(seen.values()) == 1


def test_every_pair_is_scored_once_whatever_the_batch():
    pairs = quantity_table(13).pairs
    rows = np.concatenate([rows for rows, _ in all_batches(pairs, 5)])
    assert sorted(rows.tolist()) == list(range(13))
    flags = Flags(embed_dim=16, num_layers=1, num_heads=2)
    fn, params = purify(make_module("encoder_decoder_transformer", model_config(flags)))
    small, large = (teacher_forced(fn, params, pairs, batch_size=size) for size in (5, 13))
    assert small == pytest.approx(large, rel=1e-5)


# The task made up by rule.


def test_numbers_in_words():
    said = {0: "zero", 14: "fourteen", 40: "forty", 99: "ninety-nine", 705: "seven hundred five"}
    assert {number: number_words(number) for number in said} == said
    assert len({number_words(number) for number in range(1000)}) == 1000
    with pytest.raises(ValueError, match="number=1000 must be from 0 to 999"):
        number_words(1000)


def value_of(words: str) -> Fraction:
    """The number that words say, understood word by word."""
    if words in FRACTIONS.values():
        return Fraction(next(key for key, said in FRACTIONS.items() if said == words))
    if " and " in words:
        whole, part = words.split(" and ")
        return value_of(whole) + value_of(part)
    if " point " in words:
        whole, digit = words.split(" point ")
        return value_of(whole) + Fraction(ONES.index(digit), 10)
    total = 0
    for word in re.split("[ -]", words):
        if word == "hundred":
            total *= 100
        else:
            total += ONES.index(word) if word in ONES else 10 * (TENS.index(word) + 2)
    return Fraction(total)


def test_quantities_say_what_is_written():
    table = quantity_table()
    assert len({pair.source for pair in table.pairs}) == NUM_PAIRS
    assert table == quantity_table()
    for source, target in table.pairs:
        number, unit = re.fullmatch(r"([\d/. -]+?)(?: ([a-z]+))?", source).groups()
        said = target
        if unit:
            said, word = target.rsplit(" ", 1)
            said = re.sub(" of an?$", "", said)
            one = number == "1" or number in FRACTIONS
            assert word == UNITS[unit] + ("" if one else "s"), source
        ends, said_ends = number.split("-"), said.split(" to ")
        assert len(ends) == len(said_ends), source
        for end, words in zip(ends, said_ends, strict=True):
            assert value_of(words) == sum(Fraction(part) for part in end.split()), source
    examples = dict(quantity_table(40_000).pairs)
    assert examples["2 1/4 tsp"] == "two and a quarter teaspoons"
    assert examples["1/8 oz"] == "an eighth of an ounce" and examples["1 c"] == "one cup"


# Scores and baselines.


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 10), (950, 2000)])
def test_the_interval_is_scipys(right: int, n: int):
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(right, n) == pytest.approx((right / n, low, high))


TRAINING = (
    Pair("2 onions", "onion"),
    Pair("3 onions", "onion"),
    Pair("1 cup sour cream", "sour cream"),
    Pair("1 cup cream", "cream"),
    Pair("half-and-half", "half-and-half"),
    Pair("2 of either", "cream"),
    Pair("3 of either", "onion"),
    Pair("4 of either", "onion"),
)


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("remembered", "2 onions", "onion"),
        ("remembered", "9 onions", ""),
        ("remembered_words", "9 Onions!", "onion"),
        ("remembered_words", "5 of either", "onion"),
        ("remembered_words", "leek", ""),
        ("most_frequent", "leek", "onion"),
        ("longest_inside", "2 cups SOUR cream", "sour cream"),
        ("longest_inside", "1 scallonion", ""),
        ("longest_inside", "1 c. half and half", "half-and-half"),
        ("nearest_target", "4 cups sour creme", "sour cream"),
        ("nearest_source", "4 cups sour creme", "sour cream"),
    ],
)
def test_a_baseline_finds(name: str, source: str, target: str):
    assert baselines.BASELINES[name](TRAINING, [source]) == [target]


# The pairs command.


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rows = [("toast", 0, "bread"), ("toast", 1, "butter"), ("toast", 1, "salt"), ("soup", 0, None)]
    rows += [("soup", 1, "bread"), ("soup", 2, "bread")]
    (tmp_path / "prepared").mkdir()
    table = pl.DataFrame(rows, ["recipe_id", "line", "food"], orient="row")
    table.write_parquet(tmp_path / "prepared" / "ingredients.parquet")
    return tmp_path / "prepared"


def raw_recipes(path: Path, soup: list[str]) -> Path:
    recipes = [
        {"id": "toast", "ingredients": ["2 slices  bread", "butter and salt"]},
        {"id": "soup", "ingredients": soup},
        {"id": "not prepared", "ingredients": ["2 slices bread"]},
    ]
    path.write_text("".join(f"{json.dumps(recipe)}\n" for recipe in recipes))
    return path


def test_pairs_are_distinct_lines_that_name_one_food(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    soup = ["For the soup:", "2 slices\tbread", "bread " * 60, "a heading"]
    recipes, out = raw_recipes(tmp_path / "raw.jsonl", soup), tmp_path / "out" / "lines.tsv"
    printed = headline(capsys, "pairs", "--data", prepared, "--recipes", recipes, "--out", out)
    assert out.read_text() == "2 slices bread\tbread\n"
    left_out = {"several answers": 1, "no food": 2, "too long": 1}
    assert printed == {"n": 1, "num_targets": 1, "left_out": left_out}


def test_recipes_that_were_not_the_prepared_ones_are_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipes, out = raw_recipes(tmp_path / "raw.jsonl", ["salt"]), tmp_path / "lines.tsv"
    arguments = ["pairs", "--data", prepared, "--out", out, "--recipes"]
    line = refused(capsys, *arguments, recipes)
    assert f"{recipes}: row 2, column ingredients: recipe soup has 1 lines" in line
    assert "no such file" in refused(capsys, *arguments, tmp_path / "nothing.jsonl")
    table = pl.read_parquet(prepared / "ingredients.parquet")
    table.drop("food").write_parquet(prepared / "ingredients.parquet")
    assert "column 'food' is missing" in refused(capsys, *arguments, recipes)
    shutil.rmtree(prepared)
    assert "no such file" in refused(capsys, *arguments, recipes)
    assert not out.exists()


# Training.


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "reversals.tsv"
    write_pairs(path, reversals())
    return path


@pytest.fixture(scope="module")
def learned(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to turn texts round."""
    run = tmp_path_factory.mktemp("runs") / "reversals"
    shape = ["--embed-dim", "32", "--num-layers", "1", "--num-heads", "2", "--no-progress"]
    few = ["--steps", "150", "--evaluate-every", "75", "--learning-rate", "0.01"]
    assert main(["train", "--pairs", str(table), "--run", str(run), *shape, *few]) == 0
    return run


def test_turning_short_texts_round_is_learned(
    learned: Path, table: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["evaluate", "--pairs", table, "--run", learned]
    found = headline(capsys, *arguments, "--split", "train")
    assert found["exact_match"] == 1.0 and found["token_accuracy"] == 1.0
    assert found["n"] == found["num_training_pairs"] > 50
    assert found["baselines"]["remembered"]["exact_match"] == 1.0
    record = learned.parent / "record.json"
    held_out = headline(capsys, *arguments, "--beams", "2", "--record", record)
    assert held_out["exact_match"] > 0.5 and 0 < held_out["n"] < 20
    assert held_out["baselines"]["remembered"]["exact_match"] == 0.0
    assert json.loads(record.read_text())["command"].endswith(
        "evaluate --pairs DIR/reversals.tsv --run RUN --beams 2"
    )


def test_targets_are_written_for_sources(learned: Path, capsys: pytest.CaptureFixture[str]):
    texts = ["abc", "d", "ca"]
    greedy = headline(capsys, "predict", "--run", learned, "--text", *texts)
    assert greedy["texts"] == ["cba", "d", "ac"] and greedy["n"] == 3
    assert all(-1.0 < value <= 0.0 for value in greedy["log_probabilities"])
    beams = headline(capsys, "predict", "--run", learned / "model", "--beams", "3", "--text", "abc")
    assert beams["texts"] == ["cba"]
    assert beams["log_probabilities"][0] == pytest.approx(greedy["log_probabilities"][0], abs=1e-4)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    few = ["--steps", "4", "--evaluate-every", "2", "--dropout", "0.1", "--batch-size", "8"]
    flags = ["train", "--pairs", table, *TINY, *few, "--run"]
    headline(capsys, *flags, whole)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    shutil.rmtree(stopped / "checkpoints" / "4")
    headline(capsys, *flags, stopped)
    assert (
        contents(whole / "model")["model.safetensors"]
        == (contents(stopped / "model")["model.safetensors"])
    )


def test_without_pairs_a_task_is_made_up_and_any_mesh_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    few = ["--steps", "2", "--batch-size", "8", "--validation-pairs", "4"]
    mesh = ["--mesh", "data=2,fsdp=2,tensor=2", "--positions", "learned"]
    arguments = ["train", "--run", str(run), *TINY, *few, *mesh]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "data: no --pairs given; the task is made up by rule" in printed.err
    trained = json.loads(printed.out.splitlines()[-1])
    assert trained["step"] == 2 and trained["n"] == 4
    found = headline(capsys, "evaluate", "--run", run, "--split", "test", "--limit", "4")
    assert found["n"] == 4 and set(found["baselines"]) == set(baselines.BASELINES)
    assert headline(capsys, "predict", "--run", run, "--text", "2 1/4 tsp")["n"] == 1


def test_a_model_is_not_scored_on_other_pairs(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "others.tsv"
    write_pairs(path, reversals()[:-1])
    line = refused(capsys, "evaluate", "--pairs", path, "--run", learned)
    assert f"{learned}: the model was trained on other pairs (reversals.tsv) than {path}" in line


def test_a_folder_without_a_fitting_model_is_refused(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    predict = ["predict", "--text", "a", "--run"]
    assert "config.json: no such file" in refused(capsys, *predict, tmp_path)
    shutil.copytree(learned / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"max_new_tokens": "many"}))
    assert f"{path}: max_new_tokens='many' must be of type int" in refused(
        capsys, *predict, tmp_path
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--text", " "], "--text: value ' ' must not be empty"),
        (["predict", "--text", "x" * 300], "has 300 bytes, must have at most 256"),
        (["predict", "--text", "\udcff"], "must be UTF-8 text, is not"),
        (["predict", "--text", "a", "--beams", "0"], "--beams 0 must be at least 1"),
        (["evaluate", "--limit", "0"], "--limit 0 must be at least 1"),
        (["train", "--steps", "0"], "--steps 0 must be at least 1"),
        (["train", "--batch-size", "-1"], "--batch-size -1 must be at least 1"),
        (["train", "--minutes", "0"], "--minutes 0.0 must be above 0"),
        (["train", "--embed-dim", "30", "--num-heads", "4"], "num_heads=4"),
    ],
)
def test_a_flag_that_breaks_a_rule_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in refused(capsys, *arguments)
