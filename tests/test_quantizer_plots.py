"""Pictures of quantizers show the numbers that they are given."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from recipe_jax import plots
from recipe_jax.quantizer_plots import code_tree, code_usage

CODES = np.array([[1, 0], [0, 2], [0, 1], [0, 1], [1, 3]])


def test_usage_falls_from_the_most_frequent_code_to_those_never_used():
    figure = code_usage(np.array([[0, 5, 1], [2, 2, 2]]))
    first, second = figure.axes
    heights = first.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == 5
    assert [axes.get_title(loc="left") for axes in (first, second)] == [
        "level 0: 2 of 3 used",
        "level 1: 3 of 3 used",
    ]
    assert second.lines[0].get_ydata()[0] == 2  # were all used alike
    assert imread(BytesIO(plots.to_png(figure))).std() > 0


def test_the_tree_tells_groups_from_items_alone_and_from_ids_that_are_shared():
    (axes,) = code_tree(CODES).axes
    shades = np.asarray(axes.collections[0].get_array()).reshape(2, 5)
    # In order of codes: 01 01 02 10 13.  Groups 000 11, then 2 that share, and three alone.
    np.testing.assert_array_equal(shades, [[0, 0, 0, 1, 1], [2, 2, 4, 4, 4]])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["level 0: 0% alone", "level 1: 60% alone"]


def test_of_many_items_an_even_selection_is_drawn():
    codes = np.stack([np.arange(5000) // 2500, np.arange(5000)], axis=1)
    (axes,) = code_tree(codes).axes
    shades = np.asarray(axes.collections[0].get_array()).reshape(2, -1)
    assert shades.shape == (2, 2000)
    assert shades[0].sum() == 1000  # half of the picture


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_usage(np.zeros((0, 3), int)), "must be of codes"),
        (lambda: code_usage(np.array([[1, -1]])), "none negative"),
        (lambda: code_tree(CODES[:0]), "hold no item"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
