"""Classify the rows of a table with a multi-layer perceptron, beside two simple baselines.

`python -m experiments.classify --csv flowers.csv --label species --run runs/flowers` learns the
column `species` from all others, which must be numbers, and scores what it learned on rows it did
not see.  Without `--csv` the table is the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels
each; their writers are not named, so that one writer's digits lie in several parts of the split.

Rows are split by class and chance, always in the same way: 14 of 20 are learned from, 3 choose the
best checkpoint (and should choose the flags), 3 are for testing.  The last line on stdout is one
JSON object; a human table goes to stderr.  The same command on the same `--run` folder resumes.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Array, Float, Float32, Float64, Int32
from sklearn.linear_model import LogisticRegression

from experiments.labelled_tables import (
    MAX_DEVIATIONS,
    Dataset,
    Split,
    Table,
    digits_table,
    make_dataset,
    read_csv,
)
from experiments.record import command_line, make_record, write_record
from recipe_jax.functional import Params, PureModule, num_parameters, purify
from recipe_jax.huggingface import save_module
from recipe_jax.layers.feed_forward import Activation
from recipe_jax.metrics import bootstrap_interval
from recipe_jax.models.feed_forward_network import (
    ClassificationBatch,
    FeedForwardClassifier,
    FeedForwardNetworkConfig,
    InitializerName,
    classification_loss,
)
from recipe_jax.training.checkpoint import Checkpoints
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import warmup_cosine
from recipe_jax.training.run_folder import TrainingError
from recipe_jax.training.state import TrainState, init_state
from recipe_jax.training.step import make_train_step

Scores: TypeAlias = dict[str, Any]

AT_ONCE = 8192
"""Rows whose probabilities are computed together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a run.

    Attributes:
        csv: a table with a header; scikit-learn's digits if not given.
        label: the column of the classes, which may be any text; needed with --csv.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        hidden_dims: widths of the hidden layers; none is a linear model.
        activation: of hidden layers; gated units are refused.
        norm: of a hidden layer's sums, before the activation.
        dropout: probability that a hidden unit is dropped.
        residual: whether a hidden layer as wide as its input adds this input to its output.
        initializer: of the weights.
        batch_size: rows per step; all, where there are fewer.
        learning_rate: peak of the schedule.
        weight_decay: of weights, times the learning rate.
        evaluate_every: steps between validations.
        split: rows to score; choose flags by validation, look at test once.
        seed: of the initial weights, the batches and dropout; the split is always the same.
        progress: show the progress bar.
    """

    csv: Path | None = None
    label: str | None = None
    run: Path = Path("runs/classify")
    steps: int = 2000
    hidden_dims: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    norm: Literal["none", "rms", "layer"] = "none"
    dropout: float = 0.4
    residual: bool = True
    initializer: InitializerName = "kaiming_uniform"
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    evaluate_every: int = 100
    split: Literal["validation", "test"] = "test"
    seed: int = 0
    progress: bool = True


def shuffled_batches(
    training: ClassificationBatch, *, batch_size: int, seed: int
) -> Iterator[ClassificationBatch]:
    """Endless batches; each epoch has another order and leaves out what fills no batch."""
    n = len(training.labels)
    batch_size = min(batch_size, n)
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(n)
        for start in range(0, n - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield ClassificationBatch(training.features[rows], training.labels[rows])
        epoch += 1


def train(
    flags: Flags, data: Dataset, cfg: FeedForwardNetworkConfig
) -> tuple[FitResult, PureModule[FeedForwardClassifier], Params]:
    """Fit the classifier in the run folder; its parameters are those of the best validation."""
    plan = FitPlan(
        num_steps=flags.steps,
        evaluate_every=flags.evaluate_every,
        metric="nats",
        show_progress=flags.progress,
    )
    fn, params = purify(FeedForwardClassifier(cfg, rngs=nnx.Rngs(flags.seed)))
    schedule = warmup_cosine(
        flags.learning_rate, warmup_steps=min(100, flags.steps // 10 + 1), num_steps=flags.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=flags.weight_decay, mask=_is_matrix),
    )

    def objective(params: Params, batch: ClassificationBatch, key: jax.Array) -> Any:
        terms = classification_loss(fn.bind(params)(batch.features, key=key), batch.labels)
        return terms.nats.mean(), {"accuracy": terms.correct.mean()}

    def evaluate(state: TrainState) -> dict[str, float]:
        validation = data.splits["validation"]
        found = probabilities(fn, state.params, validation.features)
        nats, correct = score(found, validation.labels)
        return {"nats": float(nats.mean()), "accuracy": float(correct.mean())}

    result = fit(
        make_train_step(objective, optimizer),
        init_state(params, optimizer, jax.random.key(flags.seed)),
        shuffled_batches(data.splits["training"], batch_size=flags.batch_size, seed=flags.seed),
        run=flags.run,
        plan=plan,
        config=_run_config(flags, data, cfg),
        evaluate=evaluate,
    )
    with Checkpoints(flags.run / "checkpoints") as saved:
        return result, fn, saved.restore_params(fn.shapes)


def _is_matrix(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _run_config(flags: Flags, data: Dataset, cfg: FeedForwardNetworkConfig) -> dict[str, Any]:
    """What defines the run: the flags that change its result, the data, the model."""
    free = ("csv", "run", "split", "progress")
    chosen = {name: value for name, value in dataclasses.asdict(flags).items() if name not in free}
    return chosen | {"data": data.table.fingerprint, "model_config": dataclasses.asdict(cfg)}


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
    fn: PureModule[FeedForwardClassifier], params: Params, features: Float[Array, "b f"]
) -> Float32[Array, "b c"]:
    return fn.bind(params).predict_proba(features)


def probabilities(
    fn: PureModule[FeedForwardClassifier], params: Params, features: Float32[np.ndarray, "n f"]
) -> Float32[np.ndarray, "n c"]:
    """The probability of each class for each row."""
    parts = np.array_split(features, -(-len(features) // AT_ONCE))
    return np.concatenate([np.asarray(_probabilities(fn, params, part)) for part in parts])


def score(
    found: Float[np.ndarray, "n c"], labels: Int32[np.ndarray, "n"]
) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Nats and whether the most probable class is right, per row.

    A probability of 0 counts as the smallest of float32, 87 nats: baselines give 0 where rounding
    does, and one row would make the mean infinite.
    """
    right = found[np.arange(len(labels)), labels].astype(np.float64)
    nats = -np.log(np.maximum(right, np.finfo(np.float32).tiny))
    return nats, (found.argmax(axis=1) == labels).astype(np.float64)


