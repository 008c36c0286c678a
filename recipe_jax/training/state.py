"""What a training step takes and gives: parameters, optimizer state, step and random key."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int32, PRNGKeyArray

from recipe_jax.functional import PureModule, abstract, purify
from recipe_jax.sharding import DEFAULT_RULES, Mesh, Rules, param_shardings, replicated

Tree: TypeAlias = Any
ModuleT = TypeVar("ModuleT", bound=nnx.Module)


class TrainState(NamedTuple):
    """All that changes in training; a pytree.

    Attributes:
        params: nested dict of arrays.
        opt_state: what the Optax optimizer remembers.
        step: how many updates have been made.
        key: the run's random key; a step uses `fold_in(key, step)`, so it never changes.
    """

    params: Tree
    opt_state: Tree
    step: Int32[Array, ""]
    key: PRNGKeyArray


def init_state(
    params: Tree, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> TrainState:
    """The state before the first update.

    A training step uses up the buffers of `params` with it, but not the caller's `key`.
    """
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.copy(key))


def state_shardings(
    fn: PureModule[Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> TrainState:
    """The sharding of every array of a `TrainState`.

    What the optimizer keeps for a parameter lies where the parameter lies: it is recognised by the
    parameter's path at the end of its own and by an equal shape.  Everything else is replicated.
    """
    shardings = param_shardings(fn.axes, fn.shapes, mesh, rules)
    of_path = {
        path: (shape.shape, sharding)
        for (path, shape), sharding in zip(
            jax.tree_util.tree_leaves_with_path(fn.shapes), jax.tree.leaves(shardings), strict=True
        )
    }

    def like_its_parameter(path: tuple[Any, ...], leaf: Any) -> Any:
        for start in range(len(path)):
            shape, sharding = of_path.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    opt_state = jax.eval_shape(optimizer.init, fn.shapes)
    everywhere: Any = replicated(mesh)
    return TrainState(
        params=shardings,
        opt_state=jax.tree_util.tree_map_with_path(like_its_parameter, opt_state),
        step=everywhere,
        key=everywhere,
    )


def init_sharded(
    make_module: Callable[[], ModuleT],
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> tuple[PureModule[ModuleT], TrainState, TrainState]:
    """Initialise a model straight into its shards: no device ever holds the whole of it.

    Args:
        make_module: builds the module, with random streams that it makes itself.
        optimizer: gives the optimizer state.
        key: the run's random key.
        mesh: the devices.
        rules: logical axis -> mesh axis.

    Returns:
        `fn`, the state and its shardings, for `make_train_step`.  The same seed gives the same
        parameters on every mesh, up to rounding.
    """
    fn, _ = abstract(make_module)
    shardings = state_shardings(fn, optimizer, mesh, rules)

    def initial_state(key: PRNGKeyArray) -> TrainState:
        return init_state(purify(make_module())[1], optimizer, key)

    return fn, jax.jit(initial_state, out_shardings=shardings)(key), shardings
