"""Teach a language model the IDs of items, in two stages.

python -m experiments.semantic_ids tune --examples runs/examples --run runs/language

The codes become words of its vocabulary.  First these words' vectors are learned and nothing else:
what the model knew stays as it was, bit for bit.  Then everything is learned, or low-rank adapters
and the new words with `--lora-rank`.  The result is `RUN/model`, a Hugging Face folder that also
holds the IDs; `recommend` and `evaluate` take it.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from recipe_kernels import attention_on

from experiments.commands import check_least, check_seed
from experiments.language_model import train as fine_tuning
from experiments.language_model.checkpoints import Checkpoint, read_checkpoint
from experiments.record import command_line, make_record, place_of, write_record
from experiments.semantic_ids.language_recommending import language_files
from experiments.semantic_ids.questions import FILE, read_questions
from recipe_jax.data.files import DataError
from recipe_jax.data.id_templates import TRIGGER
from recipe_jax.data.packing import TokenSequences
from recipe_jax.data.texts import Document, read_documents, tokenize_documents
from recipe_jax.functional import num_parameters
from recipe_jax.huggingface import LanguageModel, save_language_model, to_json
from recipe_jax.huggingface.tokenizers import tokenizer_files, with_words
from recipe_jax.layers.transformer import Remat
from recipe_jax.models.adapters import merge_adapters
from recipe_jax.models.new_tokens import add_tokens, new_token_mask
from recipe_jax.semantic_ids import SemanticIds, id_tokens, ids_as_bytes, read_ids
from recipe_jax.sharding import (
    Mesh,
    gather_arrays,
    initialize_distributed,
    is_first_process,
    make_mesh,
    param_shardings,
)
from recipe_jax.training.loop import FitResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines the tuning.

    Attributes:
        examples: the folder of `examples`.
        model: a Hugging Face folder, a run folder or a llama2.c file; stories260K of
            `$RECIPE_JAX_DATA` if not given.
        run: the run folder; the same command on the same folder resumes.
        new_token_steps: updates of the new words alone.
        steps: updates of everything, after these.
        batch_size: rows of a batch.
        num_tokens: tokens of a row; the model's own length, but at most 512, if not given.
        microbatches: parts of a batch that are computed one after the other.
        new_token_learning_rate: peak of the first stage's schedule.
        learning_rate: peak of the second stage's.
        weight_decay: of matrices.
        lora_rank: in the second stage, train low-rank adapters of this rank and the new words; the
            whole model if not given.
        lora_alpha: adapters are scaled by this over their rank.
        lora_targets: weights that get an adapter.
        dtype: of activations and matrix products; parameters are float32.
        remat: what the backward pass computes again instead of keeping it.
        validation_examples: most of each kind to validate on, a random sample.
        seed: of everything random.
        mesh: devices, such as data=2,fsdp=2,tensor=2; one device if not given.
        evaluate_every: steps between validations.
        progress: show the progress bar.
    """

    examples: Path = Path("runs/examples")
    model: Path | None = None
    run: Path = Path("runs/language")
    new_token_steps: int = 200
    steps: int = 1000
    batch_size: int = 8
    num_tokens: int | None = None
    microbatches: int = 1
    new_token_learning_rate: float = 1e-2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    lora_rank: int | None = None
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "elementwise"
    validation_examples: int = 500
    seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 500
    progress: bool = True

    def __post_init__(self) -> None:
        check_least(self, new_token_steps=1, steps=1, validation_examples=1, evaluate_every=1)
        check_least(self, new_token_learning_rate=0.0, learning_rate=0.0, weight_decay=0.0)
        check_seed(self.seed)
        self.stage("new_tokens")  # whose flags are checked as those of a training
        self.stage("whole")

    def stage(self, name: Literal["new_tokens", "whole"]) -> fine_tuning.Flags:
        """One stage as a training by itself, in a folder of the run."""
        first = name == "new_tokens"
        return fine_tuning.Flags(
            text=self.examples,
            model=self.model,
            run=self.run / name,
            steps=self.new_token_steps if first else self.steps,
            batch_size=self.batch_size,
            num_tokens=self.num_tokens,
            microbatches=self.microbatches,
            learning_rate=self.new_token_learning_rate if first else self.learning_rate,
            weight_decay=self.weight_decay,
            lora_rank=None if first else self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_targets=self.lora_targets,
            dtype=self.dtype,
            remat=self.remat,
            seed=self.seed,
            mesh=self.mesh,
            evaluate_every=min(self.evaluate_every, self.new_token_steps if first else self.steps),
            progress=self.progress,
        )


