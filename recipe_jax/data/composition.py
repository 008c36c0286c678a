"""What each food is made of: components by weight, flavour compounds, and the figures behind them.

Components are USDA measurements (SR26) in grams per 100 g, on a log scale, standardised over the
foods in use.  A component is kept where

- it is no aggregate of others (24 are: energy, ash, protein, total fat, sums of fatty acids,
  vitamin totals and equivalents), and
- at least 80 % of the foods in use have a figure (53 of 126 components), and
- at least 5 foods have a figure above zero: drops *vitamin B-12, added* (3 foods) and *vitamin E,
  added* (1), parts of totals that are kept; standardised they would mark single foods.

which leaves 51.  A missing figure is not a zero: `observed` tells them apart.

Flavour compounds are presence only (Ahn et al. 2011, doi:10.1038/srep00196).  Farnesol is dropped
(their erratum) and so are compounds that fewer than two of the foods in use contain.
"""

import dataclasses
import importlib.resources
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from recipe_jax.data.files import DataError, replace_file

MIN_COVERAGE = 0.8
MIN_FOODS_WITH_COMPONENT = 5
MIN_FOODS_WITH_COMPOUND = 2

GRAMS_PER_UNIT = {"g": 1.0, "mg": 1e-3, "µg": 1e-6}
GRAMS_PER_IU = {"Vitamin A, IU": 0.3e-6, "Vitamin D": 0.025e-6}


class Scaling(NamedTuple):
    """How grams per 100 g became components: `(log1p(grams / floor) - mean) / std`.

    Attributes:
        floor: grams per 100 g below which the scale is linear rather than logarithmic.
        mean: of `log1p(grams / floor)` over the foods with a figure.
        std: likewise.
    """

    floor: Float32[np.ndarray, "c"]
    mean: Float32[np.ndarray, "c"]
    std: Float32[np.ndarray, "c"]


