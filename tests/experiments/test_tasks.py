"""Training tasks: what the loss divides by, and which flags fit which model."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from tolerances import assert_close

from experiments.recipes.model_card import model_card
from experiments.recipes.prepared import read_prepared
from experiments.recipes.tasks import Flags, weighed_batches
from experiments.recipes.train import TASKS, make_task
from experiments.record import command_line
from recipe_jax.batches import RecipeBatch
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal
from recipe_jax.models.joint_recipes import JointLogits
from recipe_jax.models.masked_set_generator import MaskedLogits

TINY = {"embed_dim": 8, "num_layers": 1, "num_heads": 1}


@functools.cache
def sample():
    return read_prepared(None)


@functools.cache
def task(model: str):
    return make_task(Flags(model=model, **TINY), sample())


class Uniform:
    """Stands for a model that finds all foods, sizes and bins alike."""

    def __init__(self, model: str):
        self.model = model

    def __call__(self, molecules, foods, *others, key):
        (b, m), v = foods.shape, len(sample().foods)
        logits = jnp.zeros((b, m + 1, v + 1))
        return {
            "masked-set": MaskedLogits(logits[:, 0, :-1], jnp.zeros((b, 26))),
            "joint": JointLogits(logits, jnp.zeros((b, m, 64))),
            "autoregressive-amounts": jnp.zeros((b, m, 64)),
        }.get(self.model, logits)


def batch_of(size: int, grams: float = 0.0) -> RecipeBatch:
    foods = jnp.tile(jnp.arange(size)[None], (64, 1))
    return RecipeBatch(foods, jnp.full(64, size), jnp.full((64, size), grams))


def mean_loss(model: str, batch: RecipeBatch) -> float:
    keys = jax.random.split(jax.random.key(0), 40)
    losses = jax.vmap(lambda key: task(model).loss(Uniform(model), batch, key)[0])(keys)
    return float(losses.mean())


@pytest.mark.parametrize(
    ("model", "short", "long"),
    [("generator", 5, 21), ("encoder-decoder", 3.5, 11.5), ("masked-set", 4, 20), ("joint", 5, 21)],
)
def test_a_choice_counts_the_same_in_recipes_of_any_size(model: str, short: float, long: float):
    """Four foods and twenty: the ratio of losses is that of expected choices, of log v nats."""
    ratio = mean_loss(model, batch_of(20)) / mean_loss(model, batch_of(4))
    assert ratio == pytest.approx(long / short, rel=0.1)


@pytest.mark.parametrize("model", ["generator", "encoder-decoder", "masked-set", "joint"])
def test_the_loss_is_near_nats_per_choice(model: str):
    size = round(float(task(model).training.sizes.mean()))
    loss = mean_loss(model, batch_of(size))
    assert loss == pytest.approx(math.log(len(sample().foods)), rel=0.15)


def test_an_amount_counts_the_same_in_recipes_of_any_size():
    long, short = (mean_loss("autoregressive-amounts", batch_of(n, 50.0)) for n in (20, 4))
    assert long / short == pytest.approx(5.0, rel=1e-4)


def test_only_models_of_grams_read_grams():
    """The joint model's loss has the foods' part where no amount is known, and more where one is"""
    foods, both = (mean_loss("joint", batch_of(6, grams)) for grams in (0.0, 50.0))
    assert_close(foods, mean_loss("generator", batch_of(6)))
    assert both > foods


def test_every_model_has_a_task_of_its_own_configuration():
    kinds = {type(task(model).cfg) for model in TASKS}
    assert len(kinds) == len(TASKS) - 1  # the mean model is a mixture of one
    plain = task("mean-amounts").cfg
    assert plain.num_components == 1 and plain.shared_scale


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("none", NoPositions()),
        ("sinusoidal", Sinusoidal()),
        ("learned", Learned(26)),
        ("alibi", Alibi()),
        ("rope", Rope()),
    ],
)
def test_positions_reach_the_configuration(name: str, positions: NoPositions):
    assert make_task(Flags(positions=name, **TINY), sample()).cfg.positions == positions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "masked-set", "positions": "rope"}, "--positions rope: --model masked-set"),
        ({"model": "joint", "loss": "next-food"}, "--loss next-food: --model joint knows no loss"),
        ({"member_dropout": 0.2}, "--member-dropout 0.2 is for models of amounts"),
    ],
)
def test_flags_of_another_model_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Flags(**fields)


def test_held_out_amounts_are_whole_recipes():
    setting = type("Any", (), {"prepared": sample(), "num_foods": len(sample().foods)})()
    batches = weighed_batches(setting, "validation", at_once=7)
    assert len({batch.foods.shape[1] for batch in batches}) == 1
    for batch in batches:
        members = np.arange(batch.foods.shape[1]) < batch.lengths[:, None]
        assert (batch.grams[members] > 0).all() and (batch.grams[~members] == 0).all()


def test_the_card_counts_the_recipes_that_were_learned_from():
    card = model_card(Flags(), sample(), {"step": 7}, num_recipes=191)
    assert "Learned from: 191 recipes" in card and "7 steps of 128 recipes" in card


def test_a_records_command_trains_the_same_again(tmp_path: Path):
    flags = Flags(
        model="generator",
        data=tmp_path,
        run=tmp_path / "run",
        learning_rate=1e-4,
        sources=("flavour", "learned"),
        pairs=False,
        minutes=2.5,
        progress=False,
    )
    command = command_line("experiments.recipes train", flags, always=("model",))
    assert str(tmp_path) not in command
    words = command.split()[4:]
    found = tyro.cli(Flags, args=words)
    same = dataclasses.replace(flags, data=Path("DIR"), run=Path("RUN"), progress=True)
    assert found == same