def run(flags: Flags) -> dict[str, Any]:
    """Tune, and write the model to `RUN/model`."""
    initialize_distributed()
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])
    ids = read_ids(flags.examples / "ids.npz")
    read_questions(flags.examples / FILE)  # what is missing shall be missed before the training
    start, first = with_ids(flags, ids, mesh)
    num_tokens = fine_tuning.row_length(flags.num_tokens, start.model)
    training, validation = (
        read_sequences(flags, part, start.tokenizer, num_tokens) for part in ("train", "validation")
    )
    print(
        f"data: {len(training)} examples of {len(training.tokens)} tokens to learn from, "
        f"{len(validation)} to validate",
        file=sys.stderr,
    )
    num_new = len(id_tokens(ids.sizes)) + 1

    def validate(model: LanguageModel) -> dict[str, float]:
        of = fine_tuning.make_validation(model, validation, num_tokens, flags.batch_size, mesh)
        return of(model.params)

    def fit(
        stage: fine_tuning.Flags, model: LanguageModel, trained: Any
    ) -> tuple[LanguageModel, FitResult]:
        result = fine_tuning.train(stage, model, trained, training, validation, num_tokens, mesh)
        return model._replace(params=result.state.params), result

    found = {"before": validate(start.model)}
    mask = new_token_mask(start.model.params, first, num_new)
    model, _ = fit(flags.stage("new_tokens"), start.model, mask)
    found["new_tokens"] = validate(model)
    model, trained = fine_tuning.with_adapters(flags.stage("whole"), model, mesh)
    if flags.lora_rank is not None:
        mask = new_token_mask(model.params, first, num_new)
        trained = jax.tree.map(lambda adapted, new: adapted or new, trained, mask)
    model, result = fit(flags.stage("whole"), model, trained)
    headline = {
        "step": flags.new_token_steps + result.step,
        "stopped": result.stopped,
        "num_parameters": num_parameters(model.params),
        "num_new_tokens": num_new,
        "num_items": ids.num_items,
        **validate(model),
        "baselines": found,
        **result.timing,
    }
    model = model._replace(params=gather_arrays(model.params))
    if is_first_process():
        write_results(flags, start, model, ids, headline)
    return headline


def with_ids(flags: Flags, ids: SemanticIds, mesh: Mesh) -> tuple[Checkpoint, int]:
    """The checkpoint with the words of IDs in its vocabulary, and the first one's number."""
    options = {"attend": attention_on(mesh), "remat": flags.remat, "dtype": flags.dtype}
    start = read_checkpoint(flags.model, mesh=mesh, param_dtype="float32", **options)
    words = (*id_tokens(ids.sizes), TRIGGER)
    tokenizer, first = with_words(start.tokenizer, words)
    cfg, fn, params = add_tokens(
        start.model.cfg, start.model.params, first, len(words), seed=flags.seed, **options
    )
    params = jax.device_put(params, param_shardings(fn.axes, fn.shapes, mesh))
    model = start.model._replace(cfg=cfg, fn=fn, params=params)
    return start._replace(model=model, tokenizer=tokenizer), first


def read_sequences(flags: Flags, part: str, tokenizer: Any, num_tokens: int) -> TokenSequences:
    """The examples of one part as token sequences; those that are too long are left out.

    Raises:
        DataError: a file that is missing or breaks a rule, or no example that fits.
    """
    paths = [flags.examples / f"{kind}{part}.jsonl" for kind in ("", "histories_")]
    documents: list[Document] = []
    for path in paths:
        if path.name.startswith("histories_") and not path.is_file():
            continue
        found = read_documents(path)
        if part == "validation" and len(found) > flags.validation_examples:
            rows = np.random.default_rng(flags.seed).permutation(len(found))
            found = [found[row] for row in np.sort(rows[: flags.validation_examples])]
        documents += found
    whole = tokenize_documents(documents, tokenizer)
    fits = np.flatnonzero(whole.lengths <= num_tokens)
    if not len(fits):
        raise DataError(f"{paths[0]}: all examples have more than --num-tokens {num_tokens} tokens")
    if len(fits) < len(whole):
        print(
            f"{part}: {len(whole) - len(fits)} of {len(whole)} examples are left out, having more "
            f"than {num_tokens} tokens",
            file=sys.stderr,
        )
    spans = [slice(*whole.offsets[row : row + 2]) for row in fits]
    return TokenSequences.of(
        [whole.tokens[span] for span in spans], [whole.weights[span] for span in spans]
    )


def write_results(
    flags: Flags,
    start: Checkpoint,
    model: LanguageModel,
    ids: SemanticIds,
    headline: dict[str, Any],
) -> None:
    """`RUN/model` and `RUN/record.json`."""
    questions, _ = read_questions(flags.examples / FILE)
    cfg, params = merge_adapters(model.cfg, model.params)
    before = headline["baselines"]["before"]["nats_per_token"]
    card = (
        f"# A language model that knows {ids.num_items} items by their IDs\n\nTuned from "
        f"{Path(start.source).name} by `recipe_jax`: {flags.new_token_steps} steps of the new "
        f"words alone, then {flags.steps} steps. Validation: {headline['nats_per_token']:.4f} nats "
        f"per token, n = {headline['n']}; before: {before:.4f}.\n"
    )
    save_language_model(
        flags.run / "model",
        model._replace(cfg=cfg, params=params),
        card=card,
        tokenizer_files={
            **tokenizer_files(start.tokenizer),
            **language_files(questions, ids_as_bytes(ids)),
        },
    )
    stages = [flags.run / name / "metrics.jsonl" for name in ("new_tokens", "whole")]
    rows = [json.loads(line) for path in stages for line in path.read_text().splitlines()]
    record = make_record(
        command_line("experiments.semantic_ids tune", flags, always=("examples",)),
        config={
            **to_json(flags),
            "examples": place_of(flags.examples),
            "model": place_of(Path(start.source)),
            "run": "RUN",
        },
        model_config=to_json(cfg),
        validation=[row for row in rows if row["split"] == "validation"],
        **headline,
    )
    write_record(flags.run / "record.json", record)
