"""Attention kernels beside references on the same inputs: time, rate, memory, error.

    python -m benchmarks.attention --record benchmarks/records/attention_cpu.json

Contestants take turns within one process for JAX and one for torch (where it is installed), float32
on a CPU.  Rates count the operations that the mask leaves, the backward pass as 2.5 forward passes;
errors are the largest differences to float64, divided by its largest value.  Losses are printed
like wins.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Answer, Remote, alternate, percentiles, seconds_of
from experiments.record import command_line, make_record, write_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        tokens: queries and keys of each case.
        batch_size: rows.
        num_heads: query and key heads.
        head_dim: width of a head.
        rounds: calls of each contestant that count, after one that does not.
        threads: processor cores of each process, of which one works at a time.
        quick: one small case, one round.
        record: write the results to this file.
    """

    tokens: tuple[int, ...] = (64, 256, 512, 2048)
    batch_size: int = 8
    num_heads: int = 8
    head_dim: int = 64
    rounds: int = 5
    threads: int = 2
    quick: bool = False
    record: Path | None = None


class Shape(NamedTuple):
    """Of queries, keys and values, causal."""

    batch_size: int
    tokens: int
    num_heads: int
    head_dim: int

    @property
    def operations(self) -> float:
        """Of a forward pass: two products of the pairs that the mask leaves."""
        pairs = self.tokens * (self.tokens + 1) / 2
        return 4 * self.batch_size * self.num_heads * pairs * self.head_dim

    def draw(self) -> list[np.ndarray]:
        """Queries, keys, values and the gradient of the result."""
        rng = np.random.default_rng(0)
        size = (self.batch_size, self.tokens, self.num_heads, self.head_dim)
        return [rng.normal(size=size).astype(np.float32) for _ in range(4)]


def in_jax(shape: Shape) -> Answer:
    """Ours, the reference formula, and `jax.nn.dot_product_attention`."""
    import jax
    import jax.numpy as jnp
    from recipe_kernels import attention

    from recipe_jax.layers.attention import dot_product_attention
    from recipe_jax.layers.masks import Mask

    mask = Mask(causal=True)
    attends: dict[str, Callable[..., Any]] = {
        "tiled": functools.partial(attention, mask=mask, implementation="tiled"),
        "reference": functools.partial(dot_product_attention, mask=mask),
        "jax.nn, xla": functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation="xla"
        ),
    }
    arrays = [jnp.asarray(x) for x in shape.draw()]

    def pulled(attend: Callable[..., Any], *given: Any) -> Any:
        out, pull = jax.vjp(attend, *given[:3])
        return out, *pull(given[3])

    words: dict[str, Callable[[], Any]] = {}
    for name, attend in attends.items():
        alone, both = jax.jit(attend), jax.jit(functools.partial(pulled, attend))
        words[f"{name}: forward"] = functools.partial(_seconds, alone, arrays[:3])
        words[f"{name}: both"] = functools.partial(_seconds, both, arrays)
        words[f"{name}: bytes"] = functools.partial(_temporary_bytes, both, arrays)
        words[f"{name}: results"] = lambda both=both: [np.asarray(x) for x in both(*arrays)]
    words["names"] = lambda: list(attends)
    return lambda word: words[word]()


def _seconds(function: Callable[..., Any], arrays: list[Any]) -> float:
    import jax

    return seconds_of(lambda: jax.block_until_ready(function(*arrays)))


def _temporary_bytes(function: Any, arrays: list[Any]) -> int:
    return function.lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def in_torch(shape: Shape) -> Answer:
    """`scaled_dot_product_attention` of torch."""
    import torch  # pyright: ignore[reportMissingImports]

    query, key, value, grad = (torch.tensor(x).transpose(1, 2).contiguous() for x in shape.draw())
    attend = functools.partial(
        torch.nn.functional.scaled_dot_product_attention, is_causal=True, scale=None
    )

    def forward() -> None:
        with torch.no_grad():
            attend(query, key, value)

    def both() -> list[Any]:
        heads = [x.detach().requires_grad_() for x in (query, key, value)]
        out = attend(*heads)
        out.backward(grad)
        return [out.detach(), *(x.grad for x in heads)]

    words: dict[str, Callable[[], Any]] = {
        "torch: forward": lambda: seconds_of(forward),
        "torch: both": lambda: seconds_of(both),
        "torch: results": lambda: [x.transpose(1, 2).numpy() for x in both()],
        "names": lambda: ["torch"],
    }
    return lambda word: words[word]()