def baseline_probabilities(
    data: Dataset, features: Float32[np.ndarray, "n f"]
) -> dict[str, Float64[np.ndarray, "n c"]]:
    """What the baselines make of rows: logistic regression, and each class's share of training."""
    training = data.splits["training"]
    regression = LogisticRegression(max_iter=5000).fit(training.features, training.labels)
    shares = np.bincount(training.labels) / len(training.labels)
    return {
        "logistic_regression": regression.predict_proba(features),
        "majority_class": np.tile(shares, (len(features), 1)),
    }


def summary(found: Float[np.ndarray, "n c"], labels: Int32[np.ndarray, "n"]) -> Scores:
    """Accuracy with its 95 % interval, and mean nats."""
    nats, correct = score(found, labels)
    accuracy, low, high = bootstrap_interval(correct, rng=np.random.default_rng(0))
    return {
        "accuracy": accuracy,
        "accuracy_interval": [low, high],
        "nats": float(nats.mean()),
        "n": len(labels),
    }


def run(flags: Flags) -> Scores:
    """Train, score one part of the table, and write record and model to the run folder."""
    check_flags(flags)
    data = make_dataset(read_table(flags))
    cfg = model_config(flags, data.table)
    result, fn, params = train(flags, data, cfg)
    rows = data.splits[flags.split]
    scores = summary(probabilities(fn, params, rows.features), rows.labels)
    baselines = {
        name: summary(found, rows.labels)
        for name, found in baseline_probabilities(data, rows.features).items()
    }
    headline = {
        "split": flags.split,
        **scores,
        "step": result.step,
        "best_step": result.best_step,
        "num_parameters": num_parameters(fn.shapes),
        "baselines": baselines,
        **result.timing,
    }
    print_scores(flags.split, {"feed_forward": scores} | baselines)
    write_results(flags, data, cfg, params, headline)
    return headline


