"""The generative recommender as a task of `train`, and as a scorer of the protocol."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from experiments.semantic_ids.codes_file import read_codes
from experiments.semantic_ids.datasets import Dataset, new_items
from experiments.semantic_ids.protocol import Scorer
from experiments.semantic_ids.tasks import Task, positions_of
from recipe_jax.batches import NextItemBatch
from recipe_jax.data.history_batches import next_item_batches, padded_histories
from recipe_jax.data.interactions import Histories
from recipe_jax.functional import Params, PureModule
from recipe_jax.item_beam_search import Available, search_items
from recipe_jax.item_scores import score_items
from recipe_jax.layers.attention import Attend
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.generative_recommender import (
    GenerativeRecommender,
    GenerativeRecommenderConfig,
    History,
    next_code_loss,
)
from recipe_jax.prefix_index import build_prefix_index
from recipe_jax.semantic_ids import SemanticIds, ids_as_bytes
from recipe_jax.sharding import process_share

if TYPE_CHECKING:
    from experiments.semantic_ids.train import Flags

USERS_AT_ONCE = 128
EXACT_USERS_AT_ONCE = 8
"""Where every item is read for each user."""

NUM_BEAMS = 20
"""Of which the first ten count; items that no beam finds share the last rank."""


def make_generative_task(flags: "Flags", histories: Histories, dataset: Dataset) -> Task:
    """The task that the flags name.

    Args:
        flags: of `train`.
        histories: to learn from.
        dataset: whose items need codes.

    Raises:
        ValueError: no codes given, codes that are not of all these items, codes of new items by a
            quantizer that saw them, or learned positions, which this model has not.
    """
    if flags.codes is None:
        raise ValueError(
            "--model generative needs --codes, a run folder of quantize with codes of all items"
        )
    if flags.positions == "learned":
        raise ValueError("--positions learned are of sasrec alone: take none, rope or alibi")
    unseen = new_items(dataset.item_ids) if flags.new_items else None
    ids = read_codes(flags.codes, dataset.item_ids, unseen=unseen)
    cfg = GenerativeRecommenderConfig(
        sizes=ids.sizes,
        transformer=TransformerConfig(
            num_layers=flags.num_layers,
            embed_dim=flags.embed_dim,
            num_heads=flags.num_heads,
            dropout_rate=flags.dropout,
        ),
        encoder_layers=flags.encoder_layers,
        positions=positions_of(
            flags.positions,
            default="rope",
            ordered=histories.ordered,
            max_items=flags.max_items,
        ),
        max_items=flags.max_items,
    )
    codes = jnp.asarray(ids.codes)

    def make(attend: Attend) -> GenerativeRecommender:
        return GenerativeRecommender(cfg, attend=attend, rngs=nnx.Rngs(flags.seed))

    def loss(
        model: GenerativeRecommender, batch: NextItemBatch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        terms = next_code_loss(model, batch, codes, key)
        return terms.nats, terms.tokens

    batches = next_item_batches(
        histories,
        max_items=cfg.max_items,
        batch_size=flags.batch_size,
        seed=flags.seed,
        share=process_share,
    )

    def scorer(fn: PureModule[Any], params: Params) -> Scorer:
        return generative_scorer(fn, params, ids)

    return Task(cfg, make, batches, loss, scorer, files={"ids.npz": ids_as_bytes(ids)})


def generative_scorer(fn: PureModule[Any], params: Params, ids: SemanticIds) -> Scorer:
    """A trained model as a scorer: log-probabilities of the items that beams find.

    All others are given one nat less than the last of them, so that they share the last rank.
    Items that a user knows are left out of the search, as they are of the ranking.
    """
    cfg: GenerativeRecommenderConfig = fn.bind(params).cfg
    index = jax.device_put(build_prefix_index(ids.codes, ids.sizes))
    prompt = jnp.full((USERS_AT_ONCE, 1), cfg.start_token, jnp.int32)

    def score(histories: Histories) -> Float32[np.ndarray, "u n"]:
        found = np.empty((len(histories.users), ids.num_items), np.float32)
        groups = padded_histories(histories, max_items=cfg.max_items, batch_size=USERS_AT_ONCE)
        longest = int(histories.lengths.max())
        for users, items, lengths in groups:
            known = np.full((USERS_AT_ONCE, 1 << (longest - 1).bit_length()), -1, np.int32)
            for row, user in enumerate(users):
                own = histories.items_of(user)
                known[row, : len(own)] = own
            beams = search_items(
                fn,
                params,
                prompt,
                jnp.ones(USERS_AT_ONCE, jnp.int32),
                indexes=[index],
                level_tokens=cfg.level_tokens,
                num_beams=NUM_BEAMS,
                available=Available(excluded=jnp.asarray(known)),
                context=History(jnp.asarray(ids.codes[items]), jnp.asarray(lengths)),
            )
            items, scores = (
                np.asarray(x)[: len(users)] for x in (beams.items, beams.log_probability)
            )
            row, place = np.nonzero(items >= 0)
            found[users] = scores.min(axis=1, where=items >= 0, initial=0.0)[:, None] - 1.0
            found[users[row], items[row, place]] = scores[row, place]
        return found

    return score


def exact_scorer(fn: PureModule[Any], params: Params, ids: SemanticIds) -> Scorer:
    """A trained model as a scorer that reads every ID whole: what `generative_scorer` misses.

    Thousands of items take it seconds for each user.
    """
    cfg: GenerativeRecommenderConfig = fn.bind(params).cfg
    prompt = jnp.full((EXACT_USERS_AT_ONCE, 1), cfg.start_token, jnp.int32)
    codes = jnp.asarray(ids.codes)

    def score(histories: Histories) -> Float32[np.ndarray, "u n"]:
        found = np.empty((len(histories.users), ids.num_items), np.float32)
        groups = padded_histories(
            histories, max_items=cfg.max_items, batch_size=EXACT_USERS_AT_ONCE
        )
        for users, items, lengths in groups:
            scores = score_items(
                fn,
                params,
                prompt,
                jnp.ones(EXACT_USERS_AT_ONCE, jnp.int32),
                codes=codes,
                level_tokens=cfg.level_tokens,
                context=History(codes[items], jnp.asarray(lengths)),
            )
            found[users] = np.asarray(scores)[: len(users)]
        return found

    return score
