"""Fitting quantizers to the vectors of a catalogue.

k-means runs here, once, before the first step of a run: never in a forward pass, and not again when
a run resumes, whose codebooks come from its checkpoint.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, PRNGKeyArray

from recipe_jax.functional import Params, PureModule, purify
from recipe_jax.models.residual_codebooks import ResidualCodebooks, ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig
from recipe_jax.quantizers.kmeans import check_rows, residual_kmeans_codebooks
from recipe_jax.quantizers.quantizer import ModelQuantizer, Scaling, ScalingName, fit_scaling
from recipe_jax.quantizers.rq_vae_training import (
    RqVaeTraining,
    init_rq_vae_state,
    make_optimizer,
    make_rq_vae_step,
    with_codebooks,
)
from recipe_jax.quantizers.statistics import code_statistics, named_statistics, reconstruction_error
from recipe_jax.training.checkpoint import Checkpoints
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.run_folder import RunFolder
from recipe_jax.training.state import TrainState

KMEANS_ROWS = 2**17
"""The codebooks of an RQ-VAE start from at most this many random rows."""


def fit_residual_kmeans(
    vectors: Float[np.ndarray, "n d"],
    cfg: ResidualCodebooksConfig,
    *,
    seed: int,
    scaling: ScalingName = "centre",
    num_iterations: int = 50,
) -> ModelQuantizer:
    """Residual k-means as a quantizer.

    Args:
        vectors: the whole catalogue.
        cfg: shape of the codebooks; `in_dim` is the width of the vectors.
        seed: of k-means.
        scaling: of the vectors; distances are those of scaled vectors.
        num_iterations: most iterations for each level.

    Raises:
        ValueError: fewer rows than codes, another width, or a row that is not finite.
    """
    _check_catalogue(vectors, cfg.in_dim, cfg.num_codes)
    scale = fit_scaling(vectors, scaling)
    codebooks = residual_kmeans_codebooks(
        _scaled(vectors, scale),
        num_levels=cfg.num_levels,
        num_codes=cfg.num_codes,
        key=jax.random.key(seed),
        num_iterations=num_iterations,
    )
    fn, _ = purify(ResidualCodebooks(cfg, rngs=nnx.Rngs(seed)))
    return ModelQuantizer(cfg=cfg, fn=fn, params={"codewords": codebooks}, scaling=scale)


class RqVaeFit(NamedTuple):
    """An RQ-VAE after training.

    Attributes:
        quantizer: as the last step left it.
        result: how training ended.
    """

    quantizer: ModelQuantizer
    result: FitResult


def fit_rq_vae(
    vectors: Float[np.ndarray, "n d"],
    cfg: RqVaeConfig,
    training: RqVaeTraining,
    *,
    run: Path,
    seed: int,
    scaling: ScalingName = "columns",
    config: Mapping[str, Any] | None = None,
    max_seconds: float | None = None,
    show_progress: bool = True,
) -> RqVaeFit:
    """Train an RQ-VAE, or go on training, in a run folder: see `recipe_jax.training.loop.fit`.

    After every epoch `metrics.jsonl` has a row with the statistics of the whole catalogue.

    Args:
        vectors: the whole catalogue.
        cfg: shape of the model; `in_dim` is the width of the vectors.
        training: how it learns.
        run: the run folder; the same call on the same folder resumes.
        seed: of everything random.
        scaling: of the vectors.
        config: further entries of the run's `config.json`.
        max_seconds: stop after this time, earlier attempts included.
        show_progress: whether to draw a progress bar.

    Raises:
        ValueError: fewer rows than codes, another width, or a row that is not finite.
        TrainingError: as `fit` does.
    """
    _check_catalogue(vectors, cfg.in_dim, cfg.num_codes)
    scale = fit_scaling(vectors, scaling)
    rows = _scaled(vectors, scale)
    batches = ShuffledRows(rows, batch_size=training.batch_size, seed=seed)
    num_steps = training.num_epochs * batches.steps_per_epoch
    start_key, run_key = jax.random.split(jax.random.key(seed))
    fn, params = purify(RqVae(cfg, rngs=nnx.Rngs(seed)))
    if not has_checkpoint(run):
        params = start_codebooks(fn, params, rows, start_key, training.kmeans_iterations)
    optimizer = make_optimizer(fn, training, num_steps=num_steps)

    def quantizer(state: TrainState) -> ModelQuantizer:
        return ModelQuantizer(cfg=cfg, fn=fn, params=state.params, scaling=scale)

    result = fit(
        make_rq_vae_step(fn, optimizer, training, steps_per_epoch=batches.steps_per_epoch),
        init_rq_vae_state(params, optimizer, run_key, rows=batches.batch_size),
        batches,
        run=run,
        plan=FitPlan(
            num_steps=num_steps,
            log_every=batches.steps_per_epoch,
            evaluate_every=batches.steps_per_epoch,
            checkpoint_every=batches.steps_per_epoch,
            max_seconds=max_seconds,
            metric="reconstruction_error",
            show_progress=show_progress,
        ),
        config={
            **(config or {}),
            "model": dataclasses.asdict(cfg),
            "training": dataclasses.asdict(training),
            "scaling": scaling,
            "seed": seed,
            "vectors": hashlib.sha256(rows.tobytes()).hexdigest(),
        },
        evaluate=lambda state: catalogue_metrics(quantizer(state), vectors),
    )
    return RqVaeFit(quantizer(result.state), result)


def start_codebooks(
    fn: PureModule[RqVae],
    params: Params,
    rows: Float32[np.ndarray, "n d"],
    key: PRNGKeyArray,
    num_iterations: int,
) -> Params:
    """Put the codebooks where the latents of an encoder that has learnt nothing yet are.

    Args:
        fn: the RQ-VAE.
        params: its parameters.
        rows: scaled vectors.
        key: random key.
        num_iterations: most iterations of each level's k-means.
    """
    sample_key, kmeans_key = jax.random.split(key)
    if len(rows) > KMEANS_ROWS:
        chosen = jax.random.permutation(sample_key, len(rows))[:KMEANS_ROWS]
        rows = rows[np.asarray(chosen)]
    cfg = fn.bind(params).cfg
    codebooks = residual_kmeans_codebooks(
        jax.jit(lambda params, rows: fn.bind(params).latents(rows))(params, rows),
        num_levels=cfg.num_levels,
        num_codes=cfg.num_codes,
        key=kmeans_key,
        num_iterations=num_iterations,
    )
    return with_codebooks(params, codebooks)


def catalogue_metrics(
    quantizer: ModelQuantizer, vectors: Float[np.ndarray, "n d"]
) -> dict[str, float]:
    """Statistics of the codes of a whole catalogue, and what decoding them does not bring back."""
    codes = quantizer.encode(vectors)
    statistics = code_statistics(codes, quantizer.num_codes)
    error = reconstruction_error(vectors, quantizer.decode(codes))
    return {**named_statistics(statistics), "reconstruction_error": error}


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a whole checkpoint, from which training would go on."""
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        return False
    with Checkpoints(folder, read_only=True) as checkpoints:
        return bool(checkpoints.steps())


