"""Train the recipe generator and a language model with a kernel and with the reference formula.

    python -m benchmarks.attention_training --implementation triton --steps 300

The data is the sample in the package: dishes as sets of foods with their molecules, and the same
lines as bytes, packed into rows.  The first steps, in exact float32 products, must give the same
losses whichever attends; then each trains in the precision that is usual, and is timed.  Prints
one JSON object and ends with 1 if losses differ or do not fall.  Needs no more than jax, flax,
optax, numpy and this repository.
"""

import argparse
import functools
import importlib.resources
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from recipe_kernels import attention
from recipe_kernels.attention.fused import Implementation

from experiments.record import check_writable, make_record, write_record
from recipe_jax.batches import Molecules, RecipeBatch, TokenBatch
from recipe_jax.data.composition import read_food_features
from recipe_jax.functional import purify
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.causal_language_model import (
    CausalLanguageModel,
    CausalLanguageModelConfig,
    next_token_loss,
)
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    remaining_set_loss,
)

ALIKE_STEPS = 10
ALIKE = 1e-4
"""By how much losses of the first steps may differ, in nats."""


class Task(NamedTuple):
    """Something to be learned.

    Attributes:
        params: where it begins.
        loss: of parameters and a batch.
        batches: endless.
    """

    params: Any
    loss: Callable[[Any, Any], jax.Array]
    batches: Iterator[Any]


def dishes() -> list[dict[str, Any]]:
    """The sample in the package."""
    path = importlib.resources.files("recipe_jax") / "assets/sample/recipes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_recipes(attend: Attend, *, small: bool, exact: bool) -> Task:
    """Which foods complete a dish; float32 in any case."""
    del exact
    features = read_food_features()
    molecules = Molecules(
        composition=jnp.asarray(features.components),
        observed=jnp.asarray(features.observed, jnp.float32),
        flavour=jnp.asarray(features.flavour),
        has_flavour=jnp.asarray(features.has_flavour, jnp.float32),
    )
    (v, c), a = features.components.shape, features.flavour.shape[1]
    width, layers, heads, rows, most = (32, 1, 2, 16, 20) if small else (512, 4, 8, 1024, 31)
    cfg = GeneratorConfig(
        embedding=FoodEmbeddingConfig(
            num_foods=v, num_components=c, num_compounds=a, embed_dim=width
        ),
        transformer=TransformerConfig(num_layers=layers, embed_dim=width, num_heads=heads),
        max_foods=most,
    )
    fn, params = purify(IngredientGenerator(cfg, attend=attend, rngs=nnx.Rngs(0)))
    index = {food: n for n, food in enumerate(features.foods)}
    sets = [[index[food] for food in dish["ingredients"] if food in index] for dish in dishes()]

    def loss(params: Any, batch: RecipeBatch) -> jax.Array:
        return remaining_set_loss(fn.bind(params)(molecules, batch.foods), batch).total.mean()

    def batches() -> Iterator[RecipeBatch]:
        rng = np.random.default_rng(0)
        while True:
            foods = np.full((rows, most), v, np.int32)
            lengths = np.zeros(rows, np.int32)
            for row, dish in enumerate(rng.integers(0, len(sets), rows)):
                members = rng.permutation(sets[dish])[:most]
                foods[row, : len(members)], lengths[row] = members, len(members)
            yield RecipeBatch(foods, lengths, np.zeros((rows, most), np.float32))

    return Task(params, loss, batches())


def of_language(attend: Attend, *, small: bool, exact: bool) -> Task:
    """The next byte of the lines of the sample, packed into rows; bfloat16 unless exact."""
    width, layers, heads, rows, tokens = (32, 1, 4, 2, 256) if small else (512, 8, 8, 8, 2048)
    cfg = CausalLanguageModelConfig(
        vocab_size=256,
        transformer=TransformerConfig(
            num_layers=layers,
            embed_dim=width,
            num_heads=heads,
            num_kv_heads=2,
            activation="swiglu",
        ),
        max_positions=tokens,
    )
    dtype = "float32" if exact else "bfloat16"
    fn, params = purify(CausalLanguageModel(cfg, attend=attend, dtype=dtype, rngs=nnx.Rngs(0)))
    lines = [np.frombuffer(json.dumps(dish).encode(), np.uint8) for dish in dishes()]

    def loss(params: Any, batch: TokenBatch) -> jax.Array:
        terms = next_token_loss(fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum()

    def packed(rng: np.random.Generator) -> TokenBatch:
        found = np.zeros((4, rows, tokens), np.int32)
        for row in range(rows):
            start, segment = 0, 0
            while start < tokens:
                line, segment = lines[rng.integers(0, len(lines))][: tokens - start], segment + 1
                place = slice(start, start + len(line))
                found[0, row, place], found[1, row, place] = line, segment
                found[2, row, place] = np.arange(len(line))
                found[3, row, start + 1 : start + len(line)] = 1
                start += len(line)
        return TokenBatch(found[0], found[1], found[2], found[3].astype(np.float32))

    def batches() -> Iterator[TokenBatch]:
        rng = np.random.default_rng(0)
        while True:
            yield packed(rng)

    return Task(params, loss, batches())


def train(task: Task, steps: int) -> tuple[list[float], float]:
    """Losses, and the median of the seconds of a step."""
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, losses, seconds = task.params, optimizer.init(task.params), [], []
    for _ in range(steps):
        batch = next(task.batches)
        started = time.perf_counter()
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - started)
    return losses, float(np.median(seconds))


def main() -> int:
    """Train both, print, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--implementation", choices=get_args(Implementation), default="tiled")
    parser.add_argument("--steps", type=int, default=300, help="of the timed runs")
    parser.add_argument("--small", action="store_true", help="models and batches for a CPU")
    parser.add_argument("--record", type=Path, help="write the results here, too")
    flags = parser.parse_args()
    if flags.record is not None:
        check_writable(flags.record)
    kernel: Attend = functools.partial(attention, implementation=flags.implementation)
    command = f"python -m benchmarks.attention_training --implementation {flags.implementation}"
    found, right = {}, True
    for name, make in (("recipes", of_recipes), ("language model", of_language)):
        with jax.default_matmul_precision("highest"):
            alike = [
                train(make(attend, small=flags.small, exact=True), ALIKE_STEPS)[0]
                for attend in (kernel, dot_product_attention)
            ]
        difference = float(np.abs(np.subtract(alike[0], alike[1])).max())
        (losses, seconds), (reference, of_reference) = (
            train(make(attend, small=flags.small, exact=False), flags.steps)
            for attend in (kernel, dot_product_attention)
        )
        found[name] = {
            "difference_of_first_losses": difference,
            "losses": losses[:: max(1, flags.steps // 20)],
            "last_loss": losses[-1],
            "last_loss_of_reference": reference[-1],
            "seconds_per_step": seconds,
            "seconds_per_step_of_reference": of_reference,
        }
        right &= difference <= ALIKE and losses[-1] < losses[0]
        record = make_record(command, steps=flags.steps, small=flags.small, runs=found, right=right)
        if flags.record is not None:
            write_record(flags.record, record)
    print(json.dumps(record))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
