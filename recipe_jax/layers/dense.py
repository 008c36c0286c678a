"""A dense layer: linear map, norm, activation, dropout and a residual as values."""

import dataclasses
from typing import Literal

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from recipe_jax.layers.dropout import check_rate, dropout
from recipe_jax.layers.feed_forward import Activation, Linear, activate, check_activation, is_gated
from recipe_jax.layers.initializers import FanInitializer, lecun_normal
from recipe_jax.layers.norms import make_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Shape of a dense layer.

    Attributes:
        in_dim: width of the input.
        out_dim: width of the output.
        activation: pointwise; a gated unit, which takes two maps, is `FeedForward`'s.
        norm: of the sums, before the activation.
        dropout_rate: probability that a unit is dropped.
        residual: whether the input is added to the output (He et al. 2016, arXiv:1512.03385);
            then both are equally wide.
        use_bias: whether the linear map adds a bias.
    """

    in_dim: int
    out_dim: int
    activation: Activation = "identity"
    norm: Literal["none", "rms", "layer"] = "none"
    dropout_rate: float = 0.0
    residual: bool = False
    use_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("in_dim", "out_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_activation(self.activation)
        if is_gated(self.activation):
            raise ValueError(f"activation={self.activation!r} is a gated unit: use FeedForward")
        if self.norm not in ("none", "rms", "layer"):
            raise ValueError(f'norm={self.norm!r} must be "none", "rms" or "layer"')
        check_rate(self.dropout_rate)
        if self.residual and self.in_dim != self.out_dim:
            raise ValueError(
                f"residual=True needs in_dim={self.in_dim} equal to out_dim={self.out_dim}"
            )


class Dense(nnx.Module):
    """`dropout(activation(norm(x W + b)))`, plus `x` where there is a residual.

    Args:
        cfg: its shape.
        axes: logical names of input and output.
        initializer: of `W`; `b` starts at zero.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: DenseConfig,
        *,
        axes: tuple[str | None, str | None] = ("embed", "mlp"),
        initializer: FanInitializer = lecun_normal,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.linear = Linear(
            cfg.in_dim,
            cfg.out_dim,
            axes=axes,
            initializer=initializer,
            use_bias=cfg.use_bias,
            rngs=rngs,
        )
        self.norm = None if cfg.norm == "none" else make_norm(cfg.norm, cfg.out_dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... e"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "... f"]:
        """Map the last axis; `key` is for dropout, None in evaluation."""
        hidden = self.linear(x)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = dropout(activate(self.cfg.activation, hidden), self.cfg.dropout_rate, key)
        return x + hidden if self.cfg.residual else hidden
