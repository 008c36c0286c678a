"""One step: the update Optax defines, compiled once, on any mesh with the same result."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_run import TinyBatches, TinyModel, make_model, make_objective, make_optimizer
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.sharding import bytes_per_device, make_mesh, shard_batch
from recipe_jax.training.averaging import track_average
from recipe_jax.training.state import TrainState, init_sharded, init_state, state_shardings
from recipe_jax.training.step import make_train_step

KEY = jax.random.key(5)


def loss_curve(mesh_spec: str | None, num_steps: int = 12) -> list[float]:
    optimizer = make_optimizer()
    if mesh_spec is None:
        fn, params = purify(make_model())
        state, shardings, mesh = init_state(params, optimizer, KEY), None, None
    else:
        mesh = make_mesh(mesh_spec)
        fn, state, shardings = init_sharded(make_model, optimizer, KEY, mesh)
    step = make_train_step(make_objective(fn), optimizer, shardings)
    losses = []
    for _, batch in zip(range(num_steps), TinyBatches(), strict=False):
        state, metrics = step(state, batch if mesh is None else shard_batch(batch, mesh))
        losses.append(float(metrics.loss))
    return losses


def test_a_step_is_the_optimizers_update_of_the_gradient():
    fn, params = purify(make_model())
    objective, optimizer = make_objective(fn), optax.sgd(0.1)
    batch = next(TinyBatches())
    grads = jax.grad(objective, has_aux=True)(params, batch, jax.random.fold_in(KEY, 0))[0]
    expected = jax.tree.map(lambda p, g: np.asarray(p - 0.1 * g), params, grads)
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
    state, metrics = make_train_step(objective, optimizer)(
        init_state(params, optimizer, KEY), batch
    )
    assert_close(state.params, expected)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics.grad_norm, squares**0.5, rtol=1e-5)
    assert set(metrics.terms) == {"mean_error"}


def test_each_step_draws_its_own_noise():
    def objective(params, batch, key):
        del batch
        return params["w"].sum(), {"noise": jax.random.normal(key)}

    step = make_train_step(objective, optax.sgd(0.0))
    state = init_state({"w": jnp.ones(2)}, optax.sgd(0.0), KEY)
    noises = []
    for _ in range(3):
        state, metrics = step(state, np.zeros(1))
        noises.append(float(metrics.terms["noise"]))
    assert len(set(noises)) == 3


def test_the_old_state_is_donated():
    fn, params = purify(make_model())
    state = init_state(params, make_optimizer(), KEY)
    make_train_step(make_objective(fn), make_optimizer())(state, next(TinyBatches()))
    assert params["up"].is_deleted()
    assert not KEY.is_deleted()


@pytest.mark.parametrize("mesh_spec", ["data=2,fsdp=4", "data=4,fsdp=2", "fsdp=4,tensor=2"])
def test_eight_devices_learn_like_one(mesh_spec):
    losses = loss_curve(mesh_spec)
    assert_close(np.array(losses), np.array(loss_curve(None)), "gradient")
    assert losses[-1] != losses[0]


def test_a_pinned_step_compiles_once_per_shape_and_keeps_its_shardings(caplog):
    mesh, optimizer = make_mesh("data=2,fsdp=4"), make_optimizer()
    fn, state, shardings = init_sharded(make_model, optimizer, KEY, mesh)
    step = make_train_step(make_objective(fn), optimizer, shardings)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _, batch in zip(range(8), TinyBatches(), strict=False):
            state, _ = step(state, shard_batch(batch, mesh))
    compiled = [line for line in caplog.messages if "Finished XLA compilation of jit(step)" in line]
    assert len(compiled) == 2  # one per shape of batch
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


def test_initialisation_does_not_depend_on_the_mesh():
    _, params = purify(make_model())
    for spec in ("fsdp=8", "data=2,fsdp=2,tensor=2"):
        _, state, _ = init_sharded(make_model, make_optimizer(), KEY, make_mesh(spec))
        assert_close(state.params, params, "elementwise")


def memory(hidden_axis: str) -> tuple[int, int]:
    fn, params = purify(TinyModel(hidden_axis=hidden_axis, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(1e-3)
    shardings = state_shardings(fn, optimizer, make_mesh("fsdp=4,tensor=2"))
    whole = jax.eval_shape(lambda p: init_state(p, optimizer, KEY), params)
    arrays = TrainState(whole.params, whole.opt_state, whole.step, ())
    pinned = TrainState(shardings.params, shardings.opt_state, shardings.step, ())
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    return bytes_per_device(arrays, pinned), total


def test_parameters_and_optimizer_state_are_split_over_the_mesh():
    on_one_device, total = memory("mlp")
    assert on_one_device <= total / 8 * 1.1


def test_one_wrong_axis_name_is_seen():
    on_one_device, total = memory("head_dim")
    assert on_one_device > total / 8 * 1.1
    with pytest.raises(ValueError, match="parameter down/0 has the logical axis 'mpl'"):
        memory("mpl")


def test_optimizer_state_lies_where_its_parameters_lie():
    fn, _ = purify(make_model())
    optimizer = optax.chain(optax.adamw(1e-3), track_average(0.9))
    shardings = state_shardings(fn, optimizer, make_mesh("data=2,fsdp=4"))
    adam, average = shardings.opt_state[0][0], shardings.opt_state[1]
    assert adam.mu == adam.nu == average.average == shardings.params
    assert adam.count.is_fully_replicated
    assert not shardings.params["up"].is_fully_replicated


def test_optimizer_state_of_another_shape_is_replicated():
    fn, _ = purify(make_model())
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=4)
    shardings = state_shardings(fn, optimizer, make_mesh("fsdp=8"))
    assert shardings.opt_state.v_row["up"].is_fully_replicated


def mean_objective(fn):
    """A mean over some of the examples: those with a positive first input count."""

    def counts(batch):
        return (batch.inputs[:, 0] > 0).astype(jnp.float32)

    def objective(params, batch, key):
        del key
        error = jnp.mean((fn.bind(params)(batch.inputs) - batch.targets) ** 2, axis=1)
        weights = counts(batch)
        loss = (weights * error).sum() / jnp.maximum(weights.sum(), 1.0)
        return loss, {"twice": 2 * loss}

    return objective, lambda batch: counts(batch).sum()


@pytest.mark.parametrize("mesh_spec", [None, "data=2,fsdp=2,tensor=2"])
def test_parts_of_a_batch_sum_to_the_whole(mesh_spec):
    optimizer, batch = make_optimizer(), next(TinyBatches())

    def updated(num_microbatches):
        mesh = None if mesh_spec is None else make_mesh(mesh_spec)
        if mesh is None:
            fn, params = purify(make_model())
            state, shardings = init_state(params, optimizer, KEY), None
        else:
            fn, state, shardings = init_sharded(make_model, optimizer, KEY, mesh)
        objective, weigh = mean_objective(fn)
        step = make_train_step(
            objective, optimizer, shardings, num_microbatches=num_microbatches, weigh=weigh
        )
        return step(state, batch if mesh is None else shard_batch(batch, mesh))

    (whole, expected), (parts, metrics) = updated(1), updated(4)
    assert_close(parts.params, whole.params, kind="gradient")
    assert_close(metrics, expected, kind="gradient")


def test_a_batch_that_cannot_be_cut_is_refused():
    fn, params = purify(make_model())
    step = make_train_step(make_objective(fn), make_optimizer(), num_microbatches=3)
    with pytest.raises(ValueError, match="16 examples cannot be cut into num_microbatches=3"):
        step(init_state(params, make_optimizer(), KEY), next(TinyBatches()))
    with pytest.raises(ValueError, match="num_microbatches=0 must be at least 1"):
        make_train_step(make_objective(fn), make_optimizer(), num_microbatches=0)
