"""Who computes attention: ours, JAX's own, tokamax, torch.  Each framework in a process of its own.

`in_jax` and `in_torch` are contestants of `timing.Remote`; the words they understand are in
`_answer`.
"""

import functools
import gc
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from benchmarks.attention_workloads import OF_DEVICE, Workload
from benchmarks.timing import Answer, seconds_of
from experiments.record import device as machine

SECONDS = 0.02
"""A sample repeats short work for so long: one call more than the device is waited for."""

MOST_REPEATS = 50


class Runner(NamedTuple):
    """One contestant on one workload, compiled.

    Attributes:
        parts: by `forward` and `both`: starts the work, and returns what can be waited for.
        wait: returns when the work is done.
        arrays: results of `both` as NumPy arrays.
        temporary_bytes: that `both` takes beside arguments and results; None if not known.
    """

    parts: Mapping[str, Callable[[], Any]]
    wait: Callable[[Any], Any]
    arrays: Callable[[], list[np.ndarray]]
    temporary_bytes: int | None


Makers: TypeAlias = Mapping[str, Callable[[], Runner]]


def _answer(
    device: str, quick: bool, makers_of: Callable[[Workload], Makers], ceilings: Callable[[], Any]
) -> Answer:
    """What a process of contestants answers.

    Its words are `device`, `ceilings`, `prepare|WORKLOAD`, and of the workload prepared last
    `seconds|CONTESTANT|PART` and `error|CONTESTANT`.
    """
    workloads = {workload.name: workload for workload in OF_DEVICE[device]}
    runners: dict[str, Runner] = {}
    repeats: dict[str, int] = {}
    exact: list[np.ndarray] = []
    current: list[Workload] = []

    def prepare(name: str) -> dict[str, dict[str, Any]]:
        workload = workloads[name].small() if quick else workloads[name]
        runners.clear()
        gc.collect()
        exact[:] = []
        current[:] = [workload]
        found = {}
        for contestant, make in makers_of(workload).items():
            try:
                runners[contestant] = make()
                if workload.timed:
                    repeats[contestant] = 1
                    seconds(contestant, "both")
                    once = seconds(contestant, "both")
                    repeats[contestant] = min(MOST_REPEATS, math.ceil(SECONDS / once))
                found[contestant] = {"temporary_bytes": runners[contestant].temporary_bytes}
            except Exception as error:  # whatever it is, it is a result: this one cannot do it
                found[contestant] = {"failure": f"{type(error).__name__}: {error}"[:200]}
        return found

    def seconds(contestant: str, part: str) -> float:
        runner, times = runners[contestant], repeats[contestant]

        def work() -> None:
            for _ in range(times - 1):
                runner.parts[part]()
            runner.wait(runner.parts[part]())

        return seconds_of(work) / times

    def error(contestant: str) -> float:
        if not exact:
            exact[:] = current[0].exact()
        found = current[0].sample(runners[contestant].arrays())
        pairs = zip(found, exact, strict=True)
        return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)

    words: dict[str, Callable[..., Any]] = {
        "device": machine,
        "ceilings": ceilings,
        "prepare": prepare,
        "seconds": seconds,
        "error": error,
    }

    def answer(word: str) -> Any:
        action, *arguments = word.split("|")
        return words[action](*arguments)

    return answer


def in_jax(device: str, quick: bool) -> Answer:
    """Ours, the reference formula, `jax.nn.dot_product_attention`, and tokamax if installed."""
    import jax
    import jax.numpy as jnp

    try:
        first = jax.local_devices(backend=device)[0]
    except RuntimeError:
        sys.exit(f"--device {device}: jax finds no such device here")
    jax.config.update("jax_default_device", first)
    size = 8192 if device == "gpu" and not quick else 1024

    def ceilings() -> dict[str, float]:
        """Operations and bytes per second of a large product, and of a large copy."""
        dtype = jnp.bfloat16 if device == "gpu" else jnp.float32
        square = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
        long = jnp.ones(16 * size * size, dtype)
        multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
        best = {}
        for name, work in (
            ("operations", lambda: multiply(square, square)),
            ("bytes", lambda: copy(long)),
        ):
            jax.block_until_ready(work())
            times = [seconds_of(lambda w=work: jax.block_until_ready(w())) for _ in range(10)]
            best[name] = min(times)
        return {
            "operations": 2 * size**3 / best["operations"],
            "bytes": 2 * long.nbytes / best["bytes"],
        }

    return _answer(device, quick, functools.partial(_jax_makers, device), ceilings)


