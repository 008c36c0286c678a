"""Meshes are read strictly, parameters lie where the table says, batches are split by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from recipe_jax.sharding import (
    DEFAULT_RULES,
    bytes_per_device,
    gather_json,
    initialize_distributed,
    make_mesh,
    param_shardings,
    shard_batch,
)


def specs(axes, shapes, mesh, rules=DEFAULT_RULES):
    structs = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {
        name: sharding.spec
        for name, sharding in param_shardings(axes, structs, mesh, rules).items()
    }


def test_mesh_names_and_sizes():
    mesh = make_mesh("data=2,fsdp=4")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize("spec", ["data=2", "data=3,fsdp=3", "fsdp=16"])
def test_mesh_that_does_not_fit_names_value_count_and_rule(spec):
    with pytest.raises(ValueError) as caught:
        make_mesh(spec)
    message = str(caught.value)
    assert repr(spec) in message and "there are 8" in message and "must equal" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "spec", ["", "data", "data=0", "data=-8", "data=x", "rows=8", "data=2,data=4", "data=8,"]
)
def test_unreadable_mesh_is_refused(spec):
    with pytest.raises(ValueError, match=f"--mesh {spec!r}: cannot read"):
        make_mesh(spec)


def test_parameters_follow_the_table():
    axes = {"query": ("embed", "heads", "head_dim"), "bias": ("embed",)}
    shapes = {"query": (16, 4, 8), "bias": (16,)}
    assert specs(axes, shapes, make_mesh("fsdp=4,tensor=2")) == {
        "query": PartitionSpec("fsdp", "tensor", None),
        "bias": PartitionSpec("fsdp"),
    }


def test_what_cannot_be_split_is_replicated():
    axes = {"odd": ("embed",), "twice": ("embed", "embed"), "free": (None,), "heads": ("heads",)}
    shapes = {"odd": (6,), "twice": (8, 8), "free": (8,), "heads": (8,)}
    assert specs(axes, shapes, make_mesh("data=2,fsdp=4")) == {
        "odd": PartitionSpec(None),
        "twice": PartitionSpec("fsdp", None),
        "free": PartitionSpec(None),
        "heads": PartitionSpec(None),
    }


def test_unknown_logical_axis_names_parameter_and_axis():
    with pytest.raises(ValueError, match="parameter block/0/kernel has the logical axis 'hedas'"):
        param_shardings(
            {"block": {0: {"kernel": ("embed", "hedas")}}},
            {"block": {0: {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}},
            make_mesh("fsdp=8"),
        )


def test_rules_that_name_no_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="mesh axis 'fdsp'"):
        specs({"a": ("embed",)}, {"a": (8,)}, make_mesh("fsdp=8"), {"embed": "fdsp"})


def test_bytes_per_device_counts_shards():
    shapes = {"split": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
    mesh = make_mesh("data=2,fsdp=4")
    split = param_shardings({"split": ("embed", None)}, shapes, mesh)
    whole = param_shardings({"split": (None, None)}, shapes, mesh)
    assert bytes_per_device(shapes, split) * 4 == bytes_per_device(shapes, whole) == 256


def test_batch_is_split_over_examples_and_keeps_its_values():
    batch = {"rows": np.arange(48).reshape(16, 3), "scale": np.float32(2)}
    placed = shard_batch(batch, make_mesh("data=2,fsdp=2,tensor=2"))
    assert placed["rows"].sharding.shard_shape((16, 3)) == (4, 3)
    assert placed["scale"].sharding.is_fully_replicated
    np.testing.assert_array_equal(placed["rows"], batch["rows"])


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="a batch of 12 examples cannot be split over 8 devices"):
        shard_batch(np.zeros((12, 2)), make_mesh("data=2,fsdp=4"))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {
            "JAX_COORDINATOR_ADDRESS": "localhost:1",
            "JAX_NUM_PROCESSES": "1",
            "JAX_PROCESS_ID": "0",
        },
    ],
)
def test_one_process_starts_nothing(environment):
    assert initialize_distributed(environment) == 1
    assert not jax.distributed.is_initialized()


def test_processes_by_hand_need_their_number():
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES=''"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_PROCESS_ID": "0"})


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "2",
                "JOB_COMPLETION_INDEX": "1",
            },
            ("a:1", 2, 1),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, ()),
    ],
)
def test_the_environment_decides_who_we_are(monkeypatch, environment, arguments):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    initialize_distributed(environment)
    assert calls == [arguments]


def test_gathering_on_one_process_is_a_list_of_one():
    assert gather_json({"position": [1, "two"]}) == [{"position": [1, "two"]}]