def check_flags(flags: Flags) -> None:
    """Refuse numbers that make no run; the model's and the plan's are checked where they are made.

    Raises:
        ValueError: naming the flag.
    """
    for name in ("batch_size", "learning_rate"):
        if not getattr(flags, name) > 0:
            raise ValueError(f"{name}={getattr(flags, name)} must be above 0")
    for name in ("weight_decay", "seed"):
        if not getattr(flags, name) >= 0:
            raise ValueError(f"{name}={getattr(flags, name)} must be at least 0")


def read_table(flags: Flags) -> Table:
    """The table that the flags name.

    Raises:
        ValueError: if only one of --csv and --label is given, or the file breaks a rule.
    """
    if flags.csv is None and flags.label is None:
        return digits_table()
    if flags.csv is None or flags.label is None:
        given, missing = ("--label", "--csv") if flags.csv is None else ("--csv", "--label")
        raise ValueError(f"{given} needs {missing}; without both the table is the digits")
    return read_csv(flags.csv, flags.label)


def model_config(flags: Flags, table: Table) -> FeedForwardNetworkConfig:
    """The shape that the flags ask for, on this table."""
    return FeedForwardNetworkConfig(
        in_dim=len(table.names),
        out_dim=len(table.classes),
        hidden_dims=flags.hidden_dims,
        activation=flags.activation,
        norm=flags.norm,
        dropout_rate=flags.dropout,
        residual=flags.residual,
        initializer=flags.initializer,
    )


def print_scores(split: Split, rows: Mapping[str, Scores]) -> None:
    """A table on stderr, one row a model."""
    n = next(iter(rows.values()))["n"]
    print(f"{f'{split}, {n} rows':<22}  accuracy  95 % interval      nats", file=sys.stderr)
    for name, scores in rows.items():
        low, high = scores["accuracy_interval"]
        figures = f"{scores['accuracy']:8.4f}  {low:.4f} to {high:.4f}  {scores['nats']:8.4f}"
        print(f"{name.replace('_', ' '):<22}  {figures}", file=sys.stderr)


def write_results(
    flags: Flags, data: Dataset, cfg: FeedForwardNetworkConfig, params: Params, headline: Scores
) -> None:
    """Write the record, and the model with what whoever uses it needs to know of its inputs."""
    inputs = {
        "features": data.table.names,
        "mean": data.mean.tolist(),
        "deviation": data.deviation.tolist(),
        "max_deviations": MAX_DEVIATIONS,
        "classes": data.table.classes,
    }
    save_module(
        flags.run / "model",
        cfg=cfg,
        params=jax.device_get(params),
        card=model_card(flags, data, headline),
        model_type="feed_forward_classifier",
        config={"inputs": inputs},
    )
    record = make_record(
        command_line("experiments.classify", flags),
        config=_run_config(flags, data, cfg),
        num_rows={split: len(rows.labels) for split, rows in data.splits.items()},
        **headline,
    )
    write_record(flags.run / "record.json", record)


def model_card(flags: Flags, data: Dataset, headline: Scores) -> str:
    """What the model is and how far to trust it, in Markdown."""
    low, high = headline["accuracy_interval"]
    source = "scikit-learn's digits" if flags.csv is None else flags.csv.name
    return (
        f"# A classifier of {len(data.table.classes)} classes\n\n"
        f"Trained by `recipe_jax` on {len(data.splits['training'].labels)} rows of {source}. "
        "`inputs` in `config.json` says how a row is standardised: its deviation from the mean, "
        "cut off at `max_deviations`.\n\n"
        f"Accuracy on {flags.split}: {headline['accuracy']:.3f} (95 % interval {low:.3f} to "
        f"{high:.3f}, n = {headline['n']}); logistic regression "
        f"{headline['baselines']['logistic_regression']['accuracy']:.3f}.\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    flags = tyro.cli(
        Flags, args=list(arguments), prog="python -m experiments.classify", description=__doc__
    )
    try:
        headline = run(flags)
    except (ValueError, OSError, TrainingError) as error:
        print(f"classify: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(headline))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
