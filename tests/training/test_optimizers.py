"""What is trained moves, what is frozen stays bit for bit and costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_run import TinyBatches, make_model, make_objective

from recipe_jax.functional import purify
from recipe_jax.training.optimizers import hold_fixed, train_only
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
