"""The command's own training: eight devices learn like one, and one wrong axis name is seen."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tolerances import assert_close

from experiments.recipes import train as training
from experiments.recipes.prepared import Prepared, read_prepared
from recipe_jax.functional import PureModule, abstract
from recipe_jax.huggingface import make_module
from recipe_jax.sharding import DEFAULT_RULES, bytes_per_device, make_mesh, param_shardings
from recipe_jax.training.loop import FitPlan
from recipe_jax.training.tracker import read_metrics

E, HEADS, MLP = 24, 6, 96  # unlike each other and unlike any other dimension of a parameter
SPLIT = "fsdp=4,tensor=2"


@pytest.fixture(scope="module")
def sample() -> Prepared:
    return read_prepared(None)


def loss_curve(
    run: Path, sample: Prepared, mesh: str | None, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """The loss of each step, as the run's own metrics tell it."""
    flags = training.Flags(
        run=run,
        steps=6,
        batch_size=96,  # so large that all recipes share one padded size: one compilation
        learning_rate=0.03,
        embed_dim=16,
        num_layers=1,
        num_heads=2,
        mesh=mesh,
        progress=False,
    )
    monkeypatch.setattr(training, "FitPlan", functools.partial(FitPlan, log_every=1))
    task = training.make_task(flags, sample)
    task = dataclasses.replace(task, validate=lambda fn, params: {"mrr": 0.0})
    training.train(flags, task)
    rows = read_metrics(run / "metrics.jsonl")
    return np.array([row["loss"] for row in rows if row["split"] == "train"])


def test_eight_devices_train_the_generator_like_one(
    tmp_path: Path, sample: Prepared, monkeypatch: pytest.MonkeyPatch
):
    assert jax.device_count() == 8
    one = loss_curve(tmp_path / "one", sample, None, monkeypatch)
    eight = loss_curve(tmp_path / "eight", sample, "data=2,fsdp=4", monkeypatch)
    assert len(one) == 6 and one[-1] < one[0] - 0.1
    assert_close(eight, one, "gradient")


@pytest.fixture(scope="module")
def generator(sample: Prepared) -> PureModule[Any]:
    task = training.make_task(training.Flags(embed_dim=E, num_heads=HEADS, num_layers=1), sample)
    return abstract(lambda: make_module(task.model_type, task.cfg))[0]


def bytes_by_shape(fn: PureModule[Any]) -> int:
    """What a device should hold, by sizes alone: names are not asked."""
    vocabulary = fn.shapes["bias"].shape[0]

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        by_width = 4 if E in leaf.shape else 1
        by_part = 2 if {HEADS, MLP, vocabulary} & set(leaf.shape) else 1
        return leaf.size * leaf.dtype.itemsize // (by_width * by_part)

    return sum(map(size, jax.tree.leaves(fn.shapes)))


def bytes_by_name(fn: PureModule[Any], axes: Any, rules=DEFAULT_RULES) -> int:
    return bytes_per_device(fn.shapes, param_shardings(axes, fn.shapes, make_mesh(SPLIT), rules))


def one_name_exchanged(axes: Any) -> Iterator[tuple[str, Any]]:
    """The axes of all parameters, with another name in one place; each place once."""
    leaves, structure = jax.tree.flatten(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for i, names in enumerate(leaves):
        for place, name in enumerate(names):
            if name in ("embed", "heads", "kv_heads", "mlp"):
                changed = (*names[:place], "head_dim", *names[place + 1 :])
                both = structure.unflatten([*leaves[:i], changed, *leaves[i + 1 :]])
                yield f"{names}, place {place}", both


def test_each_parameter_is_split_and_one_wrong_axis_name_is_seen(generator: PureModule[Any]):
    expected = bytes_by_shape(generator)
    assert bytes_by_name(generator, generator.axes) == expected
    mutations = list(one_name_exchanged(generator.axes))
    assert len(mutations) > 10
    for what, axes in mutations:
        assert bytes_by_name(generator, axes) > expected, what


@pytest.mark.parametrize("name", ["embed", "heads", "mlp", "vocab"])
def test_one_wrong_row_of_the_table_is_seen(name: str, generator: PureModule[Any]):
    rules = {**DEFAULT_RULES, name: None}
    assert bytes_by_name(generator, generator.axes, rules) > bytes_by_shape(generator)
    del rules[name]
    with pytest.raises(ValueError, match=f"has the logical axis '{name}'"):
        bytes_by_name(generator, generator.axes, rules)
