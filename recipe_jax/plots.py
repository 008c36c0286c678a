"""Figures of recipes, attributions, attention and training, as matplotlib figures and as SVG.

Every function is pure: it takes names and numbers and returns a new `Figure`, drawn without
pyplot's global state.  `to_png` makes a picture on white.  `to_svg` makes an element for an HTML
page, whose colours are the page's custom properties (`var(--plot-ink, #1f2328)`), so that one
drawing serves a light and a dark page; its text stays text, in the page's font.
"""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS: Mapping[str, str] = {
    "ink": "#1f2328",
    "muted": "#667080",
    "rule": "#dde1e6",
    "paper": "#ffffff",
    "accent": "#1b7a78",
    "plain": "#97a1ae",
    "positive": "#2b6cb0",
    "negative": "#c2571b",
}
"""What each colour is for.  `positive` and `negative` differ for colour-blind eyes too."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9,
    "ytick.color": COLOURS["rule"],
    "ytick.labelcolor": COLOURS["ink"],
    "ytick.labelsize": 9,
}
"""Settings of matplotlib under which every figure is drawn."""
_WIDTH = 7.0  # inches
_LETTER = 0.08  # inches that a letter of a label takes
_ROW_HEIGHT = 0.26  # inches for each bar of a bar chart
_NUMBERED_CELLS = 12  # a heat map of at most this many columns has its numbers written in
_LABEL_GAP = 0.075  # of an axes' height, between labels beside one another


def gram_bars(
    foods: Sequence[str],
    grams: Float[np.ndarray, "m"],
    *,
    low: Float[np.ndarray, "m"],
    high: Float[np.ndarray, "m"],
    level: float = 0.8,
) -> Figure:
    """A bar of grams for each food, with the interval of the amount as a line.

    Args:
        foods: names, from the top down.
        grams: amounts.
        low: lower bounds of the intervals, in grams.
        high: upper bounds, in grams.
        level: probability that the intervals hold.

    Raises:
        ValueError: an amount that is negative or not finite, or bounds the wrong way round.
    """
    for name, values in (("grams", grams), ("low", low), ("high", high)):
        _check_numbers(name, values, foods, at_least=0.0)
    _check_bounds(low, high, foods)
    with matplotlib.rc_context(STYLE):
        figure, axes = _bar_axes(foods)
        rows = np.arange(len(foods))
        axes.barh(rows, grams, height=0.62, color=COLOURS["accent"], alpha=0.75)
        axes.hlines(rows, low, high, color=COLOURS["ink"], linewidth=1.1)
        axes.plot([low, high], [rows, rows], "|", color=COLOURS["ink"], markersize=5)
        for row, amount in enumerate(grams):
            text = f"{amount:,.0f} g" if amount >= 10 else f"{amount:.2g} g"
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center")
        axes.set_xlim(left=0)
        axes.set_xlabel(f"amount (g); line: {level:.0%} interval")
    return figure


def attribution_bars(
    names: Sequence[str], values: Float[np.ndarray, "n"], *, unit: str = "nats"
) -> Figure:
    """Diverging bars of signed attributions: what spoke for a choice and what against it.

    Args:
        names: what each attribution belongs to, from the top down.
        values: signed attributions.
        unit: of the attributions.

    Raises:
        ValueError: a value that is not finite.
    """
    _check_numbers("values", values, names)
    colours = [COLOURS["negative" if value < 0 else "positive"] for value in values]
    limit = 1.15 * max(float(np.abs(values).max(initial=0.0)), 1e-9)
    with matplotlib.rc_context(STYLE):
        figure, axes = _bar_axes(names)
        axes.barh(np.arange(len(names)), values, height=0.62, color=colours)
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        for row, value in enumerate(values):
            text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center")
        axes.set_xlim(-limit, limit)
        axes.set_xlabel(f"attribution ({unit}); left: against the choice, right: for it")
    return figure


def attention_heatmap(
    weights: Float[np.ndarray, "t s"],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_name: str = "food that attends",
    column_name: str = "food attended to",
) -> Figure:
    """Attention weights as a heat map in one hue, in per cent of each row.

    Args:
        weights: of row `t` on column `s`; no row may sum to more than 1.
        row_labels: one for each row.
        column_labels: one for each column.
        row_name: what rows are.
        column_name: what columns are.

    Raises:
        ValueError: labels of another number than the weights, a weight that is negative or not
            finite, or a row that sums to more than 1.
    """
    t, s = weights.shape
    if (len(row_labels), len(column_labels)) != (t, s):
        raise ValueError(
            f"weights have shape ({t}, {s}), but there are {len(row_labels)} row labels and "
            f"{len(column_labels)} column labels"
        )
    for label, row in zip(row_labels, weights, strict=True):
        _check_numbers(f"weights of {label!r}", row, column_labels, at_least=0.0)
        if row.sum() > 1 + 1e-3:
            raise ValueError(f"weights of {label!r} sum to {row.sum():.4g}, must be at most 1")
    with matplotlib.rc_context(STYLE):
        beside = _LETTER * max(map(len, row_labels), default=0)
        below = 0.7 * _LETTER * max(map(len, column_labels), default=0)
        size = (1.4 + max(beside, below) + 0.46 * s, 0.9 + below + 0.32 * t)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        top = max(float(weights.max(initial=0.0)), 1e-9)
        # One hue whose opacity grows: it reads on a light and on a dark page.
        hue = to_rgb(COLOURS["accent"])
        colours = LinearSegmentedColormap.from_list("accent", [(*hue, 0.0), (*hue, 1.0)], N=32)
        mesh = axes.pcolormesh(weights, cmap=colours, vmin=0.0, vmax=top)
        mesh.set(edgecolor=COLOURS["rule"], linewidth=0.4)
        if s <= _NUMBERED_CELLS:
            for (i, j), weight in np.ndenumerate(weights):
                colour = COLOURS["paper" if weight > 0.7 * top else "ink"]
                axes.text(
                    j + 0.5, i + 0.5, f"{100 * weight:.0f}", color=colour, ha="center", va="center"
                )
        axes.set_xticks(np.arange(s) + 0.5, column_labels, rotation=40, ha="right")
        axes.set_yticks(np.arange(t) + 0.5, row_labels)
        axes.invert_yaxis()
        axes.tick_params(length=0, labelcolor=COLOURS["ink"])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(column_name)
        axes.set_ylabel(row_name)
        bar = figure.colorbar(mesh, ax=axes, format=PercentFormatter(1.0), aspect=30, pad=0.03)
        bar.set_label("attention (% of the row)")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def training_curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    label: str,
    baselines: Mapping[str, float],
    loss_label: str = "training loss (nats)",
) -> Figure:
    """The loss, and beside it a validation metric with the baselines as horizontal lines.

    Args:
        rows: of `metrics.jsonl`: `step` with `loss`, or `step` with the validation metric.
        metric: its key.
        label: its axis label, with unit.
        baselines: value of the same metric by method.
        loss_label: axis label of the loss, with unit.

    Raises:
        ValueError: no row with a finite loss or none with the metric, or a baseline not finite.
    """
    _check_numbers("baselines", np.array([*baselines.values()], float), [*baselines])
    losses, scores = _series(rows, "loss"), _series(rows, metric)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH + 2.0, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
        left.plot(*losses, color=COLOURS["accent"], linewidth=1.6)
        right.plot(*scores, color=COLOURS["accent"], linewidth=1.6, marker="o", markersize=3.5)
        for axes, text in ((left, loss_label), (right, label)):
            axes.set_xlabel("training step")
            axes.set_ylabel(text)
            axes.grid(axis="y")
            axes.tick_params(labelcolor=COLOURS["muted"])
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for value in baselines.values():
            right.axhline(value, color=COLOURS["plain"], linewidth=1.1, linestyle=(0, (4, 3)))
        last = {"this run": float(scores[1][-1])}
        _label_lines(right, {**baselines, **last}, highlighted=last)
    return figure


def metric_bars(
    methods: Sequence[str],
    means: Float[np.ndarray, "n k"],
    *,
    low: Float[np.ndarray, "n k"],
    high: Float[np.ndarray, "n k"],
    labels: Sequence[str],
    ours: Collection[str] = (),
) -> Figure:
    """Methods beside one another: a panel for each metric, a dot with its interval for each method.

    Args:
        methods: names, from the top down.
        means: of method `n` in metric `k`; NaN where it was not measured.
        low: lower bounds of the intervals; NaN where there is none.
        high: upper bounds; NaN where there is none.
        labels: axis label of each metric, with unit.
        ours: methods drawn in the accent colour.

    Raises:
        ValueError: names or labels of another number than the means, or no metric.
    """
    n, k = means.shape
    if (len(methods), len(labels)) != (n, k) or k == 0:
        raise ValueError(
            f"means have shape ({n}, {k}), but there are {len(methods)} methods and "
            f"{len(labels)} labels; each needs at least one"
        )
    colours = [COLOURS["accent" if method in ours else "plain"] for method in methods]
    with matplotlib.rc_context(STYLE):
        size = (_WIDTH + 2.0, 0.8 + _ROW_HEIGHT * max(n, 3))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, k, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.2})[0]
        rows = np.arange(n)
        for j, axes in enumerate(panels):
            axes.hlines(rows, low[:, j], high[:, j], color=colours, linewidth=2.2)
            axes.scatter(means[:, j], rows, s=26, color=colours, zorder=3)
            axes.set_xlabel(labels[j])
            axes.grid(axis="x")
            axes.margins(x=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(rows, methods)
        panels[0].set_ylim(n - 0.4, -0.6)
    return figure


def inline_gram_bar(grams: float, *, low: float, high: float, limit: float) -> str:
    """One bar of grams with its interval, as SVG that fills a table cell of any width.

    It repeats the numbers beside it, so screen readers skip it.

    Args:
        grams: where the bar ends.
        low: where the interval begins, in grams.
        high: where it ends, in grams.
        limit: grams at the right edge.
    """
    bar, start, end = (f"{100 * value / limit:.2f}%" for value in (grams, low, high))
    stroke = f'stroke-width="1.3" {_paint("stroke", "ink")}'
    return _inline(
        f'<rect x="0" y="3" width="{bar}" height="10" rx="1.5" fill-opacity="0.75" '
        f"{_paint('fill', 'accent')}/>"
        f'<line x1="{start}" x2="{end}" y1="8" y2="8" {stroke}/>'
        f'<line x1="{start}" x2="{start}" y1="5" y2="11" {stroke}/>'
        f'<line x1="{end}" x2="{end}" y1="5" y2="11" {stroke}/>'
    )


def inline_signed_bar(value: float, *, limit: float) -> str:
    """One diverging bar, as SVG that fills a table cell of any width; screen readers skip it.

    Args:
        value: signed length.
        limit: what reaches from the middle to an edge.
    """
    width = 50 * abs(value) / limit
    start = 50 - width if value < 0 else 50
    colour = "negative" if value < 0 else "positive"
    return _inline(
        f'<rect x="{start:.2f}%" y="3" width="{width:.2f}%" height="10" {_paint("fill", colour)}/>'
        f'<line x1="50%" x2="50%" y1="0" y2="16" stroke-width="1" {_paint("stroke", "muted")}/>'
    )


def to_png(figure: Figure, *, dots_per_inch: int = 160) -> bytes:
    """The figure as a PNG picture on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor=COLOURS["paper"])
    return buffer.getvalue()


