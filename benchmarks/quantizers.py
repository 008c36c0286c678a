"""RQ-VAE training beside `vector-quantize-pytorch`, and how long encoding a million rows takes.

    python -m benchmarks.quantizers --record benchmarks/records/quantizers.json

Both sides train the same autoencoder from the same parameters and codebooks (residual k-means of
the first latents), on the same batches in the same order, with the same optimizer (AdamW), running
means and gradient rule; dead codes are reset on neither.  Two processes take turns.  After the last
round both have seen the same steps: what decoding does not bring back must then agree within 2 %.
Theirs is left out where `torch` or `vector_quantize_pytorch` is missing.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float32, Int64

from benchmarks.timing import Answer, Remote, alternate, percentiles, seconds_of

LEARNING_RATE, WEIGHT_DECAY, DECAY, COMMITMENT = 1e-3, 0.01, 0.9, 0.25
LOSS_TOLERANCE = 1e-4
RECONSTRUCTION_TOLERANCE = 0.02
ENCODED = {"4 x 1024": (4, 1024), "3 x 256": (3, 256)}
ENCODED_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        vectors: an .npy file with a row for each item; noisy random clusters if not given.
        items: how many of those.
        dim: their width.
        num_levels: codes of an item.
        num_codes: codewords of each level.
        hidden_dims: widths of the encoder's hidden layers; with none encoder and decoder are linear
            and the quantizer is most of the work.
        rounds: rounds of each contestant that count, after one that does not.
        epochs: passes over the items in a round.
        batch_size: rows per step.
        gradient: how the reconstruction reaches the encoder, on both sides; theirs turns at each
            level what ours turns once, so that only straight through are the two the same method.
        encode_rows: random rows, 64 wide, to encode.
        threads: processor cores of each process, of which one works at a time.
        record: write the results to this file.
    """

    vectors: Path | None = None
    items: int = 12_288
    dim: int = 128
    num_levels: int = 3
    num_codes: int = 256
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    rounds: int = 9
    epochs: int = 5
    batch_size: int = 1024
    gradient: Literal["straight_through", "rotation_trick"] = "straight_through"
    encode_rows: int = 1_000_000
    threads: int = 2
    record: Path | None = None


class Workload(NamedTuple):
    """What both contestants train on.

    Attributes:
        vectors: standardised.
        orders: rows of each step of a round.
        cfg: the model's configuration, an `RqVaeConfig`.
        params: initial parameters, codebooks included.
        gradient: see `Flags`.
        encode_rows: see `Flags`.
    """

    vectors: Float32[np.ndarray, "n d"]
    orders: Int64[np.ndarray, "steps b"]
    cfg: Any
    params: Any
    gradient: str
    encode_rows: int


def make_workload(flags: Flags) -> Workload:
    """Read or draw the vectors, draw the batches and the initial parameters."""
    import jax
    from flax import nnx

    from recipe_jax.functional import purify
    from recipe_jax.models.rq_vae import RqVae, RqVaeConfig
    from recipe_jax.quantizers.fitting import start_codebooks
    from recipe_jax.quantizers.quantizer import fit_scaling

    rng = np.random.default_rng(0)
    if flags.vectors is None:
        centres = rng.normal(size=(1000, flags.dim)) * np.geomspace(3, 0.1, flags.dim)
        vectors = centres[rng.integers(0, 1000, flags.items)]
        vectors = vectors + 0.2 * rng.normal(size=vectors.shape)
    else:
        vectors = np.load(flags.vectors, allow_pickle=False)
    scaling = fit_scaling(vectors, "centre")
    vectors = ((vectors - scaling.mean) / scaling.deviation).astype(np.float32)
    cfg = RqVaeConfig(
        in_dim=vectors.shape[1],
        hidden_dims=flags.hidden_dims,
        num_levels=flags.num_levels,
        num_codes=flags.num_codes,
    )
    fn, params = purify(RqVae(cfg, rngs=nnx.Rngs(0)))
    params = start_codebooks(fn, params, vectors, jax.random.key(0), 20)
    per_epoch = len(vectors) // flags.batch_size
    orders = np.stack([rng.permutation(len(vectors)) for _ in range(flags.epochs)])
    orders = orders[:, : per_epoch * flags.batch_size].reshape(-1, flags.batch_size)
    return Workload(vectors, orders, cfg, jax.device_get(params), flags.gradient, flags.encode_rows)


