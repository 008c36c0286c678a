"""Training gives the same losses whichever implementation attends."""

import functools
import importlib.util
import json
import types
from pathlib import Path

import jax
import pytest
from interpreted import run_interpreted
from recipe_kernels import ShardedAttention, attention
from recipe_kernels.attention import fused, pallas_tpu
from tiny_trainings import TRAININGS
from tolerances import assert_close

from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.sharding import make_mesh

ATTENDS = {
    "tiled": functools.partial(attention, implementation="tiled"),
    "chosen": attention,
    "pallas": functools.partial(attention, implementation="pallas"),
    "sharded": ShardedAttention(make_mesh("data=2,fsdp=2,tensor=2")),
}


@pytest.fixture
def pallas_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its interpreter."""
    interpreted = types.SimpleNamespace(
        limits=pallas_tpu.limits,
        forward=functools.partial(pallas_tpu.forward, interpret=True),
        backward=functools.partial(pallas_tpu.backward, interpret=True),
    )
    kernels = fused._kernels
    monkeypatch.setattr(fused, "_MADE_FOR", {"pallas": "cpu"})
    monkeypatch.setattr(
        fused, "_kernels", lambda name: interpreted if name == "pallas" else kernels(name)
    )


@functools.cache
def by_reference(training: str) -> jax.Array:
    losses = TRAININGS[training](dot_product_attention)
    assert losses[-1] < losses[0] - 0.1
    return losses


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", ATTENDS)
def test_it_learns_alike(name, training, pallas_on_cpu):
    assert_close(TRAININGS[training](ATTENDS[name]), by_reference(training), "gradient")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_it_learns_alike_by_triton():
    found = json.loads(run_interpreted(Path(__file__).with_name("train_interpreted.py"))[-1])
    assert found.keys() == TRAININGS.keys()
    for training, losses in found.items():
        assert_close(jax.numpy.asarray(losses), by_reference(training), "gradient")
