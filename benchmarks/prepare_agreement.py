"""How a prepared folder agrees with the reference mapping.

    python -m experiments.recipes prepare --recipes "$RECIPE_JAX_DATA/recipes/recipes.jsonl.zst" \
        --out DIR
    python -m benchmarks.prepare_agreement --prepared DIR \
        --record experiments/records/prepare.json

The reference is one answer, not the truth: about 2 % of its foods are wrong.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import tyro

from experiments.record import command_line, make_record, write_record
from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import split_of

TOLERANCE = 0.25
KEYS = ("recipe_id", "line")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared, and where the record goes."""

    prepared: Path
    """Folder that `prepare` wrote."""
    data: Path = Path(os.environ.get("RECIPE_JAX_DATA", "."))
    """Folder of source data, with `recipes/reference_mapping.parquet`."""
    record: Path | None = None
    """Write the results to this file."""


def agreement(ours: pl.DataFrame, reference: pl.DataFrame) -> dict[str, float | int]:
    """Shares of the reference's lines on which `ours` says the same.

    A line counts once, by its first food in the reference that has an answer; ours agrees where any
    food it found on the line does.

    Args:
        ours: `recipe_id, line, ndb, grams`.
        reference: the same columns; nulls where it has no answer.

    Returns:
        `same_ndb` of `num_ndb` lines; `grams_within_25_percent` of `num_grams` lines, where a line
        with another food counts as a miss; and `grams_within_25_percent_where_same_ndb`.
    """
    named = reference.drop_nulls("ndb").unique([*KEYS], keep="first", maintain_order=True)
    first = ours.drop_nulls("ndb").unique([*KEYS, "ndb"], keep="first", maintain_order=True)
    both = named.join(first, on=[*KEYS, "ndb"], how="left", suffix="_ours", coalesce=True)
    found = named.join(first, on=[*KEYS, "ndb"], how="semi")
    near = (pl.col("grams_ours") - pl.col("grams")).abs() <= TOLERANCE * pl.col("grams")
    weighed = both.drop_nulls("grams").with_columns(near=near.fill_null(False))
    same_and_weighed = weighed.join(found, on=[*KEYS, "ndb"], how="semi")
    return {
        "num_ndb": len(named),
        "same_ndb": len(found) / len(named),
        "num_grams": len(weighed),
        "grams_within_25_percent": float(weighed["near"].to_numpy().mean()),
        "grams_within_25_percent_where_same_ndb": float(same_and_weighed["near"].to_numpy().mean()),
    }


def main(config: Config) -> int:
    """Compare, write the record, print its headline; returns the exit code."""
    path = config.data / "recipes/reference_mapping.parquet"
    for needed in (path, config.prepared / "ingredients.parquet", config.prepared / "prepare.json"):
        if not needed.is_file():
            print(f"{needed}: no such file", file=sys.stderr)
            return 2
    columns = [*KEYS, "ndb", "grams"]
    reference = pl.read_parquet(path, columns=columns).with_columns(
        pl.col("line").cast(pl.Int32), pl.col("ndb").cast(pl.Int32)
    )
    ours = pl.read_parquet(config.prepared / "ingredients.parquet", columns=columns)
    in_training = pl.col("recipe_id").map_elements(
        lambda recipe_id: split_of(recipe_id) == "train", return_dtype=pl.Boolean
    )
    try:
        report = json.loads((config.prepared / "prepare.json").read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{config.prepared}/prepare.json: not JSON ({error.msg})") from error
    found = {
        "prepare": {key: value for key, value in report.items() if key != "config"},
        "agreement": agreement(ours, reference),
        "agreement_outside_training": agreement(
            ours.filter(~in_training), reference.filter(~in_training)
        ),
    }
    if config.record is not None:
        command = command_line("benchmarks.prepare_agreement", config)
        write_record(config.record, make_record(command, **found))
    print(json.dumps({"n": found["agreement"]["num_ndb"], **found["agreement"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
