"""Prepared recipes: the fixed split, lines merged into sets, and one clear line for bad tables."""

import hashlib
import itertools

import numpy as np
import polars as pl
import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import RecipeSets, read_recipe_sets, split_of

FOODS = ["salt", "flour", "sugar", "butter"]
SALT, FLOUR, SUGAR, BUTTER = range(4)


def write(folder, lines, recipes=None):
    """Lines are `(recipe_id, line, food, grams)`; recipes `(recipe_id, num_lines)`."""
    if recipes is None:
        names = list(dict.fromkeys(row[0] for row in lines))
        recipes = [(name, len({row[1] for row in lines if row[0] == name})) for name in names]
    schema = {"recipe_id": pl.String, "num_lines": pl.Int32}
    pl.DataFrame(recipes, schema, orient="row").write_parquet(folder / "recipes.parquet")
    schema = {"recipe_id": pl.String, "line": pl.Int32, "food": pl.String, "grams": pl.Float32}
    pl.DataFrame(lines, schema, orient="row").write_parquet(folder / "ingredients.parquet")
    return folder


def sets_of(recipes, *, num_lines=None, num_mapped=None) -> RecipeSets:
    """Recipes given as `{food: grams}`."""
    sizes = np.array([len(recipe) for recipe in recipes], np.int32)
    return RecipeSets(
        recipe_ids=[f"r{i}" for i in range(len(recipes))],
        offsets=np.cumsum([0, *sizes], dtype=np.int64),
        foods=np.array([food for recipe in recipes for food in recipe], np.int32),
        grams=np.array([g for recipe in recipes for g in recipe.values()], np.float32),
        num_lines=sizes if num_lines is None else np.array(num_lines, np.int32),
        num_mapped=sizes if num_mapped is None else np.array(num_mapped, np.int32),
    )


@pytest.mark.parametrize(
    ("recipe_id", "split"), [("ar0", "test"), ("ar3", "validation"), ("ar9", "train")]
)
def test_the_split_is_a_digit_of_the_ids_sha1(recipe_id, split):
    assert split_of(recipe_id) == split
    digit = int(hashlib.sha1(recipe_id.encode()).hexdigest(), 16) % 10
    assert {3: "test", 4: "validation"}.get(digit, "train") == split


def test_lines_of_one_food_are_one_member_and_their_grams_are_added(tmp_path):
    lines = [
        ("a", 0, "flour", 200.0),
        ("a", 1, "salt", 3.0),
        ("a", 2, "flour", 50.0),
        ("a", 3, None, None),
        ("b", 0, "butter", 10.0),
    ]
    sets = read_recipe_sets(write(tmp_path, lines), FOODS)
    assert sets.recipe_ids == ["a", "b"]
    assert sets.foods_of(0).tolist() == [FLOUR, SALT]  # in the order of their first lines
    assert sets.grams_of(0).tolist() == [250.0, 3.0]
    assert sets.foods_of(1).tolist() == [BUTTER]
    assert sets.sizes.tolist() == [2, 1]
    assert sets.num_lines.tolist() == [4, 1]
    assert sets.num_mapped.tolist() == [3, 1]
    np.testing.assert_allclose(sets.proportions_of(0), [250 / 253, 3 / 253], rtol=1e-6)


def test_one_line_may_name_two_foods_and_counts_once(tmp_path):
    lines = [("a", 0, "salt", 1.0), ("a", 0, "sugar", 1.0), ("a", 1, "flour", 1.0)]
    sets = read_recipe_sets(write(tmp_path, lines, [("a", 2)]), FOODS)
    assert sets.sizes.tolist() == [3]
    assert sets.num_mapped.tolist() == [2]


def test_a_food_with_an_unweighed_line_has_no_grams(tmp_path):
    lines = [("a", 0, "flour", 200.0), ("a", 1, "flour", None), ("a", 2, "salt", 3.0)]
    sets = read_recipe_sets(write(tmp_path, lines), FOODS)
    assert np.isnan(sets.grams_of(0)[0])
    assert sets.grams_of(0)[1] == 3.0


def test_a_recipe_without_any_food_is_an_empty_set(tmp_path):
    sets = read_recipe_sets(write(tmp_path, [("a", 0, None, None), ("b", 0, "salt", 1.0)]), FOODS)
    assert sets.sizes.tolist() == [0, 1]
    assert sets.num_mapped.tolist() == [0, 1]


