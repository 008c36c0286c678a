"""Dense layers: one linear map, and the two or three of a transformer's feed-forward part."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from recipe_jax.layers.dropout import check_rate, dropout, split_key
from recipe_jax.layers.initializers import FanInitializer, lecun_normal, zeros
from recipe_jax.layers.low_rank import Adapter, LowRank, Target
from recipe_jax.layers.norms import NormName, make_norm
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.products import project

Activation: TypeAlias = Literal[
    "identity", "relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu",
    "glu", "reglu", "geglu", "geglu_tanh", "swiglu",
]  # fmt: skip
"""A pointwise function, or in the second row a gated linear unit (Shazeer 2020, arXiv:2002.05202).

`gelu` is exact, `x Phi(x)` (Hendrycks and Gimpel 2016, arXiv:1606.08415), `gelu_tanh` its
approximation.  A gated unit multiplies one linear map by the activation of another: `glu` sigmoid,
`reglu` ReLU, `geglu` GELU, `swiglu` SiLU.
"""


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, `x (1 + erf(x / sqrt 2)) / 2` (arXiv:1606.08415, section 2).

    `jax.nn.gelu` writes it with erfc, which keeps more digits of values below 1e-4 in the left tail
    and makes a training step on CPU a quarter slower.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


_POINTWISE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}
_GATES = {
    "glu": "sigmoid",
    "reglu": "relu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "swiglu": "silu",
}


def activate(name: Activation, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Apply a pointwise activation, or that of a gated unit's gate."""
    return _POINTWISE[_GATES.get(name, name)](x)


def is_gated(name: Activation) -> bool:
    """Whether the activation is a gated linear unit, which has a second input projection."""
    return name in _GATES


def check_activation(name: str) -> None:
    """Refuse an unknown activation."""
    if name not in get_args(Activation):
        raise ValueError(f"activation={name!r} must be one of {', '.join(get_args(Activation))}")


class Linear(nnx.Module):
    """`x W + b`, with float32 accumulation and the input's dtype.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        axes: logical names of the two.
        initializer: of `W`; `b` starts at zero.
        use_bias: whether there is a `b`.
        adapter: low-rank correction of `W`; None for none.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        axes: tuple[str | None, str | None] = ("embed", "mlp"),
        initializer: FanInitializer = lecun_normal,
        use_bias: bool = True,
        adapter: LowRank | None = None,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameter(rngs.params(), (in_dim, out_dim), axes, initializer("e -> f"))
        self.kernel_adapter = (
            None
            if adapter is None
            else Adapter(adapter, (in_dim,), (out_dim,), axes[:1], axes[1:], rngs=rngs)
        )
        self.bias = parameter(rngs.params(), (out_dim,), axes[1:], zeros) if use_bias else None

    def __call__(self, x: Float[Array, "... e"]) -> Float[Array, "... f"]:
        """Map the last axis."""
        y = project(x, self.kernel[...])
        if self.kernel_adapter is not None:
            y += self.kernel_adapter(x)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
        return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Shape of a feed-forward layer.

    Attributes:
        embed_dim: width of its input and output.
        mlp_dim: width between.
        activation: pointwise, or a gated unit.
        dropout_rate: probability that a hidden unit is dropped.
        use_bias: whether the maps add a bias.
        adapters: low-rank corrections of the maps; None for none.
    """

    embed_dim: int
    mlp_dim: int
    activation: Activation = "gelu"
    dropout_rate: float = 0.0
    use_bias: bool = False
    adapters: LowRank | None = None

    def __post_init__(self) -> None:
        check_activation(self.activation)
        check_rate(self.dropout_rate)


class FeedForward(nnx.Module):
    """Expand, activate, contract, each token by itself (Vaswani et al. 2017, section 3.3).

    Args:
        cfg: its shape.
        initializer: of all maps.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: FeedForwardConfig,
        *,
        initializer: FanInitializer = lecun_normal,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg

        def linear(target: Target) -> Linear:
            adapted = cfg.adapters is not None and target in cfg.adapters.targets
            down = target == "down"
            return Linear(
                cfg.mlp_dim if down else cfg.embed_dim,
                cfg.embed_dim if down else cfg.mlp_dim,
                axes=("mlp", "embed") if down else ("embed", "mlp"),
                initializer=initializer,
                use_bias=cfg.use_bias,
                adapter=cfg.adapters if adapted else None,
                rngs=rngs,
            )

        self.up = linear("up")
        self.gate = linear("gate") if is_gated(cfg.activation) else None
        self.down = linear("down")

    def __call__(
        self, x: Float[Array, "... e"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "... e"]:
        """Map each token; `key` is for dropout, None in evaluation."""
        if self.gate is None:
            hidden = activate(self.cfg.activation, self.up(x))
        else:
            hidden = activate(self.cfg.activation, self.gate(x)) * self.up(x)
        hidden = checkpoint_name(hidden, "hidden")
        y = self.down(dropout(hidden, self.cfg.dropout_rate, key))
        return checkpoint_name(y, "output")


class FeedForwardBlock(nnx.Module):
    """A feed-forward layer with its residual, its norm before it or after the sum.

    Pre-norm is `x + dropout(ff(norm(x)))` (Xiong et al. 2020, arXiv:2002.04745), post-norm
    `norm(x + dropout(ff(x)))` (Vaswani et al. 2017, section 3.1).

    Args:
        cfg: shape of the feed-forward layer; its `dropout_rate` acts within and before the sum.
        norm: root mean square or layer norm.
        norm_order: before the layer, or after the sum.
        initializer: of all maps.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: FeedForwardConfig,
        *,
        norm: NormName = "rms",
        norm_order: Literal["pre", "post"] = "pre",
        initializer: FanInitializer = lecun_normal,
        rngs: nnx.Rngs,
    ):
        if norm_order not in ("pre", "post"):
            raise ValueError(f'norm_order={norm_order!r} must be "pre" or "post"')
        self.norm_order = norm_order
        self.norm = make_norm(norm, cfg.embed_dim, rngs=rngs)
        self.feed_forward = FeedForward(cfg, initializer=initializer, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... e"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "... e"]:
        """Transform each token by itself; `key` is for dropout, None in evaluation."""
        within, before_sum = split_key(key, 2)
        rate = self.feed_forward.cfg.dropout_rate
        if self.norm_order == "pre":
            return x + dropout(self.feed_forward(self.norm(x), key=within), rate, before_sum)
        return self.norm(x + dropout(self.feed_forward(x, key=within), rate, before_sum))
