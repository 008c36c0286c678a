"""Train an encoder-decoder transformer on pairs of texts.

python -m experiments.sequence_to_sequence train --pairs pairs.tsv --run runs/pairs --steps 1500

Texts are read and written byte by byte.  The hash of its source decides whether a pair is in
training, validation (one tenth) or test (one tenth).  Without `--pairs` the task is made up by
rule: quantities written out.  The result is `RUN/model`, with averaged parameters.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from recipe_kernels import attention, attention_on

from experiments.commands import check_least, check_seed
from experiments.record import command_line, make_record, place_of, write_record
from experiments.sequence_to_sequence.byte_tokens import (
    MAX_TOKENS,
    VOCAB_SIZE,
    encode_target,
    pair_batches,
)
from experiments.sequence_to_sequence.quantities import NAME, quantity_table
from experiments.sequence_to_sequence.scores import exact_match
from experiments.sequence_to_sequence.text_pairs import Pair, PairTable, read_pairs
from experiments.sequence_to_sequence.translator import (
    Translator,
    save_translator,
    teacher_forced,
    write_targets,
)
from recipe_jax.batches import SequencePairBatch
from recipe_jax.functional import PureModule, abstract, num_parameters
from recipe_jax.huggingface import to_json
from recipe_jax.layers.attention import Attend
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
    sequence_pair_loss,
)
from recipe_jax.sharding import make_mesh
from recipe_jax.training.averaging import averaged_params, track_average
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import muon_adamw, warmup_cosine
from recipe_jax.training.state import TrainState, init_sharded
from recipe_jax.training.step import make_train_step

POSITIONS = {
    "none": NoPositions(),
    "sinusoidal": Sinusoidal(),
    "learned": Learned(MAX_TOKENS),
    "rope": Rope(),
    "alibi": Alibi(),
}
"""`--positions` -> their value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a training run.

    Attributes:
        pairs: a table of pairs: UTF-8, source and target separated by a tab, no header; quantities
            written out, a task made up by rule, if not given.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        minutes: stop after this many minutes of training, earlier attempts included.
        batch_size: pairs per step.
        embed_dim: width.
        num_layers: blocks of the encoder, and of the decoder.
        num_heads: attention heads.
        dropout: of embeddings and of the blocks' sublayers.
        positions: where a byte stands, for encoder and decoder.
        learning_rate: peak of the schedule.
        weight_decay: times the learning rate.
        seed: of everything random.
        mesh: devices, such as data=2,fsdp=2,tensor=2; one device if not given.
        evaluate_every: steps between validations.
        validation_pairs: most pairs to validate on, a random sample of the part.
        progress: show the progress bar.
    """

    pairs: Path | None = None
    run: Path = Path("runs/sequence_to_sequence")
    steps: int = 1500
    minutes: float | None = None
    batch_size: int = 64
    embed_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    dropout: float = 0.0
    positions: Literal["none", "sinusoidal", "learned", "rope", "alibi"] = "rope"
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 250
    validation_pairs: int = 1000
    progress: bool = True

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, evaluate_every=1, validation_pairs=1)
        check_least(self, learning_rate=0.0, weight_decay=0.0)
        check_seed(self.seed)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes {self.minutes} must be above 0")


def run(flags: Flags) -> dict[str, Any]:
    """Train, validate, and write the averaged model to `RUN/model`."""
    table, cfg = read_task(flags.pairs), model_config(flags)
    training = table.part("train")
    validation = table.part("validation")[: flags.validation_pairs]
    print(
        f"data: {len(table.pairs)} pairs of {table.name}: {len(training)} to learn from, "
        f"{len(validation)} to validate",
        file=sys.stderr,
    )
    result, fn = train(flags, cfg, table, training, validation)
    translator = Translator(
        fn=fn,
        params=jax.device_get(averaged_params(result.state.opt_state)),
        max_new_tokens=max(len(encode_target(pair.target)) - 1 for pair in training),
        fingerprint=table.fingerprint,
        task=NAME if flags.pairs is None else flags.pairs.name,
    )
    written = write_targets(translator, [pair.source for pair in validation])
    headline = {
        "step": result.step,
        "stopped": result.stopped,
        "split": "validation",
        **exact_match([text.text for text in written], [pair.target for pair in validation]),
        **teacher_forced(fn, translator.params, validation),
        "num_parameters": num_parameters(fn.shapes),
        "num_training_pairs": len(training),
        **result.timing,
    }
    save_translator(flags.run / "model", translator, cfg, model_card(translator, headline))
    write_results(flags, cfg, headline)
    return headline


def read_task(path: Path | None) -> PairTable:
    """The table of a file, or the task made up by rule, which says so on stderr.

    Raises:
        DataError: a file that breaks a rule.
    """
    if path is not None:
        return read_pairs(path)
    print(f"data: no --pairs given; the task is made up by rule: {NAME}", file=sys.stderr)
    return quantity_table()


def model_config(flags: Flags) -> EncoderDecoderTransformerConfig:
    """The shape that the flags name; source and target share one table of bytes."""
    return EncoderDecoderTransformerConfig(
        vocab_size=VOCAB_SIZE,
        transformer=TransformerConfig(
            num_layers=flags.num_layers,
            embed_dim=flags.embed_dim,
            num_heads=flags.num_heads,
            dropout_rate=flags.dropout,
        ),
        encoder_layers=flags.num_layers,
        positions=POSITIONS[flags.positions],
        max_positions=MAX_TOKENS,
    )


def train(
    flags: Flags,
    cfg: EncoderDecoderTransformerConfig,
    table: PairTable,
    training: tuple[Pair, ...],
    validation: tuple[Pair, ...],
) -> tuple[FitResult, PureModule[EncoderDecoderTransformer]]:
    """Fit the model in the run folder; its function is for one device."""
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])

    def make(attend: Attend = attention) -> EncoderDecoderTransformer:
        return EncoderDecoderTransformer(cfg, attend=attend, rngs=nnx.Rngs(flags.seed))

    alone = abstract(make)[0]
    optimizer = make_optimizer(flags, alone)
    fn, state, shardings = init_sharded(
        lambda: make(attention_on(mesh)), optimizer, jax.random.key(flags.seed), mesh
    )

    def objective(params: Any, batch: SequencePairBatch, key: jax.Array) -> tuple[Any, Any]:
        terms = sequence_pair_loss(fn.bind(params), batch, key if flags.dropout else None)
        tokens = jnp.maximum(terms.tokens.sum(), 1.0)
        return terms.nats.sum() / tokens, {"token_accuracy": terms.correct.sum() / tokens}

    def evaluate(state: TrainState) -> dict[str, float]:
        params, size = averaged_params(state.opt_state), flags.batch_size
        return dict(teacher_forced(fn, params, validation, mesh=mesh, batch_size=size))

    described = {k: v for k, v in to_json(flags).items() if k not in ("run", "progress", "pairs")}
    result = fit(
        make_train_step(objective, optimizer, shardings),
        state,
        pair_batches(training, batch_size=min(flags.batch_size, len(training)), seed=flags.seed),
        run=flags.run,
        plan=FitPlan(
            num_steps=flags.steps,
            log_every=min(50, flags.evaluate_every),
            evaluate_every=flags.evaluate_every,
            checkpoint_every=flags.evaluate_every,
            max_seconds=None if flags.minutes is None else 60 * flags.minutes,
            metric="nats_per_token",
            show_progress=flags.progress,
        ),
        config={**described, "pairs": str(flags.pairs), "fingerprint": table.fingerprint},
        evaluate=evaluate,
        mesh=mesh,
    )
    return result, alone


def make_optimizer(flags: Flags, fn: PureModule[Any]) -> optax.GradientTransformation:
    """Muon and AdamW with clipped gradients, and an average of the parameters."""
    warmup_steps = min(100, flags.steps // 10 + 1)
    schedule = warmup_cosine(flags.learning_rate, warmup_steps=warmup_steps, num_steps=flags.steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon_adamw(schedule, fn.axes, weight_decay=flags.weight_decay),
        track_average(0.99),
    )


def model_card(translator: Translator, headline: dict[str, Any]) -> str:
    """What the model is and how far to trust it, in Markdown."""
    low, high = headline["exact_match_interval"]
    return (
        f"# An encoder-decoder of texts\n\nTrained by `recipe_jax` on {translator.task}: "
        f"{headline['num_training_pairs']} pairs, {headline['step']} steps. It reads and writes "
        "UTF-8 byte by byte.\n\n"
        f"Exact match on validation: {headline['exact_match']:.3f} (95 % interval {low:.3f} to "
        f"{high:.3f}, n = {headline['n']}).\n"
    )


def write_results(
    flags: Flags, cfg: EncoderDecoderTransformerConfig, headline: dict[str, Any]
) -> None:
    """`RUN/record.json`: what was measured and under which circumstances."""
    rows = [json.loads(line) for line in (flags.run / "metrics.jsonl").read_text().splitlines()]
    place = None if flags.pairs is None else place_of(flags.pairs)
    record = make_record(
        command_line("experiments.sequence_to_sequence train", flags),
        config={**to_json(flags), "pairs": place, "run": "RUN"},
        model_config=to_json(cfg),
        validation=[row for row in rows if row["split"] == "validation"],
        **headline,
    )
    write_record(flags.run / "record.json", record)
