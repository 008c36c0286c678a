"""Pictures of what a quantizer makes of a catalogue: how codes are used, and the tree they span.

As in `recipe_jax.plots`, every function is pure and gives a new figure.
"""

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recipe_jax.plots import COLOURS, STYLE

_MOST_COLUMNS = 2000  # items of a code tree; of more, every so manieth is drawn


def code_usage(counts: Int[np.ndarray, "q c"]) -> Figure:
    """How many items have each code, a panel for each level, the most frequent code first.

    A flat line is a level whose codes are used alike; where it meets zero, codes are never used.

    Args:
        counts: items of each code of each level, of the whole catalogue.

    Raises:
        ValueError: no level or code, or a negative number.
    """
    if counts.size == 0 or counts.min() < 0:
        raise ValueError(f"counts of shape {counts.shape} must be of codes, none negative")
    num_levels, num_codes = counts.shape
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.6 * num_levels, 2.8), layout="constrained")
        panels = figure.subplots(1, num_levels, squeeze=False, sharey=True)[0]
        for level, axes in enumerate(panels):
            ordered = np.sort(counts[level])[::-1]
            axes.fill_between(
                np.arange(num_codes), ordered, step="mid", color=COLOURS["accent"], alpha=0.75
            )
            even = counts[level].sum() / num_codes
            axes.axhline(even, color=COLOURS["plain"], linewidth=1.1, linestyle=(0, (4, 3)))
            axes.set_title(f"level {level}: {np.count_nonzero(ordered)} of {num_codes} used")
            axes.set_xlabel("code, by frequency")
            axes.set_xlim(-0.5, num_codes - 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panels[0].set_ylabel("items (dashed: all alike)")
        panels[0].set_ylim(bottom=0)
    return figure


def code_tree(codes: Int[np.ndarray, "n q"]) -> Figure:
    """Items in the order of their codes; each row of the picture tells the groups of one level.

    A group is as wide as its share of the items, its subgroups lie below it, and neighbours differ
    in shade.  Where an item is alone the picture is grey.  Groups that the last level leaves share
    all of their codes, and have a colour of their own.

    Args:
        codes: of the whole catalogue; of more than 2,000 items an even selection is drawn.

    Raises:
        ValueError: no item.
    """
    if codes.size == 0:
        raise ValueError(f"codes of shape {codes.shape} hold no item")
    ordered = codes[np.lexsort(codes.T[::-1])]
    is_new = np.logical_or.accumulate(np.diff(ordered, axis=0, prepend=-1) != 0, axis=1)
    groups = np.cumsum(is_new, axis=0) - 1
    is_alone = np.stack([np.bincount(level)[level] == 1 for level in groups.T], axis=1)
    shades = groups % 2
    shades[:, -1] += 2
    shades[is_alone] = 4
    chosen = np.linspace(0, len(codes) - 1, min(len(codes), _MOST_COLUMNS)).astype(int)
    mixed = [(name, part) for name in ("accent", "negative") for part in (0.35, 0.85)]
    colours = [(*to_rgb(COLOURS[name]), part) for name, part in [*mixed, ("rule", 1.0)]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.9 + 0.55 * codes.shape[1]), layout="constrained")
        axes = figure.subplots()
        edges = np.linspace(0, 1, len(chosen) + 1)
        levels = np.arange(codes.shape[1] + 1)
        axes.pcolormesh(
            *(edges, levels, shades[chosen].T),
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=4.5,
            rasterized=True,
        )
        axes.invert_yaxis()
        names = [f"level {level}: {np.mean(is_alone[:, level]):.0%} alone" for level in levels[:-1]]
        axes.set_yticks(levels[:-1] + 0.5, names)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines[:].set_visible(False)
        axes.set_xlabel("items in the order of their codes")
    return figure