class Components(NamedTuple):
    """Standardised components, which of them are figures, and how to undo the scaling."""

    values: Float32[np.ndarray, "v c"]
    observed: Bool[np.ndarray, "v c"]
    scaling: Scaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoodFeatures:
    """Molecular features of the foods, rows in vocabulary order.

    Attributes:
        foods: canonical names.
        component_names: what USDA measured, such as `Sodium, Na`.
        components: standardised; 0, the mean, where there is no figure.
        observed: where there is a figure.
        scaling: turns `components` back into grams per 100 g.
        compound_names: flavour compounds, such as `vanillin`.
        flavour: 1 where the food contains the compound, else 0.
        has_flavour: foods that the flavour network knows; for the others, zeros mean "unknown".
    """

    foods: tuple[str, ...]
    component_names: tuple[str, ...]
    components: Float32[np.ndarray, "v c"]
    observed: Bool[np.ndarray, "v c"]
    scaling: Scaling
    compound_names: tuple[str, ...]
    flavour: Float32[np.ndarray, "v f"]
    has_flavour: Bool[np.ndarray, "v"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nutrition:
    """USDA's figures per 100 g in USDA's units, aggregates among them, for people to read.

    Attributes:
        foods: canonical names.
        names: what was measured, such as `Fatty acids, total saturated`.
        units: g, mg, µg, IU or kcal.
        per_100g: NaN where USDA has no figure.
    """

    foods: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    per_100g: Float32[np.ndarray, "v n"]

    def amount(self, food: str, name: str) -> float:
        """How much of `name` 100 g of `food` hold, in its unit; NaN where USDA has no figure.

        Raises:
            ValueError: an unknown food or measurement.
        """
        for value, known, what in ((food, self.foods, "food"), (name, self.names, "measurement")):
            if value not in known:
                raise ValueError(f"{what} {value!r} is not among the {len(known)} known")
        return float(self.per_100g[self.foods.index(food), self.names.index(name)])


def grams_per_unit(unit: str, name: str) -> float:
    """Grams in one USDA unit.

    An IU is 0.3 µg of retinol for vitamin A and 0.025 µg for vitamin D; elsewhere it has no weight.

    Raises:
        ValueError: the unit is no weight, such as kcal.
    """
    if unit == "IU" and name in GRAMS_PER_IU:
        return GRAMS_PER_IU[name]
    unit = unit.replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    if unit not in GRAMS_PER_UNIT:
        known = ", ".join(GRAMS_PER_UNIT)
        raise ValueError(f"unit {unit!r} of {name!r} is no weight; known: {known}, IU of A and D")
    return GRAMS_PER_UNIT[unit]


def informative(grams: Float[np.ndarray, "v c"]) -> Bool[np.ndarray, "c"]:
    """Components with enough figures and enough figures above zero (see the module's docstring).

    Args:
        grams: per 100 g; NaN where there is no figure.
    """
    coverage = (~np.isnan(grams)).mean(axis=0)
    return (coverage >= MIN_COVERAGE) & ((grams > 0).sum(axis=0) >= MIN_FOODS_WITH_COMPONENT)


def standardise(grams: Float[np.ndarray, "v c"]) -> Components:
    """Put components on a log scale and standardise them over the foods with a figure.

    The floor of a component is the 10th percentile of its figures above zero, so that nine tenths
    of them lie on the logarithmic part of `log1p(grams / floor)` and zero stays finite.

    Args:
        grams: per 100 g, not negative; NaN where there is no figure, which becomes 0, the mean.

    Raises:
        ValueError: a component without two different figures.
    """
    observed = ~np.isnan(grams)
    with np.errstate(invalid="ignore"):
        positive = np.where(grams > 0, grams, np.nan)
    if np.isnan(positive).all(axis=0).any():
        raise ValueError("every component must have a figure above zero")
    floor = np.nanpercentile(positive, 10, axis=0)
    logs = np.log1p(grams / floor)
    mean = np.nanmean(logs, axis=0)
    std = np.nanstd(logs, axis=0)
    if (std <= 0).any():
        raise ValueError(f"component {int(np.argmin(std))} has the same figure for every food")
    values = np.where(observed, (logs - mean) / std, 0.0)
    scaling = Scaling(*(part.astype(np.float32) for part in (floor, mean, std)))
    return Components(values.astype(np.float32), observed, scaling)


def in_grams(values: Float[np.ndarray, "*n c"], scaling: Scaling) -> Float[np.ndarray, "*n c"]:
    """Grams per 100 g of standardised components: the inverse of `standardise`."""
    return scaling.floor * np.expm1(values * scaling.std + scaling.mean)


def write_composition(path: Path, features: FoodFeatures, nutrition: Nutrition) -> None:
    """Write both to one npz, the same bytes each time, whole or not at all.

    Raises:
        ValueError: the two are about different foods.
    """
    if features.foods != nutrition.foods:
        raise ValueError("features and nutrition must be about the same foods in the same order")
    arrays = {
        "foods": np.array(features.foods),
        "component_names": np.array(features.component_names),
        "components": features.components,
        "observed": features.observed,
        "scaling": np.stack(features.scaling),
        "compound_names": np.array(features.compound_names),
        "flavour": features.flavour.astype(bool),
        "has_flavour": features.has_flavour,
        "nutrition_names": np.array(nutrition.names),
        "nutrition_units": np.array(nutrition.units),
        "per_100g": nutrition.per_100g,
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # A ZipInfo of its own has a fixed date: the bytes depend on the arrays alone.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    replace_file(path, data.getvalue())


def read_food_features(
    path: Path | None = None, *, foods: Sequence[str] | None = None
) -> FoodFeatures:
    """Read the molecular features of the foods.

    Args:
        path: a `composition.npz`; None reads the one in the package.
        foods: the vocabulary that the file must be about.

    Raises:
        DataError: a missing, damaged or foreign file, or one about other foods.
    """
    source, arrays = _read_arrays(path)
    _check_features(source, arrays)
    if foods is not None and arrays["foods"].tolist() != list(foods):
        raise DataError(
            f"{source}: its {len(arrays['foods'])} foods are not the {len(foods)} of the vocabulary"
        )
    return FoodFeatures(
        foods=tuple(arrays["foods"].tolist()),
        component_names=tuple(arrays["component_names"].tolist()),
        components=arrays["components"],
        observed=arrays["observed"],
        scaling=Scaling(*arrays["scaling"]),
        compound_names=tuple(arrays["compound_names"].tolist()),
        flavour=arrays["flavour"].astype(np.float32),
        has_flavour=arrays["has_flavour"],
    )


def read_nutrition(path: Path | None = None) -> Nutrition:
    """Read USDA's figures per 100 g.

    Args:
        path: a `composition.npz`; None reads the one in the package.

    Raises:
        DataError: a missing, damaged or foreign file.
    """
    source, arrays = _read_arrays(path)
    _check_shapes(source, arrays, _NUTRITION_SHAPES)
    if (arrays["per_100g"] < 0).any() or np.isinf(arrays["per_100g"]).any():
        raise DataError(f"{source}: per_100g must be finite and not negative, or NaN")
    return Nutrition(
        foods=tuple(arrays["foods"].tolist()),
        names=tuple(arrays["nutrition_names"].tolist()),
        units=tuple(arrays["nutrition_units"].tolist()),
        per_100g=arrays["per_100g"],
    )


_FEATURE_SHAPES = {
    "foods": ("U", "v"),
    "component_names": ("U", "c"),
    "components": ("f", "vc"),
    "observed": ("b", "vc"),
    "scaling": ("f", "3c"),
    "compound_names": ("U", "f"),
    "flavour": ("b", "vf"),
    "has_flavour": ("b", "v"),
}
_NUTRITION_SHAPES = {
    "foods": ("U", "v"),
    "nutrition_names": ("U", "n"),
    "nutrition_units": ("U", "n"),
    "per_100g": ("f", "vn"),
}


def _read_arrays(path: Path | None) -> tuple[str, dict[str, np.ndarray]]:
    assets = importlib.resources.files("recipe_jax") / "assets"
    source = assets / "composition.npz" if path is None else path
    if not source.is_file():
        raise DataError(f"{source}: no such file; `python -m recipe_jax.data.assets` makes it")
    try:
        with np.load(io.BytesIO(source.read_bytes()), allow_pickle=False) as archive:
            return str(source), {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: not a composition table ({reason})") from error


def _check_shapes(
    source: str, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[str, str]]
) -> None:
    sizes = {"3": 3}
    for name, (kind, axes) in shapes.items():
        if name not in arrays:
            raise DataError(f"{source}: array {name!r} is missing; it has {sorted(arrays)}")
        array = arrays[name]
        if array.dtype.kind != kind or (kind == "f" and array.dtype != np.float32):
            dtype = {"U": "text", "b": "bool", "f": "float32"}[kind]
            raise DataError(f"{source}: {name} is {array.dtype}, must be {dtype}")
        for axis, size in zip(axes, array.shape, strict=False):
            sizes.setdefault(axis, size)
        expected = tuple(sizes.get(axis) for axis in axes)
        if array.shape != expected:
            raise DataError(f"{source}: {name} has shape {array.shape}, must be {expected}")


def _check_features(source: str, arrays: dict[str, np.ndarray]) -> None:
    _check_shapes(source, arrays, _FEATURE_SHAPES)
    for name in ("components", "scaling"):
        if not np.isfinite(arrays[name]).all():
            row = int(np.argwhere(~np.isfinite(arrays[name]))[0, 0])
            raise DataError(f"{source}: {name} row {row} holds a value that is not finite")
    if (arrays["components"][~arrays["observed"]] != 0).any():
        raise DataError(f"{source}: components must be 0 where observed is false")
    if (arrays["scaling"][[0, 2]] <= 0).any():
        raise DataError(f"{source}: scaling must have positive floors and standard deviations")
    if arrays["flavour"][~arrays["has_flavour"]].any():
        raise DataError(f"{source}: flavour must be 0 where has_flavour is false")
