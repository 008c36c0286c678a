"""One run of the ablation, in a process of its own: time its steps, or train and score it.

`python -m experiments.recipes ablate` starts it; by hand it takes the same flags.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from experiments.recipes import train
from experiments.recipes.ablation_variants import (
    SHARED,
    VARIANTS,
    count_unseen,
    unseen_foods,
    without_unseen,
)
from experiments.recipes.amounts_protocol import (
    amount_queries,
    amount_recipes,
    evaluate_proportions,
    evaluate_samples,
)
from experiments.recipes.completion import (
    CompletionQueries,
    completion_queries,
    completion_ranks,
    completion_recipes,
    evaluate_completion,
    food_bits,
)
from experiments.recipes.drawing import generate_sets
from experiments.recipes.evaluate import SCORED_AT_ONCE, load_checkpoint
from experiments.recipes.generation_quality import sample_recipes, two_sample_auc
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.scoring import amount_functions, completion_score
from recipe_jax.data.batching import BUCKETS, EpochPlan, pad_recipes
from recipe_jax.data.files import replace_file
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.huggingface import LoadedModel
from recipe_jax.metrics import recall_at_k, reciprocal_rank, wasserstein_distance
from recipe_jax.training.run_folder import TrainingError

NUM_ORDERS = 4
NUM_GENERATED = 1000
NUM_SAMPLES = 40
NUM_WEIGHED = 1000
"""Recipes on which amounts are scored: one after the other, with samples, they take longest."""
TIMED_STEPS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """One run.

    Attributes:
        variant: a name of the ablation's.
        do: time its steps, or train and score it.
        run: its run folder.
        data: a prepared folder; the sample inside the package if not given.
        seed: of everything random.
        steps: updates in all.
        shape: fields of `train` that differ for every variant, as JSON.
    """

    variant: str
    do: Literal["time", "train"]
    run: Path
    data: Path | None = None
    seed: int = 0
    steps: int = 1
    shape: str = "{}"


def run(flags: Flags) -> None:
    """Write `RUN/seconds_per_step.json` or `RUN/scores.json`, whole or not at all."""
    # The seeds of a variant share what was compiled.
    jax.config.update("jax_compilation_cache_dir", str(flags.run.absolute().parent / "compiled"))
    variant = VARIANTS[flags.variant]
    everything = read_prepared(flags.data)
    seen = without_unseen(everything)
    prepared = variant.data(seen, flags.seed)
    training = train.Flags(
        **{**SHARED, **variant.flags, **json.loads(flags.shape)},
        run=flags.run,
        data=flags.data,
        steps=flags.steps,
        seed=flags.seed,
        evaluate_every=flags.steps,
        progress=False,
    )
    if flags.do == "time":
        flags.run.mkdir(parents=True, exist_ok=True)
        write_json(flags.run / "seconds_per_step.json", seconds_per_step(training, prepared))
        return
    headline = train.run(training, prepared)
    model = load_checkpoint(flags.run, prepared)
    scores: dict[str, Any] = {"": {}}
    if "foods" in variant.asks:
        scores = score_foods(model, prepared)
    if "amounts" in variant.asks:
        scores[""] |= score_amounts(model, prepared)
    if "unseen" in variant.asks:
        scores[""] |= score_unseen(model, everything)
    about = {k: headline[k] for k in ("step", "num_parameters", "wall_seconds", "compile_seconds")}
    found = {"variant": flags.variant, "seed": flags.seed, **about, "scores": scores}
    write_json(flags.run / "scores.json", found)


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def seconds_per_step(flags: train.Flags, prepared: Prepared) -> float:
    """The mean over an epoch: each padded size's median after compilation, by its frequency."""
    task = train.make_task(flags, prepared)
    fitting = train.set_up(flags, task)
    sets, batch_size = task.training, min(flags.batch_size, len(task.training))
    plan = EpochPlan(sets.sizes, batch_size=batch_size, buckets=BUCKETS, seed=flags.seed)
    drawn = [plan.batch(i) for i in range(plan.batches_per_epoch)]
    sizes = [size for _, size in drawn]
    state, seconds = fitting.state, {}
    for size in sorted(set(sizes)):
        rows = next(rows for rows, found in drawn if found == size)
        batch = pad_recipes(sets, rows, num_foods=len(prepared.foods), size=size)
        times = []
        for _ in range(TIMED_STEPS + 1):
            started = time.perf_counter()
            state, metrics = fitting.step(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - started)
        seconds[size] = statistics.median(times[1:])
    return statistics.fmean(seconds[size] for size in sizes)


