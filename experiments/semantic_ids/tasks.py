"""What distinguishes the models that `train` trains: one value for each."""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx

from experiments.semantic_ids.protocol import Scorer
from recipe_jax.functional import Params, PureModule
from recipe_jax.layers.attention import Attend

Loss: TypeAlias = Callable[[Any, Any, jax.Array | None], tuple[jax.Array, jax.Array]]
"""`(module, batch, key)` -> nats of each row, and how many targets they are of."""


class Task(NamedTuple):
    """A model and how it is trained and asked.

    Attributes:
        cfg: its configuration, one of `recipe_jax.huggingface.MODELS`.
        make: builds the module that attends by the given function.
        batches: an endless stream.
        loss: what is minimised: the nats of a batch by its targets.
        scorer: a trained model as what the protocol asks.
        files: name -> content of what else its model folder needs.
    """

    cfg: Any
    make: Callable[[Attend], nnx.Module]
    batches: Iterable[Any]
    loss: Loss
    scorer: Callable[[PureModule[Any], Params], Scorer]
    files: Mapping[str, bytes] = types.MappingProxyType({})