def _jax_makers(device: str, workload: Workload) -> Makers:
    import jax
    import jax.numpy as jnp
    from recipe_kernels import attention

    from recipe_jax.layers.attention import dot_product_attention
    from recipe_jax.layers.masks import Mask

    dtype = jnp.dtype(workload.dtype)
    shape = (workload.b, workload.t, workload.h, workload.d)
    of_keys = (workload.b, workload.t, workload.key_heads, workload.d)
    if workload.timed:
        arrays = [jnp.asarray(x, dtype) for x in workload.draw()]
    else:
        arrays = [jax.ShapeDtypeStruct(size, dtype) for size in (shape, of_keys, of_keys, shape)]
    lengths, segments = jnp.asarray(workload.lengths()), jnp.asarray(workload.segments())
    ragged, packed = workload.shortest is not None, workload.packed is not None
    ours: dict[str, Any] = {"mask": Mask(causal=workload.causal)}
    if ragged:
        ours["mask"] = Mask(causal=workload.causal, query_lengths=lengths, key_lengths=lengths)
    if packed:
        ours["mask"] = Mask(causal=workload.causal, query_segments=segments, key_segments=segments)
    theirs: dict[str, Any] = {"is_causal": workload.causal}
    if ragged:
        theirs |= {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    if packed:
        theirs["mask"] = (segments[:1, :, None] == segments[:1, None, :])[:, None]
    if workload.alibi:
        slopes = jnp.asarray(workload.slopes())
        ours["alibi_slopes"] = slopes
        if workload.timed:
            distance = jnp.abs(jnp.arange(workload.t)[:, None] - jnp.arange(workload.t)[None])
            theirs["bias"] = (-slopes[:, None, None] * distance).astype(dtype)[None]
        else:
            size = (1, workload.h, workload.t, workload.t)
            theirs["bias"] = jax.ShapeDtypeStruct(size, dtype)

    def maker(attend: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[], Runner]:
        return lambda: _jax_runner(attend, options, arrays, timed=workload.timed)

    kernels = "triton" if device == "gpu" else "tiled"
    named = functools.partial(attention, implementation=kernels)
    jax_nn = jax.nn.dot_product_attention
    makers = {
        f"recipe_kernels, {kernels}": maker(named, ours),
        "jax.nn, xla": maker(functools.partial(jax_nn, implementation="xla"), theirs),
    }
    if device == "cpu":
        makers["recipe_jax, reference"] = maker(dot_product_attention, ours)
    else:
        makers["jax.nn, cudnn"] = maker(functools.partial(jax_nn, implementation="cudnn"), theirs)
    if importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]

        makers["tokamax"] = maker(tokamax.dot_product_attention, theirs)
    return makers


def _jax_runner(
    attend: Callable[..., Any], options: Mapping[str, Any], arrays: list[Any], *, timed: bool
) -> Runner:
    import jax

    # Masks and biases are arguments, too: constants would be folded into the program.
    static = {name: x for name, x in options.items() if isinstance(x, bool)}
    given = {name: x for name, x in options.items() if name not in static}

    def forward(heads: list[Any], given: Mapping[str, Any]) -> Any:
        return attend(*heads, **static, **given)

    def both(heads: list[Any], given: Mapping[str, Any], grad: Any) -> Any:
        out, pull = jax.vjp(lambda *heads: forward(list(heads), given), *heads)
        return out, *pull(grad)

    heads, grad = arrays[:3], arrays[3]
    compiled = jax.jit(both).lower(heads, given, grad).compile()
    memory = compiled.memory_analysis()
    size = None if memory is None else memory.temp_size_in_bytes
    alone = jax.jit(forward).lower(heads, given).compile() if timed else None
    return Runner(
        parts={
            "forward": lambda: alone(heads, given),  # pyright: ignore[reportOptionalCall]
            "both": lambda: compiled(heads, given, grad),
        },
        wait=jax.block_until_ready,
        arrays=lambda: [np.asarray(x, np.float32) for x in compiled(heads, given, grad)],
        temporary_bytes=size,
    )


