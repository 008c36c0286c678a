"""Diet rules: laws over all foods, hand-written examples, and USDA's figures as an oracle."""

import numpy as np
import pytest

from recipe_jax.data.composition import read_nutrition
from recipe_jax.data.foods import read_foods
from recipe_jax.diets import DIETS, check, cleared, food_contents

FOODS = read_foods()

EXAMPLES = {
    "vegan": {
        "contains": "butter, egg, honey, ghee, chicken broth, worcestershire sauce, gelatin, "
        "marshmallow, mayonnaise, egg noodle, whipped topping, oyster sauce, lard, cream cheese, "
        "white chocolate, chocolate-hazelnut spread, marshmallow creme, clam juice",
        "unknown": "semisweet chocolate, white wine, beer, bread, pie crust, margarine, pasta, "
        "shortening, rice cereal, granola, apple juice",
        "free": "tofu, soy milk, olive oil, sugar, macaroni, peanut butter, nori, coconut milk, "
        "cocoa powder, yeast, lentil, vodka, soy sauce, water",
    },
    "vegetarian": {
        "contains": "bacon, anchovy, fish sauce, beef bouillon, gelatin dessert mix, duck, shrimp",
        "unknown": "parmesan, cheddar, gruyere, yogurt, baked bean, pinto bean, red wine",
        "free": "egg, honey, butter, milk, cream cheese, mayonnaise, vegetable broth",
    },
    "pescatarian": {
        "contains": "ground turkey, chicken liver, venison, marshmallow",
        "unknown": "romano cheese, flour tortilla",
        "free": "salmon, shrimp, fish sauce, squid, worcestershire sauce",
    },
    "gluten": {
        "contains": "flour, soy sauce, couscous, beer, barley, bulgur, semolina, rye flour, "
        "teriyaki sauce, cream of mushroom soup, phyllo dough, soba noodle, cornflake, pretzel",
        "unknown": "oat, worcestershire sauce, vodka, miso, chicken broth, vinegar, taco seasoning",
        "free": "rice, quinoa, corn tortilla, millet, cornstarch, potato, red wine",
    },
    "dairy": {
        "contains": "ghee, whipped topping, caramel, goat cheese, cream of chicken soup, eggnog",
        "unknown": "margarine, semisweet chocolate, bread, white wine, pie crust",
        "free": "coconut milk, egg, soy milk, almond, cream of tartar, mayonnaise, cocoa powder",
    },
    "eggs": {
        "contains": "egg white, mayonnaise, egg noodle, ranch dressing, marshmallow creme",
        "unknown": "pasta, cake mix, ice cream, almond paste, provolone",
        "free": "eggplant, milk, butter, chicken",
    },
    "nuts": {
        "contains": "peanut oil, pecan",
        "unknown": "coconut, granola",
        "free": "sesame seed, vanilla extract",
    },
    "tree-nuts": {
        "contains": "pine nut, chestnut, almond paste, walnut oil, chocolate-hazelnut spread",
        "unknown": "flaked coconut, coconut oil, mexican chocolate",
        "free": "peanut, nutmeg, water chestnut, butternut squash, sunflower seed",
    },
    "peanuts": {
        "contains": "peanut butter, crunchy peanut butter, peanut oil",
        "unknown": "white chocolate, granola",
        "free": "pea, chickpea, almond",
    },
    "soy": {
        "contains": "tofu, miso, edamame, soy flour, hoisin sauce, cooking spray",
        "unknown": "vegetable oil, mayonnaise, tuna in water, bittersweet chocolate",
        "free": "black bean, olive oil, bean sprout",
    },
    "fish": {
        "contains": "fish sauce, worcestershire sauce, tuna steak, smoked salmon",
        "unknown": "gelatin, barbecue sauce, crab",
        "free": "scallop, nori, chicken broth",
    },
    "shellfish": {
        "contains": "oyster sauce, squid, clam juice, crawfish tail, cooked shrimp",
        "unknown": "fish sauce, curry powder",
        "free": "cod, salmon, taco seasoning",
    },
    "sesame": {
        "contains": "tahini, sesame oil, sesame seed",
        "unknown": "hoisin sauce, bagel, hamburger bun",
        "free": "poppy seed, chickpea",
    },
    "alcohol": {
        "contains": "vanilla extract, white wine, orange liqueur, beer",
        "unknown": "eggnog, mustard, soy sauce",
        "free": "red wine vinegar, ginger ale, grape",
    },
    "pork": {
        "contains": "bacon, lard, pepperoni, italian sausage, salt pork",
        "unknown": "hot dog, gelatin, marshmallow, baked bean, pie crust",
        "free": "turkey ham, beef brisket, ground chicken",
    },
}


