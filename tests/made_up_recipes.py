"""A few made-up recipes in the files of the real ones, for tests."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from recipe_jax.data.catalogues import Catalogue, catalogue_fingerprint

FOODS = {"Bean": "beans", "Rice": "rice", "Corn": "maize", "Fish": "cod", "Oat": "oats"}
DISHES = {"soup": "broth", "pie": "crust", "salad": "leaves", "bowl": "sauce"}
EXTRAS = ("salt", "pepper", "butter", "thyme", "garlic", "lemon")


def recipe_rows(count: int = 120) -> list[dict[str, Any]]:
    """Titles say two things that the ingredients say in other words."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        food, dish = rng.choice(list(FOODS)), rng.choice(list(DISHES))
        extras = [str(extra) for extra in rng.choice(EXTRAS, 2, replace=False)]
        rows.append(
            {
                "id": f"r{number}",
                "title": f"{food} {dish} number{number}",
                "ingredients": [
                    f"1 cup {FOODS[food]}",
                    f"1 cup {DISHES[dish]}",
                    *extras,
                    f"spice{number}",
                ],
                "tags": [],
                "source": "made up",
            }
        )
    return rows


def catalogue_of(rows: list[dict[str, Any]]) -> Catalogue:
    ids = tuple(str(row["id"]) for row in rows)
    titles = tuple(str(row["title"]) for row in rows)
    ingredients = (", ".join(map(str, row["ingredients"])) for row in rows)
    parts = zip(titles, ingredients, strict=True)
    texts = tuple("; ".join(part for part in pair if part) for pair in parts)
    return Catalogue(ids, texts, {"title": titles}, catalogue_fingerprint(ids, texts))


def write_folder(root: Path) -> Path:
    """What `$RECIPE_JAX_DATA` names: recipes, pairs and pantries."""
    rows = recipe_rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (root / "recipes").mkdir(parents=True)
    (root / "recipes" / "recipes.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    pantries = root / "pantrypilot"
    pantries.mkdir()
    recipes = [{"name": row["title"], "main_ingredients": row["ingredients"]} for row in rows]
    pairs = [
        {"user_request": f"a {recipe['name']}", "chosen_recipe": recipe, "rejected_recipe": other}
        for recipe, other in zip(recipes[:5], recipes[5:10], strict=True)
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (pantries / "my_preferences.jsonl").write_text(lines)
    for name, part in {"val": recipes[10:60], "test": recipes[60:]}.items():
        lines = "".join(
            json.dumps(
                {
                    "input": {
                        "user_inventory": recipe["main_ingredients"][1:],
                        "requested_ingredients": None,
                        "preference": None,
                        "cuisine": None,
                    },
                    "output": {"recipe": recipe},
                }
            )
            + "\n"
            for recipe in part
        )
        (pantries / f"recipes_{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root
