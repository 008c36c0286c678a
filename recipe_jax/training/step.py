"""One update of the parameters as one pure, jitted function."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
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
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
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
