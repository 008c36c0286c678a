"""Low-rank adapters: a trained correction beside a frozen weight."""

import dataclasses
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from recipe_jax.layers.initializers import lecun_normal, zeros
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.products import project

Target: TypeAlias = Literal["query", "key", "value", "output", "gate", "up", "down"]
"""A weight of a block: four of attention, three of a gated feed-forward layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """Which weights get an adapter, and how large (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: of each correction.
        alpha: the correction is scaled by `alpha / rank` (section 4.1).
        targets: weights that get one.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        unknown = [name for name in self.targets if name not in get_args(Target)]
        if unknown or not self.targets:
            raise ValueError(
                f"targets={self.targets} must be some of {', '.join(get_args(Target))}"
            )


class Adapter(nnx.Module):
    """`alpha / rank` times `x A B`; `B` starts at zero, and with it the correction.

    Args:
        cfg: rank and scale.
        in_shape: axes that are summed over.
        out_shape: axes that the weight gives.
        in_axes: logical names of the former.
        out_axes: logical names of the latter.
        rngs: what `A` is drawn from.
    """

    def __init__(
        self,
        cfg: LowRank,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        in_axes: tuple[str | None, ...],
        out_axes: tuple[str | None, ...],
        *,
        rngs: nnx.Rngs,
    ):
        self.scale, self.num_summed = cfg.alpha / cfg.rank, len(in_shape)
        letters = " ".join("abc"[: self.num_summed])
        draw = lecun_normal(f"{letters} -> r")
        self.down = parameter(rngs.params(), (*in_shape, cfg.rank), (*in_axes, None), draw)
        self.up = parameter(rngs.params(), (cfg.rank, *out_shape), (None, *out_axes), zeros)

    def __call__(self, x: Float[Array, "..."]) -> Float32[Array, "..."]:
        """The correction of the weight's product with `x`, in float32."""
        inner = project(x, self.down[...], num_summed=self.num_summed).astype(x.dtype)
        return self.scale * project(inner, self.up[...])


def make_adapter(
    cfg: LowRank | None,
    target: Target,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    rngs: nnx.Rngs,
) -> Adapter | None:
    """The adapter of a weight of shape `in_shape + out_shape`; None where it gets none."""
    if cfg is None or target not in cfg.targets:
        return None
    split = len(in_shape)
    return Adapter(cfg, in_shape, out_shape, axes[:split], axes[split:], rngs=rngs)


def merged_weight(
    weight: Float[Array, "..."], down: Float[Array, "..."], up: Float[Array, "..."], scale: float
) -> Float32[Array, "..."]:
    """A weight with its correction added, so that the adapter is no longer needed.

    Args:
        weight: what the adapter corrects.
        down: the adapter's `A`.
        up: the adapter's `B`.
        scale: `alpha / rank`.
    """
    wide = (x.astype(jnp.float32) for x in (weight, down, up))
    weight, down, up = wide
    return weight + scale * project(down, up)
