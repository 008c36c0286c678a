"""SASRec as a task of `train`, and as a scorer of the protocol."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32

from experiments.semantic_ids.datasets import Dataset
from experiments.semantic_ids.protocol import Scorer
from experiments.semantic_ids.tasks import Task, positions_of
from recipe_jax.batches import NextItemBatch
from recipe_jax.data.history_batches import next_item_batches, padded_histories
from recipe_jax.data.interactions import Histories
from recipe_jax.functional import Params, PureModule
from recipe_jax.layers.attention import Attend
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.sasrec import Sasrec, SasrecConfig, next_item_loss
from recipe_jax.sharding import process_share

if TYPE_CHECKING:
    from experiments.semantic_ids.train import Flags

USERS_AT_ONCE = 256


def make_sasrec_task(flags: "Flags", histories: Histories, dataset: Dataset) -> Task:
    """The task that the flags name.

    Args:
        flags: of `train`.
        histories: to learn from.
        dataset: whose items are scored.
    """
    cfg = sasrec_config(flags, num_items=len(dataset.item_ids), ordered=histories.ordered)

    def make(attend: Attend) -> Sasrec:
        return Sasrec(cfg, attend=attend, rngs=nnx.Rngs(flags.seed))

    def loss(
        model: Sasrec, batch: NextItemBatch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        terms = next_item_loss(model, batch, key)
        return terms.nats, terms.items

    batches = next_item_batches(
        histories,
        max_items=cfg.max_items,
        batch_size=flags.batch_size,
        seed=flags.seed,
        share=process_share,
    )
    return Task(cfg, make, batches, loss, sasrec_scorer)


def sasrec_config(flags: "Flags", *, num_items: int, ordered: bool) -> SasrecConfig:
    """The shape that the flags name."""
    return SasrecConfig(
        num_items=num_items,
        transformer=TransformerConfig(
            num_layers=flags.num_layers,
            embed_dim=flags.embed_dim,
            num_heads=flags.num_heads,
            dropout_rate=flags.dropout,
        ),
        positions=positions_of(
            flags.positions, default="learned", ordered=ordered, max_items=flags.max_items
        ),
        max_items=flags.max_items,
        temperature=flags.temperature,
    )


def sasrec_scorer(
    fn: PureModule[Any], params: Params, *, users_at_once: int = USERS_AT_ONCE
) -> Scorer:
    """A trained model as a scorer; of a long history it reads the latest items."""
    cfg: SasrecConfig = fn.bind(params).cfg

    def score(histories: Histories) -> Float32[np.ndarray, "u n"]:
        found = np.empty((len(histories.users), cfg.num_items), np.float32)
        groups = padded_histories(histories, max_items=cfg.max_items, batch_size=users_at_once)
        for users, items, lengths in groups:
            scores = _last_scores(fn, params, jnp.asarray(items), jnp.asarray(lengths))
            found[users] = np.asarray(scores)[: len(users)]
        return found

    return score


@functools.partial(jax.jit, static_argnums=0)
def _last_scores(
    fn: PureModule[Sasrec], params: Params, items: jax.Array, lengths: jax.Array
) -> Float[jax.Array, "b n"]:
    model = fn.bind(params)
    states = model.states(items)
    return model.scores(states[jnp.arange(len(lengths)), lengths - 1])
