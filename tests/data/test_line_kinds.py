"""Headings, equipment and notes are told from ingredients."""

import pytest

from recipe_jax.data.line_kinds import kind_by_name, kind_by_text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Batter:", "heading"),
        ("FOR THE SAUCE", "heading"),
        ("For the sauce", "heading"),
        ("Topping", "heading"),
        ("Dry Mix Ingredients", "heading"),
        ("Special equipment: a mandoline", "equipment"),
        ("Equipment: two loaf pans", "equipment"),
        ("Garnish: lemon wedges", "note"),
        ("Accompaniments: warm bread; salted butter", "note"),
        ("*Available at spice shops and some supermarkets.", "note"),
        ("Sumac is sold at Middle Eastern markets.", "note"),
        ("---", "note"),
        ("2 cups plain flour", "ingredient"),
        ("1/4 pound ham (available at Italian markets), diced", "ingredient"),
        ("salt to taste", "ingredient"),
        ("lemon wedges, for garnish", "ingredient"),
        ("1 cup salad dressing", "ingredient"),
        ("for frying: 2 cups oil", "ingredient"),
    ],
)
def test_kind_by_text(text: str, kind: str):
    assert kind_by_text(text) == kind


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wooden skewers", "8 wooden skewers, soaked in water"),
        ("parchment paper", "parchment paper"),
        ("aluminum foil", "2 sheets aluminum foil"),
        ("canning jars with lids and rings", "6 canning jars with lids and rings"),
        ("popsicle sticks", "12 popsicle sticks"),
        ("kitchen twine", "kitchen twine"),
        ("springform pan", "A 9-inch springform pan"),
    ],
)
def test_equipment_by_name(name: str, text: str):
    assert kind_by_name([name], text) == "equipment"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cinnamon sticks", "2 cinnamon sticks"),
        ("string cheese", "4 pieces string cheese"),
        ("olives", "1 jar olives"),
        ("pan drippings", "1/4 cup pan drippings"),
        ("chocolate chips", "1 bag chocolate chips"),
        ("tea bags", "4 tea bags"),
        ("celery sticks", "6 celery sticks"),
    ],
)
def test_foods_with_words_of_equipment_stay_foods(name: str, text: str):
    assert kind_by_name([name], text) == "ingredient"
