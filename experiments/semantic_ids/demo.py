"""From a catalogue and its users to recommendations, in minutes.

python -m experiments.semantic_ids demo

On Beauty where `$RECIPE_JAX_DATA` holds it, else on a made-up shop: vectors of texts and of what is
taken together, codes, a model that generates them, its recall beside popularity's on the items left
out for validation, and what it recommends to one user.  The last line on stdout is one JSON object.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.commands import check_seed
from experiments.semantic_ids import quantize, recommend, train, vectors
from experiments.semantic_ids.baselines import fit_popularity
from experiments.semantic_ids.datasets import read_dataset
from experiments.semantic_ids.protocol import evaluate_ranking
from recipe_jax.data.files import replace_file

KINDS = ("soap", "shampoo", "lipstick", "nail polish", "hand cream", "perfume")
COLOURS = ("red", "blue", "green", "clear", "rose", "golden")
SIZES = ("small", "large", "travel size", "double")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """How long it takes, and where its files go.

    Attributes:
        run: the folder for everything that is made; the same command on it resumes.
        minutes: of training.
        seed: of everything random.
        progress: show the progress bar.
    """

    run: Path = Path("runs/semantic_ids_demo")
    minutes: float = 2.0
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes {self.minutes} must be above 0 and finite")


def run(flags: Flags) -> dict[str, Any]:
    """Run the commands one after the other, and ask the model for one user."""
    place = flags.run
    if os.environ.get("RECIPE_JAX_DATA"):
        catalogue = histories = "beauty"
        dim, history_dim, num_codes = 256, 128, 256
    else:
        print("RECIPE_JAX_DATA is not set: the shop is made up", file=sys.stderr)
        catalogue, histories = write_shop(place, seed=flags.seed)
        dim, history_dim, num_codes = 16, 16, 12
    both = place / "vectors.npz"
    vectors.run(
        vectors.Flags(
            catalogue=catalogue, histories=histories, out=both, dim=dim, history_dim=history_dim
        )
    )
    quantize.run(
        quantize.Flags(
            catalogue=catalogue,
            vectors=both,
            method="residual-kmeans",
            scaling="none",
            num_codes=num_codes,
            run=place / "codes",
            seed=flags.seed,
        )
    )
    learned = train.run(
        train.Flags(
            model="generative",
            data=histories,
            codes=place / "codes",
            run=place / "model",
            steps=3000,
            minutes=flags.minutes,
            embed_dim=64,
            dropout=0.2,
            weight_decay=0.05,
            evaluate_every=500,
            validation_users=500,
            seed=flags.seed,
            progress=flags.progress,
        )
    )
    dataset = read_dataset(histories)
    split, n = dataset.split, len(dataset.item_ids)
    popularity = fit_popularity(split.train, num_items=n).score
    history = [dataset.item_ids[item] for item in split.test.histories.items_of(0)]
    asked = recommend.Flags(run=place / "model", history=tuple(history), k=5)
    return {
        "data": dataset.name,
        "n": learned["n"],
        "recall_at_10": learned["recall_at_10"],
        "baselines": {
            "popularity": evaluate_ranking(popularity, split.validation, num_items=n)[
                "recall_at_10"
            ]
        },
        "history": history,
        **recommend.run(asked),
    }


def write_shop(folder: Path, *, seed: int) -> tuple[str, str]:
    """A table of items and a file of users who mostly stay with a kind or a colour.

    Args:
        folder: where they go.
        seed: of the users.

    Returns:
        The paths of both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = [(kind, colour, size) for kind in KINDS for colour in COLOURS for size in SIZES]
    rows = [
        json.dumps({"id": f"s{row}", "title": f"{colour} {kind}, {size}"})
        for row, (kind, colour, size) in enumerate(items)
    ]
    rng = np.random.default_rng(seed)
    lines = []
    for user in range(600):
        kept = rng.integers(2)  # the kind, or the colour
        first = items[rng.integers(len(items))]
        like = [row for row, item in enumerate(items) if item[kept] == first[kept]]
        taken = rng.permutation(like)[: rng.integers(4, 9)]
        lines.append(" ".join([f"u{user}", *(f"s{row}" for row in taken)]))
    shop, users = folder / "shop.jsonl", folder / "users.txt"
    replace_file(shop, ("\n".join(rows) + "\n").encode())
    replace_file(users, ("\n".join(lines) + "\n").encode())
    return str(shop), str(users)