def in_torch(device: str, quick: bool) -> Answer:
    """`scaled_dot_product_attention` of torch, and on a GPU its FlexAttention."""
    # A daemon may not have children: compile in this process.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return _answer(device, quick, functools.partial(_torch_makers, device), dict)


def _torch_makers(device: str, workload: Workload) -> Makers:
    import torch  # pyright: ignore[reportMissingImports]

    if not workload.timed:
        return {}
    place = torch.device("cuda" if device == "gpu" else "cpu")
    dtype = getattr(torch, workload.dtype)
    heads = [torch.tensor(x).to(place, dtype).transpose(1, 2) for x in workload.draw()]
    heads = [x.contiguous() for x in heads]
    lengths = torch.tensor(workload.lengths()).to(place)
    documents = torch.tensor(workload.segments()[0]).to(place)
    slopes = torch.tensor(workload.slopes()).to(place)
    i = torch.arange(workload.t, device=place)

    def sdpa() -> Callable[..., Any]:
        options: dict[str, Any] = {"is_causal": workload.causal}
        later = i[:, None] < i[None, :]
        if workload.alibi:
            bias = -slopes[:, None, None] * (i[:, None] - i[None, :]).abs()
            bias = bias.masked_fill(later, -math.inf) if workload.causal else bias
            options = {"attn_mask": bias[None].to(dtype)}
        elif workload.packed is not None:
            same = documents[:, None] == documents[None, :]
            options = {"attn_mask": (same & ~later if workload.causal else same)[None, None]}
        elif workload.shortest is not None:
            options = {"attn_mask": (i[None] < lengths[:, None])[:, None, None]}
        grouped = workload.key_heads != workload.h
        return functools.partial(
            torch.nn.functional.scaled_dot_product_attention, enable_gqa=grouped, **options
        )

    def flex() -> Callable[..., Any]:
        from torch.nn.attention import flex_attention as module  # pyright: ignore

        def allowed(b: Any, h: Any, q: Any, kv: Any) -> Any:
            keep = q >= kv if workload.causal else q >= 0
            if workload.packed is not None:
                keep = keep & (documents[q] == documents[kv])
            if workload.shortest is not None:
                keep = keep & (q < lengths[b]) & (kv < lengths[b])
            return keep

        def alibi(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
            return score - slopes[h] * (q - kv).abs()

        rows = workload.b if workload.shortest is not None else None
        blocks = module.create_block_mask(allowed, rows, None, workload.t, workload.t, place)
        return functools.partial(
            torch.compile(module.flex_attention, dynamic=False),
            score_mod=alibi if workload.alibi else None,
            block_mask=blocks,
            enable_gqa=workload.key_heads != workload.h,
        )

    makers = {"torch, SDPA": lambda: _torch_runner(sdpa(), heads)}
    if device == "gpu":
        makers["torch, FlexAttention"] = lambda: _torch_runner(flex(), heads)
    return makers


def _torch_runner(attend: Callable[..., Any], arrays: list[Any]) -> Runner:
    import torch  # pyright: ignore[reportMissingImports]

    heads, grad = [x.requires_grad_() for x in arrays[:3]], arrays[3]
    on_gpu = grad.is_cuda

    def forward() -> Any:
        with torch.no_grad():
            return attend(*heads)

    def both() -> Any:
        out = attend(*heads)
        return out.detach(), *torch.autograd.grad(out, heads, grad)

    def wait(_: Any) -> None:
        if on_gpu:
            torch.cuda.synchronize()

    size = None
    if on_gpu:
        both()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = both()
        torch.cuda.synchronize()
        kept = sum(x.numel() * x.element_size() for x in results)
        size = torch.cuda.max_memory_allocated() - before - kept
    return Runner(
        parts={"forward": forward, "both": both},
        wait=wait,
        arrays=lambda: [x.detach().transpose(1, 2).float().cpu().numpy() for x in both()],
        temporary_bytes=size,
    )