def to_svg(figure: Figure, *, name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, with no address of anything outside it.

    Args:
        figure: to be drawn.
        name: makes the element's internal ids its own; no two on a page may share it.
        description: what the picture shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _simplify(root)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update(width=width, height=height, role="img")
    root.set("aria-label", description)
    drawn = ElementTree.tostring(root, encoding="unicode")
    for colour_name, colour in COLOURS.items():
        drawn = drawn.replace(f": {colour}", f": var(--plot-{colour_name}, {colour})")
    return drawn


def _simplify(root: ElementTree.Element) -> None:
    """Drop namespaces, style sheets and the ids that nothing refers to."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: " ".join(value.split()) for key, value in element.attrib.items()
        }
        style = element.get("style", "")
        if element.tag == "text":
            element.set("style", re.sub(r"font-family: [^;]*;? ?", "", style))
    values = " ".join(value for element in root.iter() for value in element.attrib.values())
    referred = set(re.findall(r"#(\w+)", values))
    for element in root.iter():
        if element.get("id") not in referred:
            element.attrib.pop("id", None)


def _bar_axes(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes of horizontal bars, first name on top."""
    figure = Figure(figsize=(_WIDTH, 0.75 + _ROW_HEIGHT * max(len(names), 1)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _label_lines(axes: Axes, values: Mapping[str, float], *, highlighted: Collection[str]) -> None:
    """Name horizontal lines at their right ends, pushing apart names that would overlap."""
    bottom, top = axes.get_ylim()
    place = -np.inf
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        place = max((value - bottom) / (top - bottom), place + _LABEL_GAP)
        colour = COLOURS["accent" if name in highlighted else "muted"]
        text = f"{name} {value:.3f}"
        axes.text(1.02, place, text, transform=axes.transAxes, color=colour, va="center")


def _series(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Steps and values of the rows that hold a finite value under `key`."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    series = np.array(points, float).reshape(-1, 2)
    series = series[np.isfinite(series[:, 1])]
    if not len(series):
        raise ValueError(f"rows: none of {len(rows)} holds a finite {key!r}")
    return series[:, 0], series[:, 1]


def _check_numbers(
    field: str,
    values: Float[np.ndarray, "n"],
    names: Sequence[str],
    *,
    at_least: float = -np.inf,
) -> None:
    if len(values) != len(names):
        raise ValueError(f"{field} has {len(values)} values for {len(names)} names")
    for name, value in zip(names, values, strict=True):
        if not (np.isfinite(value) and value >= at_least):
            rule = "finite" if at_least == -np.inf else f"finite and at least {at_least:g}"
            raise ValueError(f"{field} of {name!r} is {value}, must be {rule}")


def _check_bounds(
    low: Float[np.ndarray, "m"], high: Float[np.ndarray, "m"], names: Sequence[str]
) -> None:
    for name, start, end in zip(names, low, high, strict=True):
        if start > end:
            raise ValueError(f"low of {name!r} is {start}, must be at most high={end}")


def _inline(drawing: str) -> str:
    return f'<svg class="bar" width="100%" height="16" aria-hidden="true">{drawing}</svg>'


def _paint(attribute: str, colour: str) -> str:
    return f'style="{attribute}: var(--plot-{colour}, {COLOURS[colour]})"'
