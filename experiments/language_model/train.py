"""Fine-tune a checkpoint of the Llama family on texts or conversations.

python -m experiments.language_model train --text stories.txt --run runs/stories --steps 300

Sequences are packed into rows; in conversations only the assistant's tokens are learned.  The
result is `RUN/model`, a Hugging Face folder.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipe_kernels import attention_on

from experiments.commands import check_least, check_seed
from experiments.language_model.checkpoints import Checkpoint, read_checkpoint
from experiments.record import command_line, make_record, place_of, write_record
from recipe_jax.batches import TokenBatch
from recipe_jax.data.packing import TokenSequences, all_batches, split_long, token_batches
from recipe_jax.data.texts import read_documents, tokenize_documents
from recipe_jax.functional import num_parameters
from recipe_jax.huggingface import LanguageModel, save_language_model, to_json
from recipe_jax.huggingface.tokenizers import tokenizer_files
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.layers.transformer import Remat
from recipe_jax.models.adapters import adapter_mask, add_adapters, merge_adapters
from recipe_jax.models.causal_language_model import next_token_loss
from recipe_jax.sharding import (
    Mesh,
    gather_arrays,
    initialize_distributed,
    is_first_process,
    make_mesh,
    process_share,
    replicated,
    shard_batch,
)
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import hold_fixed, train_only, trained_part, warmup_cosine
from recipe_jax.training.state import TrainState, init_state, state_shardings
from recipe_jax.training.step import make_train_step

_NOT_THE_RUN = ("run", "progress", "mesh", "text")
"""Flags that a resumed run may change; what the text says is known by its fingerprint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a training run.

    Attributes:
        text: a text file, whose documents blank lines separate, or JSON lines with `messages` or
            `text`.
        model: a Hugging Face folder, a run folder or a llama2.c file; stories260K of
            `$RECIPE_JAX_DATA` if not given.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        batch_size: rows of a batch.
        num_tokens: tokens of a row; the model's own length, but at most 512, if not given.
        microbatches: parts of a batch that are computed one after the other.
        learning_rate: peak of the schedule.
        weight_decay: of matrices.
        lora_rank: train low-rank adapters of this rank alone; the whole model if not given.
        lora_alpha: adapters are scaled by this over their rank.
        lora_targets: weights that get an adapter.
        dtype: of activations and matrix products; parameters are float32.
        remat: what the backward pass computes again instead of keeping it.
        validation_share: of the documents, drawn by the seed.
        seed: of everything random.
        mesh: devices, such as data=2,fsdp=2,tensor=2; one device if not given.
        evaluate_every: steps between validations.
        progress: show the progress bar.
    """

    text: Path
    model: Path | None = None
    run: Path = Path("runs/language_model")
    steps: int = 300
    batch_size: int = 8
    num_tokens: int | None = None
    microbatches: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    lora_rank: int | None = None
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "elementwise"
    validation_share: float = 0.05
    seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 100
    progress: bool = True

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, num_tokens=2, microbatches=1, evaluate_every=1)
        check_least(self, learning_rate=0.0, weight_decay=0.0, lora_rank=1, lora_alpha=0.0)
        check_seed(self.seed)
        if not 0.0 < self.validation_share < 1.0:
            raise ValueError(f"--validation-share {self.validation_share} must be between 0 and 1")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"--batch-size {self.batch_size} must be a multiple of "
                f"--microbatches {self.microbatches}"
            )


def run(flags: Flags) -> dict[str, Any]:
    """Train, validate, and write the model to `RUN/model`."""
    initialize_distributed()
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])
    start = read_checkpoint(
        flags.model,
        mesh=mesh,
        param_dtype="float32",
        attend=attention_on(mesh),
        remat=flags.remat,
        dtype=flags.dtype,
    )
    num_tokens = row_length(flags.num_tokens, start.model)
    training, validation = read_split(flags, start.tokenizer, num_tokens)
    print(
        f"data: {len(training)} sequences of {len(training.tokens)} tokens to learn from, "
        f"{len(validation)} to validate",
        file=sys.stderr,
    )
    model, trained = with_adapters(flags, start.model, mesh)
    before = make_validation(model, validation, num_tokens, flags.batch_size, mesh)(model.params)
    result = train(flags, model, trained, training, validation, num_tokens, mesh)
    after = make_validation(model, validation, num_tokens, flags.batch_size, mesh)
    headline = {
        "step": result.step,
        "stopped": result.stopped,
        "num_parameters": num_parameters(model.params),
        "num_trained": num_parameters(trained_part(model.params, trained)),
        **after(result.state.params),
        "baselines": {"before": before},
        **result.timing,
    }
    params = gather_arrays(result.state.params)
    if is_first_process():
        write_results(flags, start, model._replace(params=params), headline)
    return headline


def row_length(num_tokens: int | None, model: LanguageModel) -> int:
    """Tokens of a row: what the flag says, else the model's own length, but at most 512.

    Raises:
        ValueError: more than the model was made for.
    """
    longest = model.cfg.max_positions
    if num_tokens is not None and num_tokens > longest:
        raise ValueError(
            f"--num-tokens {num_tokens} must be at most the model's max_positions={longest}"
        )
    return min(longest, 512) if num_tokens is None else num_tokens


def write_results(
    flags: Flags, start: Checkpoint, model: LanguageModel, headline: dict[str, Any]
) -> None:
    """`RUN/model` and `RUN/record.json`."""
    write_model(flags, start, model, headline)
    rows = [json.loads(line) for line in (flags.run / "metrics.jsonl").read_text().splitlines()]
    record = make_record(
        command_line("experiments.language_model train", flags, always=("text",)),
        config={
            **to_json(flags),
            "text": place_of(flags.text),
            "model": place_of(Path(start.source)),
            "run": "RUN",
        },
        validation=[row for row in rows if row["split"] == "validation"],
        **headline,
    )
    write_record(flags.run / "record.json", record)


def read_split(
    flags: Flags, tokenizer: Any, num_tokens: int
) -> tuple[TokenSequences, TokenSequences]:
    """Sequences to learn from and sequences to validate, from different documents."""
    documents = read_documents(flags.text)
    if len(documents) < 2:
        raise ValueError(f"{flags.text}: holds {len(documents)} document, must hold at least 2")
    order = np.random.default_rng(flags.seed).permutation(len(documents))
    held_out = min(max(1, round(flags.validation_share * len(documents))), len(documents) - 1)
    parts = sorted(order[held_out:]), sorted(order[:held_out])
    training, validation = (
        split_long(tokenize_documents([documents[i] for i in part], tokenizer), num_tokens)
        for part in parts
    )
    return training, validation


def with_adapters(flags: Flags, model: LanguageModel, mesh: Mesh) -> tuple[LanguageModel, Any]:
    """The model to train, and which of its parameters are trained."""
    if flags.lora_rank is None:
        return model, jax.tree.map(lambda _: True, model.params)
    adapters = LowRank(rank=flags.lora_rank, alpha=flags.lora_alpha, targets=flags.lora_targets)
    options = {"attend": attention_on(mesh), "remat": flags.remat, "dtype": flags.dtype}
    cfg, fn, params = add_adapters(model.cfg, model.params, adapters, seed=flags.seed, **options)
    return model._replace(cfg=cfg, fn=fn, params=params), adapter_mask(params)


def train(
    flags: Flags,
    model: LanguageModel,
    trained: Any,
    training: TokenSequences,
    validation: TokenSequences,
    num_tokens: int,
    mesh: Mesh,
) -> FitResult:
    """Fit the trained parameters in the run folder."""
    fn, optimizer = model.fn, make_optimizer(flags, trained)

    def objective(params: Any, batch: TokenBatch, key: jax.Array) -> tuple[Any, Any]:
        terms = next_token_loss(fn.bind(hold_fixed(params, trained)), batch, key)
        tokens = jnp.maximum(terms.tokens.sum(), 1.0)
        return terms.nats.sum() / tokens, {"accuracy": terms.correct.sum() / tokens}

    shardings = state_shardings(fn, optimizer, mesh)
    make_state = jax.jit(
        lambda params, key: init_state(params, optimizer, key), out_shardings=shardings
    )
    state: TrainState = make_state(model.params, jax.random.key(flags.seed))
    step = make_train_step(
        objective,
        optimizer,
        shardings,
        num_microbatches=flags.microbatches,
        weigh=lambda batch: batch.weights[:, 1:].sum(),
    )
    batches = token_batches(
        training,
        num_tokens=num_tokens,
        batch_size=flags.batch_size,
        seed=flags.seed,
        share=process_share,
    )
    validate = make_validation(model, validation, num_tokens, flags.batch_size, mesh)
    plan = FitPlan(
        num_steps=flags.steps,
        log_every=min(50, flags.evaluate_every),
        evaluate_every=flags.evaluate_every,
        checkpoint_every=flags.evaluate_every,
        metric="nats_per_token",
        show_progress=flags.progress,
    )
    described = {k: v for k, v in to_json(flags).items() if k not in _NOT_THE_RUN}
    config = {
        **described,
        "model": str(flags.model),
        "training": training.fingerprint,
        "validation": validation.fingerprint,
    }
    return fit(
        step,
        state,
        batches,
        run=flags.run,
        plan=plan,
        config=config,
        evaluate=lambda state: validate(state.params),
        mesh=mesh,
    )


def make_optimizer(flags: Flags, trained: Any) -> optax.GradientTransformation:
    """AdamW with clipped gradients, of the trained parameters alone."""
    schedule = warmup_cosine(
        flags.learning_rate, warmup_steps=min(100, flags.steps // 10 + 1), num_steps=flags.steps
    )
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=flags.weight_decay, mask=_matrices),
    )
    whole = all(part is True for part in jax.tree.leaves(trained))
    return adamw if whole else train_only(adamw, trained)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_validation(
    model: LanguageModel,
    sequences: TokenSequences,
    num_tokens: int,
    batch_size: int,
    mesh: Mesh,
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters to nats per token, perplexity and accuracy."""
    terms_of = jax.jit(
        lambda params, batch: jax.tree.map(jnp.sum, next_token_loss(model.fn.bind(params), batch)),
        out_shardings=replicated(mesh),
    )

    def validate(params: Any) -> dict[str, float]:
        sums = np.zeros(3)
        for batch in all_batches(sequences, num_tokens=num_tokens, batch_size=batch_size):
            sums += np.array(
                [float(x) for x in terms_of(params, shard_batch(process_share(batch), mesh))]
            )
        nats, tokens, correct = sums
        if not tokens:
            raise ValueError("no token counts in the text: there is nothing to score")
        return {
            "nats_per_token": nats / tokens,
            "perplexity": math.exp(min(nats / tokens, 700.0)),
            "accuracy": correct / tokens,
            "n": int(tokens),
        }

    return validate


def write_model(
    flags: Flags, start: Checkpoint, model: LanguageModel, headline: dict[str, Any]
) -> None:
    """`RUN/model`: the fine-tuned model, adapters merged, with its tokenizer and a card."""
    cfg, params = merge_adapters(model.cfg, model.params)
    kind = "low-rank adapters, merged" if flags.lora_rank else "all parameters"
    card = (
        f"# A causal language model\n\nFine-tuned from {Path(start.source).name} on "
        f"{flags.text.name} by `recipe_jax` ({kind}, {headline['step']} steps). Validation: "
        f"{headline['nats_per_token']:.4f} nats per token, n = {headline['n']}; before: "
        f"{headline['baselines']['before']['nats_per_token']:.4f}.\n"
    )
    save_language_model(
        flags.run / "model",
        model._replace(cfg=cfg, params=params),
        card=card,
        tokenizer_files=tokenizer_files(start.tokenizer),
    )
