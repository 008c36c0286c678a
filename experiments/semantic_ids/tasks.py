"""What distinguishes the models that `train` trains: one value for each."""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from flax import nnx

from experiments.semantic_ids.protocol import Scorer
from recipe_jax.functional import Params, PureModule
from recipe_jax.layers.attention import Attend
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope

Loss: TypeAlias = Callable[[Any, Any, jax.Array | None], tuple[jax.Array, jax.Array]]
"""`(module, batch, key)` -> nats of each row, and how many targets they are of."""

PositionsName: TypeAlias = Literal["none", "learned", "rope", "alibi"]


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


def positions_of(
    name: PositionsName | None, *, default: PositionsName, ordered: bool, max_items: int
) -> NoPositions:
    """How a model knows an item's place in its history.

    Args:
        name: as it was asked for.
        default: of the model, for histories.
        ordered: whether it learns from histories; else from sets, in which nothing has a place.
        max_items: of the longest history.

    Raises:
        ValueError: places asked for in sets.
    """
    if not ordered and name not in (None, "none"):
        raise ValueError(f"--positions {name} must be none: the data are sets, which have no order")
    positions: dict[str, NoPositions] = {
        "none": NoPositions(),
        "learned": Learned(max_items),
        "rope": Rope(),
        "alibi": Alibi(),
    }
    return positions[name or (default if ordered else "none")]
