"""Items of a small shop with their semantic IDs, for tests."""

import numpy as np

from recipe_jax.data.catalogues import Catalogue
from recipe_jax.semantic_ids import format_id, make_semantic_ids

SIZES = (16, 16, 4)


def make_catalogue(count: int, titles: tuple[str, ...] = ()) -> Catalogue:
    names = tuple(f"i{row}" for row in range(count))
    titles = titles or tuple(f"Soap {row}" for row in range(count))
    brands = tuple("" if row % 3 == 0 else f"Brand {row % 5}" for row in range(count))
    return Catalogue(names, titles, {"title": titles, "brand": brands}, "")


def make_ids(catalogue: Catalogue) -> dict[str, str]:
    rows = np.arange(len(catalogue.ids))
    codes = np.stack([rows % 16, rows // 16 % 16], axis=1)
    ids = make_semantic_ids(catalogue.ids, codes, num_codes=SIZES[:2], num_digits=SIZES[2])
    return {item: format_id(row) for item, row in zip(ids.items, ids.codes, strict=True)}
