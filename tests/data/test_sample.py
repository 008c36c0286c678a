import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from recipe_jax.data.composition import read_food_features, read_nutrition
from recipe_jax.data.files import DataError
from recipe_jax.data.foods import read_foods
from recipe_jax.data.recipes import RecipeSets, read_recipe_sets
from recipe_jax.data.sample import SampleRecipe, read_sample, read_sample_recipes, write_sample

COURSES = {
    *("bread", "breakfast", "cake", "cookie", "dessert", "drink", "main", "salad", "sauce"),
    *("side", "soup", "starter"),
}
# Most grams of one food in a dish for four, and its largest share.
STRONG = {
    "salt": (40, 0.025),
    "baking powder": (16, 0.03),
    "baking soda": (10, 0.02),
    "yeast": (15, 0.02),
    "cayenne": (6, 0.01),
    "clove": (2, 0.005),
    "nutmeg": (2, 0.005),
    "saffron": (0.5, 0.001),
    "bay leaf": (1, 0.001),
    "cinnamon": (16, 0.02),
    "turmeric": (6, 0.01),
    "vanilla extract": (10, 0.02),
    "cream of tartar": (8, 0.02),
    "black pepper": (5, 0.01),
}


@pytest.fixture(scope="module")
def recipes() -> tuple[SampleRecipe, ...]:
    return read_sample_recipes()


@pytest.fixture(scope="module")
def by_title(recipes) -> dict[str, SampleRecipe]:
    return {recipe.title: recipe for recipe in recipes}


def share(recipe: SampleRecipe, *foods: str) -> float:
    return sum(recipe.grams.get(food, 0.0) for food in foods) / sum(recipe.grams.values())


def test_is_large_and_varied_enough_to_learn_from(recipes):
    uses = Counter(food for recipe in recipes for food in recipe.grams)
    assert len(recipes) >= 200
    assert 140 <= len(uses) <= 180
    assert min(uses.values()) >= 2, "a food used once can't be both learned and tested"
    courses = Counter(recipe.tags[-1] for recipe in recipes)
    assert set(courses) == COURSES
    assert len({recipe.tags[0] for recipe in recipes}) >= 40


def test_dishes_are_distinct_sets_of_a_fair_size(recipes):
    sets = [frozenset(recipe.grams) for recipe in recipes]
    assert len(set(sets)) == len(sets)
    for recipe in recipes:
        assert 4 <= len(recipe.grams) <= 15, recipe.title
        assert 100 <= sum(recipe.grams.values()) <= 10_000, recipe.title
        assert len(recipe.tags) == 2, recipe.title


def test_strong_foods_are_used_sparingly(recipes):
    for recipe in recipes:
        for food, (most_grams, most_share) in STRONG.items():
            assert recipe.grams.get(food, 0.0) <= most_grams, (recipe.title, food)
            assert share(recipe, food) <= most_share, (recipe.title, food)


def test_baked_things_have_the_proportions_of_their_kind(by_title):
    pound, sponge = by_title["Pound Cake"].grams, by_title["Genoise Sponge"].grams
    assert pound["butter"] == pound["sugar"] == pound["egg"] == pound["flour"]
    assert sponge["egg"] > 5 * sponge["butter"]
    assert "egg yolk" not in by_title["Angel Food Cake"].grams
    hydration = {
        title: by_title[title].grams["water"] / by_title[title].grams["flour"]
        for title in ("Pizza Margherita", "Rosemary Focaccia", "Challah")
    }
    assert 0.6 <= hydration["Pizza Margherita"] <= 0.7
    assert hydration["Challah"] < hydration["Pizza Margherita"] < hydration["Rosemary Focaccia"]
    shortbread = by_title["Shortbread"]
    assert share(shortbread, "butter") > share(by_title["Brioche"], "butter")


def test_courses_are_told_apart_by_what_they_weigh(recipes):
    liquids = ("water", "milk", "chicken broth", "beef broth", "vegetable broth", "coconut milk")
    wet, sweet = {}, {}
    for course in COURSES:
        of_course = [recipe for recipe in recipes if recipe.tags[-1] == course]
        wet[course] = np.median([share(recipe, *liquids) for recipe in of_course])
        sweet[course] = np.median([share(r, "sugar", "brown sugar") for r in of_course])
    assert wet["soup"] > 0.35 > wet["main"]
    assert sweet["cookie"] > sweet["dessert"] > 0.08 > sweet["bread"]


