from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from recipe_jax import plots

FOODS = ["flour", "butter", "egg"]
GRAMS = np.array([250.0, 112.5, 4.2])


def gram_bars(**changes):
    values = {"low": 0.8 * GRAMS, "high": 1.2 * GRAMS, "grams": GRAMS, **changes}
    return plots.gram_bars(FOODS, values.pop("grams"), **values)


def training_curves(rows=None, **changes):
    rows = rows or [
        {"step": 1, "loss": 6.2},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 5.1},
        {"step": 3, "mrr": 0.11},
        {"step": 6, "mrr": 0.31},
    ]
    values = {"metric": "mrr", "label": "MRR", "baselines": {"EASE": 0.32, "k-nearest": 0.325}}
    return plots.training_curves(rows, **{**values, **changes})


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_gram_bars_sum_to_the_recipe():
    (axes,) = gram_bars().axes
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_array_equal(widths, GRAMS)
    assert sum(widths) == GRAMS.sum()
    assert [label.get_text() for label in axes.get_yticklabels()] == FOODS
    assert texts(axes) == ["250 g", "112 g", "4.2 g"]
    assert axes.get_xlabel() == "amount (g); line: 80% interval"


def test_the_first_food_is_on_top():
    (axes,) = gram_bars().axes
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_interval_lines_span_their_bounds():
    (axes,) = gram_bars().axes
    for i, ((start, _), (end, _)) in enumerate(axes.collections[0].get_segments()):
        assert (start, end) == pytest.approx((0.8 * GRAMS[i], 1.2 * GRAMS[i]))


def test_attributions_diverge_from_zero_in_two_colours():
    values = np.array([1.5, -0.25, 0.0])
    (axes,) = plots.attribution_bars(FOODS, values, unit="nats").axes
    np.testing.assert_array_equal([bar.get_width() for bar in axes.patches], values)
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    positive, negative = plots.COLOURS["positive"], plots.COLOURS["negative"]
    assert colours == [positive, negative, positive]
    assert texts(axes) == ["+1.50", "\u22120.25", "+0.00"]
    low, high = axes.get_xlim()
    assert low == -high
    assert "(nats)" in axes.get_xlabel()


def test_a_heat_map_shows_each_weight_in_its_cell():
    weights = np.array([[0.1, 0.9], [0.6, 0.4], [0.0, 1.0]])
    figure = plots.attention_heatmap(weights, row_labels=FOODS, column_labels=FOODS[:2])
    axes, bar = figure.axes
    np.testing.assert_array_equal(axes.collections[0].get_array(), weights)
    cells = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    for (i, j), weight in np.ndenumerate(weights):
        assert cells[i + 0.5, j + 0.5] == f"{100 * weight:.0f}"
    assert axes.yaxis_inverted()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("food attended to", "food that attends")
    assert bar.get_ylabel() == "attention (% of the row)"


def test_training_curves_stand_beside_their_baselines():
    loss, metric = training_curves().axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 6.2], [3, 5.1]])
    np.testing.assert_array_equal(metric.lines[0].get_xydata(), [[3, 0.11], [6, 0.31]])
    assert [line.get_ydata()[0] for line in metric.lines[1:]] == [0.32, 0.325]
    assert texts(metric) == ["this run 0.310", "EASE 0.320", "k-nearest 0.325"]
    assert loss.get_ylabel() == "training loss (nats)"
    assert metric.get_ylabel() == "MRR"
    assert {axes.get_xlabel() for axes in (loss, metric)} == {"training step"}


def test_names_of_near_lines_do_not_overlap():
    metric = training_curves(baselines={f"b{i}": 0.3 for i in range(4)}).axes[1]
    places = [text.get_position()[1] for text in metric.texts]
    assert np.diff(places).min() > 0.07


