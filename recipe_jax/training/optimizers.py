"""Optimizers for transformers whose parameters name their axes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from recipe_jax.functional import Slice

ScalarOrSchedule = float | optax.Schedule


def matrix_axes(axes: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """Which axes of a stacked weight are summed over and which produced; None if it is no matrix.

    Only weights inside a stack (leading axis "layers") are matrices in the sense of Muon: embedding
    and output tables are not.
    """
    if axes[:1] != ("layers",) or len(axes) < 3 or "embed" not in axes:
        return None
    rest = tuple(range(1, len(axes)))
    if axes[1] == "embed":
        return MuonDimensionNumbers(reduction_axis=1, output_axis=rest[1:])
    return MuonDimensionNumbers(reduction_axis=rest[:-1], output_axis=rest[-1])


def muon_adamw(
    learning_rate: ScalarOrSchedule, axes: Any, *, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon for the matrices inside a stack, AdamW for everything else.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) orthogonalises a matrix's momentum.
    Its updates are scaled to AdamW's root mean square (0.2, as in the latter paper), so that both
    share one learning rate.

    Args:
        learning_rate: of both.
        axes: the parameters' logical axes, `fn.axes`.
        weight_decay: of both, times the learning rate.
    """
    dimensions = jax.tree.map(matrix_axes, axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return muon(
        learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_b2=0.98,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )


def warmup_cosine(
    peak: float, *, warmup_steps: int, num_steps: int, end: float = 0.02
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine to `end` times it at `num_steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps, max(num_steps, warmup_steps + 1), end * peak
    )


def train_only(
    optimizer: optax.GradientTransformation, trained: Any
) -> optax.GradientTransformation:
    """Update some parameters and leave the others as they are, bit for bit.

    The optimizer never sees the others: it keeps no state for them, no decay reaches them and they
    do not count in the norm by which gradients are clipped.

    Args:
        optimizer: of the trained ones.
        trained: a dict like the parameters: true for those that are trained, a `Slice` for those
            of which a part is.
    """

    def init(params: Any) -> Any:
        return optimizer.init(trained_part(params, trained))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        held = None if params is None else trained_part(params, trained)
        found, state = optimizer.update(trained_part(updates, trained), state, held)
        return jax.tree.map(_spread, trained, updates, found), state

    return optax.GradientTransformation(init, update)


def trained_part(params: Any, trained: Any) -> Any:
    """The parameters, or parts of them, that are trained; None in place of the others.

    Args:
        params: nested dict of arrays.
        trained: as for `train_only`.
    """

    def part(is_trained: bool | Slice, leaf: Any) -> Any:
        if isinstance(is_trained, Slice):
            return leaf[is_trained.index]
        return leaf if is_trained else None

    return jax.tree.map(part, trained, params)


def hold_fixed(params: Any, trained: Any) -> Any:
    """The same parameters, of which only the trained ones get a gradient; the others cost none.

    Args:
        params: nested dict of arrays.
        trained: as for `train_only`; an array of which a part is trained gets its gradient.
    """
    return jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)


def _spread(is_trained: bool | Slice, gradient: jax.Array, update: jax.Array | None) -> jax.Array:
    """An update of the whole array; what is frozen gets -0, for `-0 + 0` would be another zero."""
    if isinstance(is_trained, Slice):
        return jnp.full_like(gradient, -0.0).at[is_trained.index].set(update)
    return jnp.full_like(gradient, -0.0) if update is None else update
