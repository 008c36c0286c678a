"""Pictures of positions and attention hold the numbers they are given."""

import numpy as np
import pytest

from recipe_jax.plots import to_png
from recipe_jax.transformer_plots import attention_grid, position_heatmap, rotation_heatmap

RNG = np.random.default_rng(0)


def drawn(axes) -> np.ndarray:
    return axes.collections[0].get_array().reshape(-1)


def test_position_heatmap_holds_the_encoding_first_position_on_top():
    encoding = RNG.normal(size=(5, 4))
    figure = position_heatmap(encoding, title="learned")
    axes = figure.axes[0]
    np.testing.assert_allclose(drawn(axes), encoding.reshape(-1))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    low, high = axes.collections[0].get_clim()
    assert low == -high == -np.abs(encoding).max()
    assert to_png(figure).startswith(b"\x89PNG")


def test_rotation_heatmap_is_the_cosine_of_position_times_frequency():
    frequencies = np.array([1.0, 0.1, 0.0])
    axes = rotation_heatmap(frequencies, 7).axes[0]
    expected = np.cos(np.arange(7)[:, None] * frequencies)
    np.testing.assert_allclose(drawn(axes), expected.reshape(-1))


def test_every_layer_and_head_has_its_picture():
    weights = RNG.random((2, 3, 4, 4))
    figure = attention_grid(weights, tokens=list("abcd"), title="attention")
    assert len(figure.axes) == 6
    for axes, expected in zip(figure.axes, weights.reshape(6, -1), strict=True):
        np.testing.assert_allclose(drawn(axes), expected)
        assert axes.collections[0].get_clim() == (0, 1)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "head 0",
        "head 1",
        "head 2",
    ]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list("abcd")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: position_heatmap(np.full((2, 2), np.nan)), "encoding holds values"),
        (lambda: rotation_heatmap(np.ones(2), 0), "num_positions=0 must be at least 1"),
        (lambda: attention_grid(-np.ones((1, 1, 2, 2))), "weights hold -1, must not be negative"),
        (lambda: attention_grid(np.ones((1, 1, 2, 2)), tokens=["a"]), "1 tokens label 2 keys"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