def ours(workload: Workload) -> Answer:
    """Our training step and our encoder; compiled before this returns."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from recipe_jax.functional import purify
    from recipe_jax.layers.residual_quantizer import residual_quantize
    from recipe_jax.models.rq_vae import RqVae, rq_vae_loss
    from recipe_jax.quantizers.rq_vae_training import (
        GRADIENT_RULES,
        RqVaeTraining,
        init_rq_vae_state,
        make_rq_vae_step,
        trained_parts,
    )
    from recipe_jax.training.optimizers import train_only

    fn, _ = purify(RqVae(workload.cfg, rngs=nnx.Rngs(0)))
    rows = workload.orders.shape[1]
    training = RqVaeTraining(
        gradient=workload.gradient,  # pyright: ignore[reportArgumentType]
        decay=DECAY,
        commitment_weight=COMMITMENT,
        reset_epochs=0,
    )
    adamw = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    optimizer = train_only(adamw, trained_parts(fn))
    step = make_rq_vae_step(fn, optimizer, training, steps_per_epoch=len(workload.orders))

    def first_state() -> Any:
        params = jax.tree.map(jnp.array, workload.params)
        return init_rq_vae_state(params, optimizer, jax.random.key(0), rows=rows)

    state = step(first_state(), workload.vectors[workload.orders[0]])[0]
    state = first_state()

    def train() -> None:
        nonlocal state
        for order in workload.orders:
            state, _ = step(state, workload.vectors[order])
        jax.block_until_ready(state)

    def loss(params: Any, vectors: Any) -> Any:
        terms, _ = rq_vae_loss(fn.bind(params), vectors, gradient=GRADIENT_RULES[workload.gradient])
        return (terms.reconstruction + COMMITMENT * terms.commitment).mean()

    def reconstruction() -> float:
        decode = jax.jit(lambda params, x: fn.bind(params).decode(fn.bind(params).encode(x)))
        return _left_over(workload.vectors, np.asarray(decode(state.params, workload.vectors)))

    encode = jax.jit(lambda vectors, codebooks: residual_quantize(vectors, codebooks).codes)
    random = jax.random.normal(jax.random.key(1), (workload.encode_rows, ENCODED_DIM))
    words: dict[str, Callable[[], Any]] = {
        "loss": lambda: float(jax.jit(loss)(workload.params, workload.vectors)),
        "train": lambda: seconds_of(train),
        "reconstruction": reconstruction,
    }
    for name, (num_levels, num_codes) in ENCODED.items():
        codebooks = jax.random.normal(jax.random.key(2), (num_levels, num_codes, ENCODED_DIM))
        compiled = encode.lower(random, codebooks).compile()
        words[f"encode {name}"] = functools.partial(
            seconds_of, lambda f=compiled, e=codebooks: f(random, e).block_until_ready()
        )
        words[f"memory {name}"] = functools.partial(_memory, compiled)
    return lambda word: words[word]()


def _memory(compiled: Any) -> dict[str, float]:
    """Megabytes beside the rows and the codebooks: temporary, and the codes."""
    found = compiled.memory_analysis()
    return {
        "temporary_megabytes": found.temp_size_in_bytes / 1e6,
        "codes_megabytes": found.output_size_in_bytes / 1e6,
        "process_peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _left_over(vectors: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.square(vectors - decoded).sum() / np.square(vectors).sum())


def theirs(workload: Workload) -> Answer:
    """The same step in PyTorch with the residual quantizer of vector-quantize-pytorch."""
    # Read when torch loads OpenMP: threads that spin while they wait lose more on a busy machine.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    import torch  # pyright: ignore[reportMissingImports]
    from vector_quantize_pytorch import ResidualVQ  # pyright: ignore[reportMissingImports]

    cfg, params = workload.cfg, workload.params
    rotated = workload.gradient == "rotation_trick"
    quantizer = ResidualVQ(
        dim=cfg.latent_dim,
        num_quantizers=cfg.num_levels,
        codebook_size=cfg.num_codes,
        decay=DECAY,
        # Each level hands the latents the gradient of their sum once more, so the reconstruction
        # weighs `num_levels` times; AdamW forgets the scale, not the balance.
        commitment_weight=COMMITMENT * cfg.num_levels,
        threshold_ema_dead_code=0,
        rotation_trick=rotated,
        straight_through=False,
    )
    count = workload.orders.shape[1] / cfg.num_codes
    for level, codewords in zip(quantizer.layers, params["codebooks"]["codewords"], strict=True):
        book, values = level._codebook, torch.tensor(codewords)[None]
        book.embed.data.copy_(values)
        book.cluster_size.data.fill_(count)
        book.embed_avg.data.copy_(values * count)
    encoder, decoder = (_torch_network(params[name]) for name in ("encoder", "decoder"))
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    vectors = torch.tensor(workload.vectors)
    orders = torch.tensor(workload.orders)

    def loss_of(rows: Any) -> tuple[Any, Any]:
        quantized, _, commitment = quantizer(encoder(rows))
        reconstruction = (decoder(quantized) - rows).square().sum(dim=-1).mean()
        return reconstruction, cfg.latent_dim * commitment.sum()  # theirs is a mean over width

    def train() -> None:
        quantizer.train()
        for order in orders:
            optimizer.zero_grad(set_to_none=True)
            reconstruction, commitment = loss_of(vectors[order])
            (reconstruction + commitment).backward()
            optimizer.step()

    def loss() -> float:
        quantizer.train()
        frozen = [(buffer, buffer.clone()) for buffer in quantizer.buffers()]
        reconstruction, commitment = loss_of(vectors)
        for buffer, values in frozen:  # a forward pass moved them
            buffer.data.copy_(values)
        return (reconstruction + commitment / cfg.num_levels).item()

    def reconstruction() -> float:
        quantizer.eval()
        with torch.no_grad():
            decoded = decoder(quantizer(encoder(vectors))[0])
        return _left_over(workload.vectors, decoded.numpy())

    words: dict[str, Callable[[], Any]] = {
        "loss": loss,
        "train": lambda: seconds_of(train),
        "reconstruction": reconstruction,
        "versions": _their_versions,
    }
    return lambda word: words[word]()


def _their_versions() -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    version = importlib.metadata.version("vector-quantize-pytorch")
    return {
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "vector_quantize_pytorch": version,
    }


def _torch_network(params: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    hidden = params.get("hidden_layers", {})
    linear = [hidden[i]["linear"] for i in sorted(hidden)] + [params["output"]]
    layers: list[Any] = []
    for weights in linear:
        in_dim, out_dim = weights["kernel"].shape
        layer = torch.nn.Linear(in_dim, out_dim)
        layer.weight.data.copy_(torch.tensor(weights["kernel"].T))
        layer.bias.data.copy_(torch.tensor(weights["bias"]))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def measure(flags: Flags) -> dict[str, Any]:
    """Run the contestants in turns.

    Raises:
        ValueError: if the two begin with different losses, or end apart.
    """
    workload = make_workload(flags)
    with Remote(ours, workload, threads=flags.threads) as jax_process:
        encoded = _encoding(jax_process, flags)
        if _missing():
            print(f"quantizers: without {_missing()}: ours alone", file=sys.stderr)
            samples = alternate(
                {"ours": functools.partial(jax_process, "train")}, rounds=flags.rounds
            )
            return summarise(samples, workload) | {"encoding": encoded}
        with Remote(theirs, workload, threads=flags.threads) as torch_process:
            return _duel(flags, workload, jax_process, torch_process) | {"encoding": encoded}


def _duel(
    flags: Flags, workload: Workload, jax_process: Remote, torch_process: Remote
) -> dict[str, Any]:
    losses = jax_process("loss"), torch_process("loss")
    if abs(losses[0] - losses[1]) > LOSS_TOLERANCE * abs(losses[1]):
        raise ValueError(f"the models differ: ours loses {losses[0]}, theirs {losses[1]}")
    contestants = {
        "ours": functools.partial(jax_process, "train"),
        "theirs": functools.partial(torch_process, "train"),
    }
    samples = alternate(contestants, rounds=flags.rounds)
    left = jax_process("reconstruction"), torch_process("reconstruction")
    return summarise(samples, workload) | {
        "loss_ours": losses[0],
        "loss_theirs": losses[1],
        "reconstruction_error_ours": left[0],
        "reconstruction_error_theirs": left[1],
        "reconstruction_within_2_percent": abs(left[0] / left[1] - 1) <= RECONSTRUCTION_TOLERANCE,
        **torch_process("versions"),
    }


def _encoding(process: Remote, flags: Flags) -> dict[str, Any]:
    return {
        name: {
            "rows": flags.encode_rows,
            "seconds": percentiles(
                alternate({name: functools.partial(process, f"encode {name}")}, rounds=3)[name]
            )._asdict(),
            **process(f"memory {name}"),
        }
        for name in ENCODED
    }


def _missing() -> str | None:
    names = ("torch", "vector_quantize_pytorch")
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def summarise(samples: dict[str, list[float]], workload: Workload) -> dict[str, Any]:
    """Rows per second from seconds per round, and the ratio that counts."""
    rows = workload.orders.size
    found: dict[str, Any] = {
        "rows_per_second": {
            name: percentiles([rows / seconds for seconds in rounds])._asdict()
            for name, rounds in samples.items()
        }
    }
    if "theirs" in samples:
        pairs = zip(samples["theirs"], samples["ours"], strict=True)
        found["ours_over_theirs"] = percentiles([slow / fast for slow, fast in pairs])._asdict()
    return found


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"quantizers: {error}", file=sys.stderr)
        return 2
    if flags.record is not None:
        from experiments.record import command_line, make_record, place_of, write_record

        given = dataclasses.asdict(flags) | {"record": None}
        given["vectors"] = None if flags.vectors is None else place_of(flags.vectors)
        command = command_line("benchmarks.quantizers", flags)
        write_record(flags.record, make_record(command, flags=given, **results))
    headline = {
        "rows_per_second": {k: v["p50"] for k, v in results["rows_per_second"].items()},
        "encode_seconds": {k: v["seconds"]["p50"] for k, v in results["encoding"].items()},
    }
    if "ours_over_theirs" in results:
        headline["ours_over_theirs"] = results["ours_over_theirs"]["p50"]
        for side in ("ours", "theirs"):
            headline[f"reconstruction_{side}"] = results[f"reconstruction_error_{side}"]
    print(json.dumps(headline))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
