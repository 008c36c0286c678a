"""One update of the parameters as one pure, jitted function."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from recipe_jax.sharding import batch_sharding, replicated
from recipe_jax.training.state import TrainState

Tree: TypeAlias = Any
Objective: TypeAlias = Callable[[Tree, Any, PRNGKeyArray], tuple[Float[Array, ""], Tree]]
"""`(params, batch, key) -> (loss, terms)`: what to minimise, and named scalars to report."""


class StepMetrics(NamedTuple):
    """What a step reports.

    Attributes:
        loss: the objective before the update.
        grad_norm: Euclidean norm of all gradients together, before clipping.
        terms: the objective's own scalars.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    terms: Tree


TrainStep: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
    *,
    num_microbatches: int = 1,
    weigh: Callable[[Any], Float[Array, ""]] | None = None,
) -> TrainStep:
    """Compile `(state, batch) -> (state, metrics)`.

    The old state is donated: its memory is reused and it must not be touched again.  Each shape of
    batch compiles once.

    Args:
        objective: differentiated with respect to its first argument.  Its key is the run's key
            folded with the step, so a resumed run draws what an uninterrupted one would have.
        optimizer: an Optax transformation.
        shardings: of the state, as `state_shardings` gives; they are pinned on the way in and on
            the way out, so that no step drifts from them.  None keeps everything where it is, on
            one device.
        num_microbatches: parts of a batch whose gradients are summed before the update, one after
            the other, so that activations of one part exist at a time.
        weigh: what a part counts, such as the number of its tokens where the objective is a mean
            over tokens: the step is then that of the whole batch.  All count alike if None.

    Raises:
        ValueError: when called with a batch that cannot be cut into that many parts.
    """
    gradient = jax.value_and_grad(objective, has_aux=True)
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches={num_microbatches} must be at least 1")
    if num_microbatches > 1:
        gradient = _accumulated(gradient, num_microbatches, weigh)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, terms), grads = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads), terms)
        return TrainState(params, opt_state, state.step + 1, state.key), metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    mesh = jax.tree.leaves(shardings)[0].mesh
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def _accumulated(
    gradient: Callable[..., Any], count: int, weigh: Callable[[Any], Float[Array, ""]] | None
) -> Callable[..., Any]:
    """The same function, evaluated part by part and averaged."""

    def part_of(array: Any) -> Array:
        if array.shape[0] % count:
            raise ValueError(
                f"a batch of {array.shape[0]} examples cannot be cut into num_microbatches={count}"
            )
        # Every part takes some rows of every device.
        return jnp.swapaxes(jnp.reshape(array, (-1, count, *array.shape[1:])), 0, 1)

    def average(params: Tree, batch: Any, key: PRNGKeyArray) -> Any:
        parts, keys = jax.tree.map(part_of, batch), jax.random.split(key, count)
        weights = jnp.ones(count) if weigh is None else jax.lax.map(weigh, parts)
        weights = weights / jnp.sum(weights)

        def add(total: Tree, part: Any) -> tuple[Tree, None]:
            batch, key, weight = part
            found = gradient(params, batch, key)
            return jax.tree.map(lambda sum_, x: sum_ + weight * x, total, found), None

        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts), keys[0])
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, nothing, (parts, keys, weights))[0]

    return average