class ShuffledRows:
    """Endless batches of rows that remember where they are.

    Each epoch has another order and leaves out what fills no batch.

    Args:
        rows: all of them.
        batch_size: rows of a batch; all, where there are fewer.
        seed: of the orders.
    """

    def __init__(self, rows: Float32[np.ndarray, "n d"], *, batch_size: int, seed: int):
        self._rows, self._seed, self._position = rows, seed, 0
        self.batch_size = min(batch_size, len(rows))
        self.steps_per_epoch = len(rows) // self.batch_size
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __iter__(self) -> "ShuffledRows":
        return self

    def __next__(self) -> Float32[np.ndarray, "b d"]:
        epoch, place = divmod(self._position, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
        self._position += 1
        start = place * self.batch_size
        return self._rows[self._order[start : start + self.batch_size]]

    def get_state(self) -> dict[str, int]:
        """The position, as JSON can hold it."""
        return {"position": self._position}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on from a position."""
        self._position = state["position"]


def _check_catalogue(vectors: Float[np.ndarray, "n d"], in_dim: int, num_codes: int) -> None:
    if vectors.shape[1] != in_dim:
        raise ValueError(f"vectors are {vectors.shape[1]} wide, the configuration has {in_dim=}")
    check_rows(vectors, num_codes)


def _scaled(vectors: Float[np.ndarray, "n d"], scale: Scaling) -> Float32[np.ndarray, "n d"]:
    return ((vectors - scale.mean) / scale.deviation).astype(np.float32)
