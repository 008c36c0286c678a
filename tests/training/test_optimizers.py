"""What is trained moves, what is frozen stays bit for bit and costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_run import TinyBatches, make_model, make_objective

from recipe_jax.functional import Slice, purify
from recipe_jax.training.optimizers import hold_fixed, train_only, trained_part
from recipe_jax.training.state import init_state
from recipe_jax.training.step import make_train_step

TRAINED = {"up": False, "down": {0: True}, "bias": False}


def test_only_what_is_trained_moves_and_has_a_state():
    fn, params = purify(make_model())
    before = jax.tree.map(np.asarray, params)
    optimizer = train_only(optax.adamw(1e-2, weight_decay=0.1), TRAINED)
    state = init_state(params, optimizer, jax.random.key(0))
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * params["down"][0].size
    step = make_train_step(make_objective(fn), optimizer)
    for _, batch in zip(range(3), TinyBatches(), strict=False):
        state, _ = step(state, batch)
    np.testing.assert_array_equal(state.params["up"], before["up"])
    np.testing.assert_array_equal(state.params["bias"], before["bias"])
    assert not np.array_equal(state.params["down"][0], before["down"][0])


def test_gradients_of_what_is_fixed_are_zero_and_the_others_unchanged():
    fn, params = purify(make_model())
    objective, batch = make_objective(fn), next(TinyBatches())

    def grads(hold):
        return jax.grad(lambda p: objective(hold(p), batch, jax.random.key(0))[0])(params)

    some, every = grads(lambda p: hold_fixed(p, TRAINED)), grads(lambda p: p)
    assert not jnp.any(some["up"]) and not jnp.any(some["bias"])
    np.testing.assert_array_equal(some["down"][0], every["down"][0])


def test_only_some_rows_of_a_table_move_however_much_the_optimizer_decays():
    rng = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32).at[1, 1].set(-0.0),
        "matrix": jnp.full((2, 2), -0.0),
    }
    before = jax.tree.map(np.asarray, params)
    trained = {"table": Slice(3, 5), "matrix": False}
    optimizer = train_only(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.5)), trained
    )
    alone = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.5))
    rows = params["table"][3:5]
    state, state_alone = init_state(params, optimizer, jax.random.key(0)), alone.init(rows)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * 6

    def objective(params, batch, key):
        return jnp.sum(batch * params["table"]) + 1e3 * jnp.sum(params["matrix"]), {}

    step = make_train_step(objective, optimizer)
    for number in range(3):
        batch = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) * 10.0**number
        updates, state_alone = alone.update(batch[3:5], state_alone, rows)
        rows = optax.apply_updates(rows, updates)
        state, _ = step(state, batch)
    after = jax.tree.map(np.asarray, state.params)
    # As the optimizer of these rows alone would have it; of the others not a bit, nor a sign of 0.
    np.testing.assert_allclose(after["table"][3:5], rows, rtol=1e-5)
    assert (after["table"][3:5] != before["table"][3:5]).all()
    for name, kept in (("table", np.r_[0:3, 5]), ("matrix", np.r_[0:2])):
        np.testing.assert_array_equal(
            after[name][kept].view(np.int32), before[name][kept].view(np.int32)
        )


def test_the_trained_part_has_nothing_of_the_others():
    params = {"a": np.arange(6).reshape(3, 2), "b": {"c": np.ones(2), "d": np.zeros(2)}}
    part = trained_part(params, {"a": Slice(1, 2), "b": {"c": True, "d": False}})
    np.testing.assert_array_equal(part["a"], [[2, 3]])
    assert part["b"]["d"] is None and part["b"]["c"] is params["b"]["c"]
    columns = trained_part({"a": params["a"]}, {"a": Slice(1, 2, axis=1)})
    np.testing.assert_array_equal(columns["a"], [[1], [3], [5]])
