"""An exponential moving average of the parameters, kept within the optimizer's state."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

Tree: TypeAlias = Any


class AverageState(NamedTuple):
    """The running average and how many updates went into it."""

    num_updates: Int32[Array, ""]
    average: Tree


def track_average(decay: float) -> optax.GradientTransformation:
    """Follow the parameters with an exponential moving average (Polyak & Juditsky 1992).

    Chain it last: it changes no update and sees the parameters as the updates before it leave them,
    `average <- d average + (1 - d) (params + updates)`.  After `n` updates `d` is
    `min(decay, (1 + n) / (10 + n))`, so that the initial parameters are soon forgotten.

    Raises:
        ValueError: if `decay` is not within [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must be at least 0 and below 1, such as 0.999")

    def init(params: Tree) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, AverageState]:
        if params is None:
            raise ValueError(
                "track_average needs the parameters: call update(grads, state, params)"
            )
        num_updates = state.num_updates.astype(jnp.float32)
        keep = jnp.minimum(decay, (1 + num_updates) / (10 + num_updates))
        average = jax.tree.map(
            lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, AverageState(state.num_updates + 1, average)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: Tree) -> Tree:
    """The average that `track_average` keeps in this optimizer state.

    Raises:
        ValueError: if the optimizer has no `track_average`, or more than one.
    """
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
        if isinstance(node, AverageState)
    ]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} averages, expected 1: end the optimizer's "
            "chain with track_average(decay)"
        )
    return found[0].average
