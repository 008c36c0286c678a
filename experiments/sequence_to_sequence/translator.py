"""A trained encoder-decoder of texts: kept in a folder, scored on pairs, asked to write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from recipe_kernels import attention

from experiments.sequence_to_sequence.byte_tokens import BEGIN, END, VOCAB_SIZE, all_batches, decode
from experiments.sequence_to_sequence.text_pairs import Pair
from recipe_jax.functional import Params, PureModule, abstract
from recipe_jax.huggingface import ModelFolderError, load_module, save_module
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
    Source,
    sequence_pair_loss,
)
from recipe_jax.sharding import Mesh, make_mesh, shard_batch
from recipe_jax.token_beam_search import TokenBeamSearch, beam_search_tokens
from recipe_jax.token_decoding import generate


class Translator(NamedTuple):
    """A model with what it needs to be used.

    Attributes:
        fn: the pure function of the model.
        params: its parameters.
        max_new_tokens: the longest target of its training, the end included: it writes no more.
        fingerprint: of the pairs it was trained on.
        task: what these were, for people.
    """

    fn: PureModule[EncoderDecoderTransformer]
    params: Params
    max_new_tokens: int
    fingerprint: str
    task: str


class WrittenText(NamedTuple):
    """A target as a model wrote it.

    Attributes:
        text: without the end.
        log_probability: of its bytes and its end, given the source.
    """

    text: str
    log_probability: float


def save_translator(
    folder: Path, translator: Translator, cfg: EncoderDecoderTransformerConfig, card: str
) -> None:
    """Write a model folder: all of its files or none."""
    save_module(
        folder,
        cfg=cfg,
        params=translator.params,
        card=card,
        config={
            "max_new_tokens": translator.max_new_tokens,
            "fingerprint": translator.fingerprint,
            "task": translator.task,
        },
    )


def load_translator(run: Path) -> Translator:
    """Read the model of a run folder, or of a model folder.

    Raises:
        ModelFolderError: nothing there, or a model that reads no bytes.
    """
    folder = run if (run / "model.safetensors").is_file() else run / "model"
    found = load_module(folder)
    path = folder / "config.json"
    if found.model_type != "encoder_decoder_transformer" or found.cfg.vocab_size != VOCAB_SIZE:
        raise ModelFolderError(
            f"{path}: must be an encoder_decoder_transformer with vocab_size={VOCAB_SIZE}, is "
            f"{found.model_type!r}"
        )
    for key, kind in (("max_new_tokens", int), ("fingerprint", str), ("task", str)):
        if not isinstance(found.config.get(key), kind):
            raise ModelFolderError(
                f"{path}: {key}={found.config.get(key)!r} must be of type {kind.__name__}"
            )
    fn, _ = abstract(
        lambda: EncoderDecoderTransformer(found.cfg, attend=attention, rngs=nnx.Rngs(0))
    )
    return Translator(
        fn=fn,
        params=found.params,
        max_new_tokens=found.config["max_new_tokens"],
        fingerprint=found.config["fingerprint"],
        task=found.config["task"],
    )


def teacher_forced(
    fn: PureModule[EncoderDecoderTransformer],
    params: Any,
    pairs: Sequence[Pair],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
) -> Mapping[str, float]:
    """Nats per token and accuracy of the next token, given all those before it.

    The end of a target counts as a token, its beginning does not.
    """
    mesh = make_mesh("data=1", jax.devices()[:1]) if mesh is None else mesh
    sums = np.zeros(3)
    for _, batch in all_batches(pairs, batch_size):
        sums += np.array([float(x) for x in _sums(fn, params, shard_batch(batch, mesh))])
    nats, tokens, correct = sums
    return {"nats_per_token": nats / tokens, "token_accuracy": correct / tokens}


def write_targets(
    translator: Translator,
    sources: Sequence[str],
    *,
    beams: int | None = None,
    batch_size: int = 64,
) -> list[WrittenText]:
    """The most probable target of each source: byte by byte, or by beam search.

    Args:
        translator: the model.
        sources: one or several.
        beams: how many texts are grown at a time; None takes the most probable byte each time.
        batch_size: sources at a time.
    """
    batch_size = min(batch_size, len(sources))
    written = [WrittenText("", 0.0)] * len(sources)
    pairs = [Pair(source, "") for source in sources]
    for rows, batch in all_batches(pairs, batch_size):
        context = Source(jnp.asarray(batch.source), jnp.asarray(batch.source_lengths))
        tokens, log_probability = _write(translator, context, beams)
        for row, found, value in zip(rows, tokens, log_probability, strict=False):
            written[row] = WrittenText(decode(found), float(value))
    return written


@jax.jit(static_argnames="fn")
def _sums(fn: PureModule[EncoderDecoderTransformer], params: Any, batch: Any) -> Any:
    return jax.tree.map(jnp.sum, sequence_pair_loss(fn.bind(params), batch))


def _write(
    translator: Translator, context: Source, beams: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probability of each row."""
    b = context.tokens.shape[0]
    given = (translator.fn, translator.params, jnp.full((b, 1), BEGIN), jnp.ones(b, jnp.int32))
    options = {
        "max_new_tokens": translator.max_new_tokens,
        "ends": (END,),
        "context": context,
    }
    if beams is None:
        texts = generate(*given, **options)
        return np.asarray(texts.tokens), np.asarray(texts.log_probability)
    found = beam_search_tokens(*given, search=TokenBeamSearch(num_beams=beams), **options)
    return np.asarray(found.tokens)[:, 0], np.asarray(found.log_probability)[:, 0]
