"""A causal language model beside transformers and torch: training steps, greedy generation.

    python -m benchmarks.language_model --record benchmarks/records/language_model.json

Both load the same Hugging Face folder, a random Llama of ten million parameters, in float32 on the
same two cores, in two processes that take turns.  Theirs trains with the library's own attention
(SDPA) and fused AdamW, and generates with `generate()`.  The losses and the generated tokens must
agree first.  Needs the extras `[parity,language]`.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.timing import (
    Answer,
    Remote,
    alternate,
    matmul_gigaflops,
    percentiles,
    seconds_of,
)

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
MATMUL_SIZE = 1024
LOSS_TOLERANCE = 1e-4
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
"""Of the model: 10.0 million parameters, output layer not tied."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        rounds: rounds of each contestant that count, after one that does not.
        steps: training steps in a round.
        batch_size: rows of a training step.
        num_tokens: tokens of a row.
        new_tokens: tokens to generate after a prompt of 16.
        batch_sizes: rows of prompts that are continued together.
        num_layers: depth of the model.
        threads: processor cores of each process, of which one works at a time.
        record: write the results to this file.
    """

    rounds: int = 7
    steps: int = 3
    batch_size: int = 8
    num_tokens: int = 256
    new_tokens: int = 128
    batch_sizes: tuple[int, ...] = (1, 16)
    num_layers: int = SHAPE["num_hidden_layers"]
    threads: int = 2
    record: Path | None = None


class Workload(NamedTuple):
    """What both contestants do.

    Attributes:
        folder: a Hugging Face folder.
        tokens: a training batch.
        prompts: name of a measurement -> prompts to continue.
        new_tokens: by how many tokens.
        steps: training steps in a round.
    """

    folder: str
    tokens: np.ndarray
    prompts: dict[str, np.ndarray]
    new_tokens: int
    steps: int


def make_workload(flags: Flags, folder: Path) -> Workload:
    """Write the model and draw the tokens."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {**SHAPE, "num_hidden_layers": flags.num_layers}
    config = transformers.LlamaConfig(**shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    rng = np.random.default_rng(0)

    def draw(rows: int, columns: int) -> np.ndarray:
        return rng.integers(3, SHAPE["vocab_size"], (rows, columns)).astype(np.int32)

    return Workload(
        folder=str(folder),
        tokens=draw(flags.batch_size, flags.num_tokens),
        prompts={f"generate {rows}": draw(rows, 16) for rows in flags.batch_sizes},
        new_tokens=flags.new_tokens,
        steps=flags.steps,
    )


def ours(workload: Workload) -> Answer:
    """Our training step and our generation; both are compiled before this returns."""
    import jax
    import jax.numpy as jnp
    import optax
    from recipe_kernels import attention

    from recipe_jax.batches import TokenBatch
    from recipe_jax.huggingface import load_language_model
    from recipe_jax.models.causal_language_model import next_token_loss
    from recipe_jax.token_decoding import generate
    from recipe_jax.training.state import init_state
    from recipe_jax.training.step import make_train_step

    model = load_language_model(
        workload.folder, param_dtype="float32", remat="elementwise", attend=attention
    )
    batch = TokenBatch(
        tokens=workload.tokens,
        segments=np.ones_like(workload.tokens),
        positions=np.broadcast_to(np.arange(workload.tokens.shape[1]), workload.tokens.shape),
        weights=np.ones(workload.tokens.shape, np.float32),
    )

    def objective(params: Any, batch: TokenBatch, key: Any) -> tuple[Any, Any]:
        terms = next_token_loss(model.fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum(), {}

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    step = make_train_step(objective, optimizer)
    state = init_state(jax.tree.map(jnp.copy, model.params), optimizer, jax.random.key(0))
    loss = float(jax.jit(objective)(model.params, batch, None)[0])

    def train(steps: int = workload.steps) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    def continue_prompts(name: str) -> np.ndarray:
        prompt = workload.prompts[name]
        lengths = np.full(len(prompt), prompt.shape[1], np.int32)
        found = generate(
            model.fn,
            model.params,
            jnp.asarray(prompt),
            jnp.asarray(lengths),
            max_new_tokens=workload.new_tokens,
        )
        return np.asarray(found.tokens)

    compile_seconds = {"train": seconds_of(lambda: train(1))}
    compile_seconds |= {
        name: seconds_of(lambda name=name: continue_prompts(name)) for name in workload.prompts
    }
    matrix = jnp.ones((MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    words: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss,
        "num_parameters": lambda: sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "first_call_seconds": lambda: compile_seconds,
        "matmul": lambda: matmul_gigaflops(
            lambda: product(matrix, matrix).block_until_ready(), MATMUL_SIZE
        ),
        "train": lambda: seconds_of(train),
    }
    for name in workload.prompts:
        words[name] = lambda name=name: seconds_of(lambda: continue_prompts(name))
        words[f"{name} tokens"] = lambda name=name: continue_prompts(name)
    return lambda word: words[word]()


def theirs(workload: Workload) -> Answer:
    """The same with torch and transformers."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(workload.folder)
    trained = transformers.AutoModelForCausalLM.from_pretrained(workload.folder).train()
    model.eval()
    optimizer = torch.optim.AdamW(
        trained.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    tokens = torch.tensor(workload.tokens).long()

    def train() -> None:
        for _ in range(workload.steps):
            optimizer.zero_grad(set_to_none=True)
            trained(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()

    def continue_prompts(name: str) -> np.ndarray:
        prompt = torch.tensor(workload.prompts[name]).long()
        with torch.no_grad():
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=workload.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[:, prompt.shape[1] :].numpy()

    def loss() -> float:
        with torch.no_grad():
            return float(model(input_ids=tokens, labels=tokens).loss)

    matrix = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    words: dict[str, Callable[[], Any]] = {
        "loss": loss,
        "matmul": lambda: matmul_gigaflops(lambda: matrix @ matrix, MATMUL_SIZE),
        "train": lambda: seconds_of(train),
        "versions": lambda: {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "torch_threads": torch.get_num_threads(),
            "torch_attention": model.config._attn_implementation,
        },
    }
    for name in workload.prompts:
        words[name] = lambda name=name: seconds_of(lambda: continue_prompts(name))
        words[f"{name} tokens"] = lambda name=name: continue_prompts(name)
    return lambda word: words[word]()


def measure(flags: Flags) -> dict[str, Any]:
    """Run both contestants in turns.

    Raises:
        ValueError: if the two do not give the same loss and the same tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        workload = make_workload(flags, Path(folder))
        with (
            Remote(ours, workload, threads=flags.threads) as jax_process,
            Remote(theirs, workload, threads=flags.threads) as torch_process,
        ):
            agree(workload, jax_process, torch_process)
            contestants = {
                f"{name} {word}": functools.partial(process, word)
                for word in ("train", *workload.prompts, "matmul")
                for name, process in (("ours", jax_process), ("theirs", torch_process))
            }
            started = time.perf_counter()
            samples = alternate(contestants, rounds=flags.rounds)
            seconds = time.perf_counter() - started
            amounts = {"train": flags.steps * flags.batch_size * flags.num_tokens}
            amounts |= {name: flags.new_tokens * len(p) for name, p in workload.prompts.items()}
            return summarise(samples, amounts) | {
                "num_parameters": jax_process("num_parameters"),
                "first_call_seconds": jax_process("first_call_seconds"),
                "benchmark_seconds": seconds,
                **torch_process("versions"),
            }


def agree(workload: Workload, jax_process: Remote, torch_process: Remote) -> None:
    """Refuse to compare the speeds of two things that are not the same."""
    losses = jax_process("loss"), torch_process("loss")
    if abs(losses[0] - losses[1]) > LOSS_TOLERANCE * abs(losses[1]):
        raise ValueError(f"the models differ: ours loses {losses[0]} nats, theirs {losses[1]}")
    for name in workload.prompts:
        found, expected = jax_process(f"{name} tokens"), torch_process(f"{name} tokens")
        if not np.array_equal(found, expected):
            raise ValueError(f"{name}: {np.mean(found != expected):.1%} of the tokens differ")


def summarise(samples: dict[str, list[float]], amounts: dict[str, int]) -> dict[str, Any]:
    """Tokens per second from seconds per round, and their ratios.

    Args:
        samples: seconds per round by contestant; `… matmul` is 10^9 operations per second.
        amounts: tokens in a round, by what is measured.
    """
    rates = {
        f"{name} {word}": [tokens / seconds for seconds in samples[f"{name} {word}"]]
        for word, tokens in amounts.items()
        for name in ("ours", "theirs")
    }
    ratios = {
        word: [a / b for a, b in zip(rates[f"ours {word}"], rates[f"theirs {word}"], strict=True)]
        for word in amounts
    }
    return {
        "ours_over_theirs": {word: percentiles(r)._asdict() for word, r in ratios.items()},
        "tokens_per_second": {name: percentiles(r)._asdict() for name, r in rates.items()},
        "matmul_gigaflops": {
            name: percentiles(samples[f"{name} matmul"])._asdict() for name in ("ours", "theirs")
        },
    }


def print_results(results: dict[str, Any]) -> None:
    """A table for people, on stderr."""
    table = Table("", "tokens/s p50", "p20", "p80")
    for name, rate in results["tokens_per_second"].items():
        table.add_row(name, *(f"{rate[p]:.0f}" for p in ("p50", "p20", "p80")))
    console = Console(stderr=True)
    console.print(table)
    for word, ratio in results["ours_over_theirs"].items():
        console.print(f"{word}: ours / theirs {ratio['p50']:.2f}")
    matmul = results["matmul_gigaflops"]
    console.print(
        f"matmul: ours {matmul['ours']['p50']:.0f}, theirs {matmul['theirs']['p50']:.0f} GFLOP/s"
    )
    console.print(f"first calls, compilation included: {results['first_call_seconds']}")


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    if importlib.util.find_spec("torch") is None:
        print(
            "language_model: torch is missing: pip install 'recipe-jax[parity,language]'",
            file=sys.stderr,
        )
        return 2
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"language_model: {error}", file=sys.stderr)
        return 2
    print_results(results)
    if flags.record is not None:
        from experiments.record import command_line, make_record, write_record

        given = {k: v for k, v in dataclasses.asdict(flags).items() if k != "record"}
        command = command_line("benchmarks.language_model", flags)
        record = make_record(command, flags=given, shape=SHAPE, **results)
        write_record(flags.record, record)
    print(
        json.dumps(
            {
                "ours_over_theirs": {
                    word: ratio["p50"] for word, ratio in results["ours_over_theirs"].items()
                },
                "first_call_seconds": results["first_call_seconds"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