def score_foods(model: LoadedModel, prepared: Prepared) -> dict[str, dict[str, float]]:
    """Completion and generation on validation recipes; a masked-set model also in one pass."""
    v, recipes = len(prepared.foods), prepared.sets.select_completion().select_split("validation")
    queries = completion_queries(completion_recipes(prepared.sets, "validation"), num_foods=v)
    score = completion_score(model.fn, model.params, model.molecules, num_orders=NUM_ORDERS)
    report = evaluate_completion(score, queries)
    found = {key: report[key] for key in ("recall_at_10", "mrr")}
    scores = {"": {**found, **_generation(model, recipes)}}
    if model.model_type == "masked_set_generator":
        scores["in one pass"] = _generation(model, recipes, num_passes=1)
    return scores


def _generation(model: LoadedModel, real: RecipeSets, **options: int) -> dict[str, float]:
    v, count = len(model.foods), min(NUM_GENERATED, len(real))
    generated = generate_sets(model, count, seed=0, **options).astype(np.int32)
    bits = food_bits(generated, num_foods=v)
    real_bits = food_bits(sample_recipes(real, count, num_foods=v, seed=0), num_foods=v)
    auc, _ = two_sample_auc(bits, real_bits)
    distance = wasserstein_distance(bits.sum(axis=1), real_bits.sum(axis=1))
    return {"auc_logistic": auc, "length_wasserstein": distance}


def score_amounts(model: LoadedModel, prepared: Prepared) -> dict[str, float]:
    """Errors, CRPS and coverage on the same validation recipes for every model."""
    recipes = amount_recipes(prepared.sets, "validation")
    chosen = np.random.default_rng(0).permutation(len(recipes))[:NUM_WEIGHED]
    recipes = recipes.select(np.isin(np.arange(len(recipes)), chosen))
    queries = amount_queries(recipes, num_foods=len(prepared.foods))
    predict, sample = amount_functions(model, num_samples=NUM_SAMPLES, seed=0)
    report = evaluate_proportions(predict, queries, batch_size=SCORED_AT_ONCE)
    report |= evaluate_samples(sample, queries, batch_size=SCORED_AT_ONCE)
    keys = ("log_ratio_error", "proportion_error", "crps", "coverage")
    return {key: report[key] for key in keys}


def score_unseen(model: LoadedModel, prepared: Prepared) -> dict[str, float]:
    """Where the foods never seen in training rank, among all foods that are not given."""
    queries = unseen_queries(prepared)
    score = completion_score(model.fn, model.params, model.molecules, num_orders=NUM_ORDERS)
    ranks = completion_ranks(score, queries)
    return {
        "unseen_median_rank": float(np.median(ranks)),
        "unseen_mrr": float(reciprocal_rank(ranks).mean()),
        "unseen_recall_at_10": float(recall_at_k(ranks, 10).mean()),
        "unseen_n": len(queries),
    }


def unseen_queries(prepared: Prepared) -> CompletionQueries:
    """Validation recipes of exactly one unseen food, which is the hidden one."""
    unseen = unseen_foods(prepared)
    recipes = completion_recipes(prepared.sets, "validation")
    recipes = recipes.select(count_unseen(recipes, unseen) == 1)
    hidden = unseen[recipes.foods]
    rows = [np.sort(recipes.foods_of(i)) for i in range(len(recipes))]
    given = [row[~unseen[row]] for row in rows]
    return CompletionQueries(
        recipe_ids=recipes.recipe_ids,
        offsets=np.cumsum([0, *map(len, given)], dtype=np.int64),
        given=np.concatenate([*given, np.zeros(0, np.int32)]),
        hidden=recipes.foods[hidden],
        num_foods=len(prepared.foods),
    )


if __name__ == "__main__":
    try:
        run(tyro.cli(Flags))
    except (ValueError, OSError, TrainingError) as problem:
        print(" ".join(str(problem).split()), file=sys.stderr)
        sys.exit(2)