def test_selecting_keeps_each_recipe_whole():
    sets = sets_of([{SALT: 1.0}, {FLOUR: 2.0, SUGAR: 3.0}, {BUTTER: 4.0}])
    chosen = sets.select(np.array([False, True, True]))
    assert chosen.recipe_ids == ["r1", "r2"]
    assert [chosen.foods_of(i).tolist() for i in range(2)] == [[FLOUR, SUGAR], [BUTTER]]
    assert [chosen.grams_of(i).tolist() for i in range(2)] == [[2.0, 3.0], [4.0]]
    assert chosen.num_lines.tolist() == [2, 1]


def test_every_recipe_is_in_exactly_one_split():
    sets = sets_of([{SALT: 1.0}] * 60)
    parts = [sets.select_split(split).recipe_ids for split in ("train", "validation", "test")]
    assert sorted(itertools.chain(*parts)) == sorted(sets.recipe_ids)
    assert all(split_of(name) == "test" for name in parts[2])


def test_completion_wants_three_foods_and_lines_mostly_mapped():
    four = {SALT: 1.0, FLOUR: 1.0, SUGAR: 1.0, BUTTER: 1.0}
    two = {SALT: 1.0, FLOUR: 1.0}
    sets = sets_of(
        [four, two, four, four, four],
        num_lines=[5, 5, 26, 25, 6],
        num_mapped=[4, 5, 26, 25, 4],
    )
    assert sets.select_completion().recipe_ids == ["r0", "r3"]
    assert sets.select_completion(mapped=0.5, max_lines=26).recipe_ids == ["r0", "r2", "r3", "r4"]
    assert sets.select_completion(min_foods=2).recipe_ids == ["r0", "r1", "r3"]


def test_weighed_recipes_have_positive_grams_for_every_food():
    grams = [[1.0, 2.0, 3.0], [1.0, np.nan, 3.0], [1.0, 0.0, 3.0]]
    sets = sets_of([dict(enumerate(row)) for row in grams] + [{SALT: 1.0, FLOUR: 1.0}])
    assert sets.select_weighed().recipe_ids == ["r0"]
    assert sets.select_weighed(min_foods=2).recipe_ids == ["r0", "r3"]


def test_food_sets_are_compared_as_sets():
    sets = sets_of([{SALT: 1.0, FLOUR: 2.0}, {SALT: 1.0}, {SUGAR: 1.0, FLOUR: 1.0}])
    other = sets_of([{FLOUR: 9.0, SALT: 9.0}, {SUGAR: 1.0}])
    assert sets.without_food_sets_of(other).recipe_ids == ["r1", "r2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("b", 7, "pepper", 1.0), r"recipe b line 7: food='pepper' is not among the 4 foods"),
        (("b", 7, "salt", -2.0), r"recipe b line 7: grams=-2.0 must be null or a finite number"),
        (("b", 7, "salt", float("inf")), r"recipe b line 7: grams=inf must be null or a finite"),
        (("b", 7, "salt", float("nan")), r"recipe b line 7: grams=nan must be null or a finite"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    folder = write(tmp_path, [("a", 0, "salt", 1.0), row])
    with pytest.raises(DataError, match=f"ingredients.parquet: {message}"):
        read_recipe_sets(folder, FOODS)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match=r"recipes.parquet: no such file; run .*prepare"):
        read_recipe_sets(tmp_path, FOODS)


def test_a_missing_column_is_named(tmp_path):
    folder = write(tmp_path, [("a", 0, "salt", 1.0)])
    path = folder / "ingredients.parquet"
    pl.read_parquet(path).drop("grams").write_parquet(path)
    with pytest.raises(DataError, match=r"ingredients.parquet: column 'grams' is missing; it has"):
        read_recipe_sets(folder, FOODS)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_table_is_one_clear_line(tmp_path, damage):
    folder = write(tmp_path, [("a", 0, "salt", 1.0)])
    path = folder / "ingredients.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"ingredients.parquet: not a parquet table") as caught:
        read_recipe_sets(folder, FOODS)
    assert "\n" not in str(caught.value)
