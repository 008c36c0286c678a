"""Pictures of what is inside a transformer: positions, their rotations, attention of every head.

As in `recipe_jax.plots`, every function is pure and gives a new figure.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipe_jax.plots import COLOURS, STYLE

_CELL = 1.15  # inches of one head's picture
_MOST_LABELS = 24  # more tokens than this are numbered, not named


def position_heatmap(encoding: Float[np.ndarray, "n e"], *, title: str = "") -> Figure:
    """What is added to the embedding at each position, feature by feature.

    Args:
        encoding: of `n` positions, such as `sinusoidal_table` or a learned table.
        title: above the picture.

    Raises:
        ValueError: a value that is not finite.
    """
    _check_finite("encoding", encoding)
    bound = max(float(np.abs(encoding).max(initial=0.0)), 1e-9)
    return _signed_heatmap(encoding, bound, title, "feature", "position", "added")


def rotation_heatmap(
    frequencies: Float[np.ndarray, "half"], num_positions: int, *, title: str = ""
) -> Figure:
    """The cosine of the angle by which rotary positions turn each pair of features.

    Fast pairs are stripes, slow ones hardly change within the context: what scaling stretches.

    Args:
        frequencies: radians per position of each pair, such as `rotary_frequencies`.
        num_positions: rows of the picture.
        title: above the picture.

    Raises:
        ValueError: a frequency that is not finite, or no position.
    """
    _check_finite("frequencies", frequencies)
    if num_positions < 1:
        raise ValueError(f"num_positions={num_positions} must be at least 1")
    angles = np.arange(num_positions)[:, None] * frequencies[None]
    name = "pair of features, fastest first"
    return _signed_heatmap(np.cos(angles), 1.0, title, name, "position", "cosine of the angle")


def attention_grid(
    weights: Float[np.ndarray, "layers h t s"], *, tokens: Sequence[str] = (), title: str = ""
) -> Figure:
    """Attention of every layer (rows) and head (columns), one hue, each on the same scale.

    Args:
        weights: of query `t` on key `s`, such as `CausalLanguageModel.weights(tokens)[:, 0]`.
        tokens: labels of the keys, if they are few enough to be read.
        title: above the picture.

    Raises:
        ValueError: a weight that is negative or not finite, or labels of another number.
    """
    _check_finite("weights", weights)
    if weights.min(initial=0.0) < 0:
        raise ValueError(f"weights hold {weights.min():.4g}, must not be negative")
    layers, heads, _, s = weights.shape
    if tokens and len(tokens) != s:
        raise ValueError(f"{len(tokens)} tokens label {s} keys: give one each, or none")
    hue = to_rgb(COLOURS["accent"])
    colours = LinearSegmentedColormap.from_list("accent", [(*hue, 0.0), (*hue, 1.0)], N=64)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + _CELL * heads, 0.9 + _CELL * layers), layout="constrained")
        grid: Any = figure.subplots(layers, heads, squeeze=False)
        for layer, head in np.ndindex(layers, heads):
            axes = grid[layer, head]
            axes.pcolormesh(weights[layer, head], cmap=colours, vmin=0.0, vmax=1.0)
            axes.invert_yaxis()
            _frame(axes)
            if layer == 0:
                axes.set_title(f"head {head}")
            if head == 0:
                axes.set_ylabel(f"layer {layer}")
        if tokens and s <= _MOST_LABELS:
            for axes in grid[-1]:
                axes.set_xticks(np.arange(s) + 0.5, tokens, rotation=90, fontsize=6)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _signed_heatmap(
    values: Float[np.ndarray, "n m"],
    bound: float,
    title: str,
    column_name: str,
    row_name: str,
    value_name: str,
) -> Figure:
    """Two hues that meet in nothing at zero."""
    negative, positive = (to_rgb(COLOURS[name]) for name in ("negative", "positive"))
    stops = [(*negative, 1.0), (*negative, 0.0), (*positive, 0.0), (*positive, 1.0)]
    colours = LinearSegmentedColormap.from_list(
        "signed", list(zip((0.0, 0.5, 0.5, 1.0), stops, strict=True)), N=256
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(values, cmap=colours, vmin=-bound, vmax=bound, rasterized=True)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=column_name, ylabel=row_name)
        axes.spines[:].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(mesh, ax=axes, aspect=30, pad=0.03, label=value_name)
    return figure


def _frame(axes: Axes) -> None:
    """No ticks; a thin line around, or a head that attends to nothing would not be seen."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.set_aspect("equal")


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite")