def test_sets_agree_with_the_dishes(recipes):
    sets, foods = read_sample(), read_foods()
    assert list(sets.recipe_ids) == [recipe.recipe_id for recipe in recipes]
    for i, recipe in enumerate(recipes):
        names = [foods.names[food] for food in sets.foods_of(i)]
        assert dict(zip(names, sets.grams_of(i), strict=True)) == pytest.approx(recipe.grams)
    assert len(sets.select_completion()) == len(sets.select_weighed()) == len(sets)
    assert all(len(sets.select_split(split)) > 10 for split in ("train", "validation", "test"))


def same_sets(a: RecipeSets, b: RecipeSets) -> None:
    assert list(a.recipe_ids) == list(b.recipe_ids)
    for field in ("offsets", "foods", "grams", "num_lines", "num_mapped"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_written_folder_reads_back_as_the_same_sets(tmp_path):
    out = tmp_path / "deep" / "sample"
    for _ in range(2):
        write_sample(out)
    foods = read_foods()
    same_sets(read_recipe_sets(out, foods.names), read_sample())
    assert read_foods(out / "foods.parquet").names == foods.names
    features = read_food_features(out / "composition.npz", foods=foods.names)
    np.testing.assert_array_equal(features.components, read_food_features().components)
    nutrition = read_nutrition(out / "composition.npz")
    assert nutrition.amount("butter", "Total lipid (fat)") == pytest.approx(81, abs=1)
    lines = pl.read_parquet(out / "ingredients.parquet")
    assert lines.columns == ["recipe_id", "line", "name", "food", "ndb", "grams", "method"]
    assert set(lines["method"]) == {"sample"} and lines.null_count().sum_horizontal()[0] == 0
    assert lines.filter(pl.col("food") == "salt")["ndb"].unique().to_list() == [2047]
    assert sorted(path.name for path in out.iterdir()) == [
        *("composition.npz", "foods.parquet", "ingredients.parquet", "recipes.parquet")
    ]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written"):
        write_sample(tmp_path / "file" / "sample")


TOAST = {"id": "a", "title": "Toast", "tags": ["british"], "ingredients": {"bread": 60}}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", r"row 2: not a JSON object"),
        ("[]", r"row 2: id=None must be a non-empty str"),
        ('{"id": "a", "id": "b"}', r"row 2: .*'id' occurs twice"),
        (TOAST | {"title": "Other"}, r"row 2: id='a' is already in row 1"),
        (TOAST | {"id": "b"}, r"row 2: title='Toast' is already in row 1"),
        (TOAST | {"ingredients": {}}, r"row 2: ingredients=\{\} must be a non-empty dict"),
        (TOAST | {"ingredients": {"buter": 5}}, r"row 2: food 'buter' is not among the 507"),
        (TOAST | {"ingredients": {"butter": -5}}, r"row 2: butter: grams=-5 must be positive"),
        (TOAST | {"ingredients": {"butter": 0}}, r"row 2: butter: grams=0 must be positive"),
        ('{"id": "b", "title": "t", "tags": ["x"], "ingredients": {"butter": NaN}}', "grams=nan"),
        (TOAST | {"ingredients": {"butter": "5"}}, r"row 2: butter: grams='5' must be a number"),
        (TOAST | {"ingredients": {"butter": True}}, r"row 2: butter: grams=True must be a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path, second, message):
    path = tmp_path / "recipes.jsonl"
    row = second if isinstance(second, str) else json.dumps(second)
    path.write_text(f"{json.dumps(TOAST)}\n{row}\n")
    with pytest.raises(DataError, match=message) as error:
        read_sample_recipes(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_an_empty_or_missing_file_is_named(tmp_path):
    path = tmp_path / "recipes.jsonl"
    with pytest.raises(DataError, match=r"recipes\.jsonl: no such file"):
        read_sample_recipes(path)
    path.write_text("")
    with pytest.raises(DataError, match=r"recipes\.jsonl: holds no recipe"):
        read_sample_recipes(path)