PAIRS = [
    (food, diet, status)
    for diet, by_status in EXAMPLES.items()
    for status, foods in by_status.items()
    for food in foods.split(", ")
]


@pytest.mark.parametrize(("food", "diet", "status"), PAIRS)
def test_status_of_hand_written_examples(food: str, diet: str, status: str):
    assert food in FOODS.names
    (finding,) = check([food], diet)
    assert finding.status == status
    assert cleared([food], diet).tolist() == [status == "free"]
    assert bool(finding.because) == (status != "free")


def test_every_food_was_judged_in_vocabulary_order():
    assert tuple(food_contents()) == FOODS.names


def test_contents_are_known_words_and_never_both_contained_and_unknown():
    words = frozenset().union(*DIETS.values())
    for food, contents in food_contents().items():
        assert contents.contains | contents.unknown <= words, food
        assert not contents.contains & contents.unknown, food


@pytest.mark.parametrize(
    ("stricter", "looser"),
    [
        ("vegan", "vegetarian"),
        ("vegetarian", "pescatarian"),
        ("vegan", "dairy"),
        ("vegan", "eggs"),
        ("vegetarian", "fish"),
        ("vegetarian", "shellfish"),
        ("vegetarian", "pork"),
        ("pescatarian", "pork"),
        ("nuts", "tree-nuts"),
        ("nuts", "peanuts"),
    ],
)
def test_what_the_stricter_diet_clears_the_looser_clears_too(stricter: str, looser: str):
    strict, loose = cleared(FOODS.names, stricter), cleared(FOODS.names, looser)
    assert not (strict & ~loose).any(), np.array(FOODS.names)[strict & ~loose]
    assert loose.sum() > strict.sum()


def test_pork_is_meat_and_gelatin_may_be_of_pork_or_fish():
    for food, (contains, unknown, _) in food_contents().items():
        assert "pork" not in contains or "meat" in contains, food
        assert "pork" not in unknown or {"meat", "gelatin"} & (contains | unknown), food
        assert "gelatin" not in contains | unknown or {"pork", "fish"} <= contains | unknown, food


@pytest.mark.parametrize(
    ("groups", "content"),
    [
        ("Beef Products; Poultry Products; Pork Products; Lamb, Veal, and Game Products", "meat"),
        ("Sausages and Luncheon Meats", "meat"),
        ("Pork Products", "pork"),
        ("Finfish and Shellfish Products", "fish shellfish"),
        ("Dairy and Egg Products", "dairy eggs"),
    ],
)
def test_foods_of_a_usda_group_contain_what_the_group_is_made_of(groups: str, content: str):
    for food, group in zip(FOODS.names, FOODS.groups, strict=True):
        if group in groups.split("; "):
            assert food_contents()[food].contains & set(content.split()), food


@pytest.mark.parametrize(
    ("diet", "measured"),
    [("vegan", "Cholesterol"), ("vegan", "Retinol"), ("alcohol", "Alcohol, ethyl")],
)
def test_cleared_foods_hold_none_of_what_only_excluded_foods_have(diet: str, measured: str):
    nutrition = read_nutrition()
    for food, clear in zip(FOODS.names, cleared(FOODS.names, diet), strict=True):
        if clear:
            assert not nutrition.amount(food, measured) > 0, food


def test_a_food_that_is_not_listed_is_unknown_and_not_cleared():
    (finding,) = check(["dragon fruit"], "vegan")
    assert finding == ("dragon fruit", "unknown", ())
    assert not cleared(["dragon fruit", "Butter"], "peanuts").any()


def test_findings_say_what_was_found():
    assert check(["butter", "hoisin sauce"], "vegan") == [
        ("butter", "contains", ("dairy",)),
        ("hoisin sauce", "unknown", ("honey",)),
    ]
    assert cleared([], "vegan").shape == (0,)


def test_unknown_diet_lists_the_known_ones():
    for ask in (check, cleared):
        with pytest.raises(ValueError, match="'keto' is not among the known: vegan, vegetarian"):
            ask(["salt"], "keto")
