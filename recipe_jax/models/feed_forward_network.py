"""Multi-layer perceptrons over rows of numbers: a network, and a classifier made of one."""

import dataclasses
import itertools
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray

from recipe_jax.batches import AnyArray
from recipe_jax.layers import initializers
from recipe_jax.layers.dense import Dense, DenseConfig
from recipe_jax.layers.dropout import check_rate, split_key
from recipe_jax.layers.feed_forward import Activation, Linear, check_activation, is_gated
from recipe_jax.layers.initializers import FanInitializer

InitializerName: TypeAlias = Literal[
    "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "lecun_normal"
]
"""Functions of `recipe_jax.layers.initializers`."""


class ClassificationBatch(NamedTuple):
    """Rows with the classes they belong to.

    Attributes:
        features: standardised by whoever makes the batch: the models hold no statistics of data.
        labels: index of each row's class.
    """

    features: Float32[AnyArray, "b f"]
    labels: Int32[AnyArray, "b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForwardNetworkConfig:
    """Shape of a multi-layer perceptron.

    Attributes:
        in_dim: width of the input.
        out_dim: width of the output; the number of classes of a classifier.
        hidden_dims: widths of the hidden layers, the first one first; none is a linear model.
        activation: of hidden layers; pointwise, not a gated unit.
        norm: of a hidden layer's sums, before the activation.
        dropout_rate: probability that a hidden unit is dropped.
        residual: whether a hidden layer that is as wide as its input adds this input to its
            output (He et al. 2016, arXiv:1512.03385).
        initializer: of all weights; biases start at zero.
    """

    in_dim: int
    out_dim: int
    hidden_dims: tuple[int, ...] = (128, 128)
    activation: Activation = "relu"
    norm: Literal["none", "rms", "layer"] = "none"
    dropout_rate: float = 0.0
    residual: bool = False
    initializer: InitializerName = "kaiming_uniform"

    def __post_init__(self) -> None:
        for name in ("in_dim", "out_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"hidden_dims={self.hidden_dims} must all be at least 1")
        check_activation(self.activation)
        if is_gated(self.activation):
            pointwise = ", ".join(name for name in get_args(Activation) if not is_gated(name))
            raise ValueError(
                f"activation={self.activation!r} is a gated unit, must be one of {pointwise}"
            )
        if self.norm not in ("none", "rms", "layer"):
            raise ValueError(f'norm={self.norm!r} must be "none", "rms" or "layer"')
        check_rate(self.dropout_rate)
        if self.initializer not in get_args(InitializerName):
            raise ValueError(
                f"initializer={self.initializer!r} must be one of "
                f"{', '.join(get_args(InitializerName))}"
            )

    @property
    def hidden_layers(self) -> tuple[DenseConfig, ...]:
        """Shapes of the hidden layers, the first one first."""
        widths = itertools.pairwise((self.in_dim, *self.hidden_dims))
        return tuple(
            DenseConfig(
                in_dim=in_dim,
                out_dim=out_dim,
                activation=self.activation,
                norm=self.norm,
                dropout_rate=self.dropout_rate,
                residual=self.residual and in_dim == out_dim,
            )
            for in_dim, out_dim in widths
        )

    @property
    def weight_initializer(self) -> FanInitializer:
        """The function that `initializer` names."""
        return getattr(initializers, self.initializer)


class FeedForwardNetwork(nnx.Module):
    """A multi-layer perceptron: hidden layers, then one linear map (Rumelhart et al. 1986).

    Args:
        cfg: its shape.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, cfg: FeedForwardNetworkConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        initializer = cfg.weight_initializer
        self.hidden_layers = nnx.List(
            [Dense(layer, initializer=initializer, rngs=rngs) for layer in cfg.hidden_layers]
        )
        self.output = Linear(
            (cfg.in_dim, *cfg.hidden_dims)[-1],
            cfg.out_dim,
            axes=("mlp", "embed"),
            initializer=initializer,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b in_dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b out_dim"]:
        """Map each row; the result has the input's dtype.

        Args:
            x: rows of features, standardised.
            key: random key for dropout; None in evaluation.

        Raises:
            ValueError: if the rows are not `in_dim` wide.
        """
        if x.shape[1] != self.cfg.in_dim:
            raise ValueError(f"x has {x.shape[1]} features, must have in_dim={self.cfg.in_dim}")
        keys = split_key(key, len(self.hidden_layers))
        for layer, layer_key in zip(self.hidden_layers, keys, strict=True):
            x = layer(x, key=layer_key)
        return self.output(x)


class FeedForwardClassifier(nnx.Module):
    """A multi-layer perceptron whose outputs are the logits of classes.

    Args:
        cfg: its shape; `out_dim` is the number of classes, `c`.
        rngs: what the initial values are drawn from.

    Raises:
        ValueError: if there are fewer than two classes.
    """

    def __init__(self, cfg: FeedForwardNetworkConfig, *, rngs: nnx.Rngs):
        if cfg.out_dim < 2:
            raise ValueError(f"out_dim={cfg.out_dim} must be at least 2 classes")
        self.cfg = cfg
        self.network = FeedForwardNetwork(cfg, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b in_dim"], *, key: PRNGKeyArray | None = None
    ) -> Float32[Array, "b c"]:
        """Logits, what `classification_loss` reads; arguments as for `FeedForwardNetwork`."""
        return self.network(x, key=key).astype(jnp.float32)

    def predict_proba(self, x: Float[Array, "b in_dim"]) -> Float32[Array, "b c"]:
        """The probability of each class; rows sum to one."""
        return jax.nn.softmax(self(x), axis=-1)

    def predict(self, x: Float[Array, "b in_dim"]) -> Int32[Array, "b"]:
        """The index of the most probable class; of equal ones the lowest."""
        return jnp.argmax(self(x), axis=-1)


class ClassificationTerms(NamedTuple):
    """Per-example loss terms.

    Attributes:
        nats: cross-entropy.
        correct: 1 where the class is the most probable one, else 0; of equal ones the lowest is.
    """

    nats: Float32[Array, "b"]
    correct: Float32[Array, "b"]


def classification_loss(
    logits: Float[Array, "b c"], labels: Int[Array, "b"]
) -> ClassificationTerms:
    """Cross-entropy of the right classes, `-log softmax(logits)[label]` (Bishop 2006, eq. 4.108).

    Args:
        logits: before the softmax, which is taken here, in float32.
        labels: index of each row's class; one outside [0, c) gives NaN, which `fit` refuses.
    """
    wide = logits.astype(jnp.float32)
    # A negative index would count from the end: -1, often "unknown", would be the last class.
    indices = jnp.where(labels < 0, logits.shape[1], labels)
    nats = optax.softmax_cross_entropy_with_integer_labels(wide, indices)
    correct = jnp.argmax(wide, axis=-1) == labels
    return ClassificationTerms(nats, correct.astype(jnp.float32))