def exact(shape: Shape) -> list[np.ndarray]:
    """Result and gradients in float64, head by head."""
    query, key, value, grad = (x.astype(np.float64) for x in shape.draw())
    found = [np.zeros_like(query) for _ in range(4)]
    seen = np.tri(shape.tokens, dtype=bool)
    for row, head in np.ndindex(shape.batch_size, shape.num_heads):
        q, k, v, g = (x[row, :, head] for x in (query, key, value, grad))
        logits = np.where(seen, q @ k.T * shape.head_dim**-0.5, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        out = shares @ v
        pulled = shares * (g @ v.T - (g * out).sum(-1, keepdims=True)) * shape.head_dim**-0.5
        for result, x in zip(found, (out, pulled @ k, pulled.T @ q, shares.T @ g), strict=True):
            result[row, :, head] = x
    return found


def measure(shape: Shape, flags: Flags) -> dict[str, Any]:
    """All contestants on one shape, in turns."""
    makers = [in_jax] + ([in_torch] if importlib.util.find_spec("torch") else [])
    processes = [Remote(make, shape, threads=flags.threads) for make in makers]
    try:
        of_name = {name: process for process in processes for name in process("names")}
        samples = alternate(
            {
                f"{name}: {part}": functools.partial(process, f"{name}: {part}")
                for part in ("forward", "both")
                for name, process in of_name.items()
            },
            rounds=flags.rounds,
        )
        expected = exact(shape) if shape.tokens <= 512 else None
        return {
            "shape": shape._asdict(),
            "contestants": {
                name: {
                    part: percentiles(samples[f"{name}: {part}"])._asdict()
                    for part in ("forward", "both")
                }
                | {
                    "gigaflops": 3.5e-9
                    * shape.operations
                    / percentiles(samples[f"{name}: both"]).p50,
                    "temporary_bytes": None if name == "torch" else process(f"{name}: bytes"),
                    "error": _error(process(f"{name}: results"), expected),
                }
                for name, process in of_name.items()
            },
        }
    finally:
        for process in processes:
            process.__exit__()


def _error(found: list[np.ndarray], expected: list[np.ndarray] | None) -> float | None:
    if expected is None:
        return None
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def print_results(results: list[dict[str, Any]]) -> None:
    """A table for people, on stderr."""
    table = Table(
        "tokens", "", "forward ms p50", "both ms p50", "p20", "p80", "GFLOP/s", "MB", "error"
    )
    for case in results:
        for name, found in case["contestants"].items():
            both, size, error = found["both"], found["temporary_bytes"], found["error"]
            table.add_row(
                str(case["shape"]["tokens"]),
                name,
                f"{1e3 * found['forward']['p50']:.2f}",
                *(f"{1e3 * both[p]:.2f}" for p in ("p50", "p20", "p80")),
                f"{found['gigaflops']:.0f}",
                "" if size is None else f"{size / 1e6:.1f}",
                "" if error is None else f"{error:.0e}",
            )
    Console(stderr=True).print(table)


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    if flags.quick:
        flags = dataclasses.replace(flags, tokens=(64,), batch_size=2, rounds=1)
    shapes = [
        Shape(flags.batch_size, tokens, flags.num_heads, flags.head_dim) for tokens in flags.tokens
    ]
    results = [measure(shape, flags) for shape in shapes]
    print_results(results)
    if flags.record is not None:
        record = make_record(command_line("benchmarks.attention", flags), cases=results)
        write_record(flags.record, record)
    print(json.dumps({"cases": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, description=__doc__)))