def test_metric_bars_place_every_mean_and_interval():
    means = np.array([[0.6, 5.0], [0.5, np.nan]])
    figure = plots.metric_bars(
        ["ours", "EASE"], means, low=means - 0.01, high=means + 0.02, labels=["R@10", "rank"],
        ours=["ours"],
    )  # fmt: skip
    for j, (axes, label) in enumerate(zip(figure.axes, ["R@10", "rank"], strict=True)):
        lines, dots = axes.collections
        np.testing.assert_array_equal(np.ma.filled(dots.get_offsets()[:, 0], np.nan), means[:, j])
        (start, _), (end, _) = lines.get_segments()[0]
        assert (start, end) == pytest.approx((means[0, j] - 0.01, means[0, j] + 0.02))
        assert axes.get_xlabel() == label
        colours = [to_hex(colour) for colour in dots.get_facecolors()]
        assert colours == [plots.COLOURS["accent"], plots.COLOURS["plain"]]


def bar_of(svg, tag):
    return [node.attrib for node in ElementTree.fromstring(svg) if node.tag == tag]


def test_inline_bars_have_the_length_of_their_numbers():
    svg = plots.inline_gram_bar(50.0, low=40.0, high=80.0, limit=200.0)
    assert bar_of(svg, "rect")[0]["width"] == "25.00%"
    interval = bar_of(svg, "line")[0]
    assert (interval["x1"], interval["x2"]) == ("20.00%", "40.00%")
    for value, start in ((0.5, "50.00%"), (-0.5, "37.50%")):
        (bar,) = bar_of(plots.inline_signed_bar(value, limit=2.0), "rect")
        assert (bar["x"], bar["width"]) == (start, "12.50%")


def test_an_svg_takes_the_colours_and_the_font_of_its_page():
    svg = plots.to_svg(gram_bars(), name="grams", description='three <foods> & "grams"')
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'three <foods> & "grams"')
    assert f"var(--plot-accent, {plots.COLOURS['accent']})" in svg
    assert "http" not in svg and "font-family" not in svg and "<style" not in svg
    assert {"flour", "butter", "egg", "250 g"} <= {node.text for node in root.iter("text")}


def test_an_svg_is_the_same_each_time_and_its_ids_are_its_own():
    first, again = (plots.to_svg(gram_bars(), name="a", description="") for _ in range(2))
    assert first == again
    other = plots.to_svg(gram_bars(), name="b", description="")
    ids = [
        {node.get("id") for node in ElementTree.fromstring(svg).iter()} - {None}
        for svg in (first, other)
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_names_are_never_read_as_formulas():
    figure = plots.attribution_bars(["$x_1$", "_b", "5 $"], np.ones(3))
    drawn = plots.to_svg(figure, name="x", description="")
    assert {"$x_1$", "_b", "5 $"} <= {n.text for n in ElementTree.fromstring(drawn).iter("text")}


def test_png_is_on_white():
    picture = imread(BytesIO(plots.to_png(gram_bars(), dots_per_inch=40)))
    np.testing.assert_array_equal(picture[0, 0], 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gram_bars(grams=np.array([1, np.nan, 2.0])), "^grams of 'butter' is nan"),
        (lambda: gram_bars(low=np.array([-1.0, 0, 0])), "^low of 'flour' is -1.0"),
        (lambda: gram_bars(high=np.zeros(3)), "^low of 'flour' is 200.0, must be at most high=0.0"),
        (lambda: plots.attribution_bars(FOODS, np.ones(2)), "^values has 2 values for 3 names"),
        (lambda: plots.attribution_bars(FOODS, np.array([0, np.inf, 0])), "'butter' is inf"),
        (
            lambda: plots.attention_heatmap(
                np.full((1, 3), 0.5), row_labels=["egg"], column_labels=FOODS
            ),
            "^weights of 'egg' sum to 1.5",
        ),
        (
            lambda: plots.attention_heatmap(
                np.zeros((2, 3)), row_labels=["egg"], column_labels=FOODS
            ),
            r"^weights have shape \(2, 3\), but there are 1 row labels",
        ),
        (lambda: training_curves(metric="recall"), "^rows: none of 5 holds a finite 'recall'"),
        (lambda: training_curves(baselines={"EASE": np.nan}), "^baselines of 'EASE' is nan"),
        (
            lambda: plots.metric_bars(
                FOODS, np.ones((2, 1)), low=np.ones((2, 1)), high=np.ones((2, 1)), labels=["a"]
            ),
            "but there are 3 methods",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
