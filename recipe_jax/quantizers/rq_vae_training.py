"""One update of an RQ-VAE, whose codebooks may be running means rather than descend a gradient.

All that changes is in the `TrainState`: codebooks are parameters, and how often their codes were
taken lies beside what the optimizer remembers.  So a checkpoint holds all of it.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, PRNGKeyArray

from recipe_jax.functional import Params, PureModule
from recipe_jax.layers.residual_quantizer import (
    CodebookAverages,
    GradientRule,
    Quantized,
    reset_dead_codes,
    rotation_trick,
    straight_through,
    update_averages,
)
from recipe_jax.models.rq_vae import RqVae, rq_vae_loss
from recipe_jax.training.optimizers import hold_fixed, train_only, warmup_cosine
from recipe_jax.training.state import TrainState, init_state
from recipe_jax.training.step import StepMetrics, TrainStep

GradientName: TypeAlias = Literal["straight_through", "rotation_trick"]

GRADIENT_RULES: Mapping[str, GradientRule] = MappingProxyType(
    {"straight_through": straight_through, "rotation_trick": rotation_trick}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RqVaeTraining:
    """How an RQ-VAE learns.

    Attributes:
        num_epochs: passes over the catalogue.
        batch_size: rows per step; all, where there are fewer.
        learning_rate: peak of the schedule.
        weight_decay: of the networks' matrices, times the learning rate.
        commitment_weight: of the commitment loss; 0.25 in both papers.
        gradient: how the reconstruction reaches the encoder.  On Beauty the rotation trick left
            over more (0.43 of the variance after 40 epochs, 0.40 straight through).
        codebook: `ema` keeps codewords as running means of what was assigned to them, `loss`
            lets them descend the codebook loss.
        decay: of the running means, and of the counts that find dead codes, for each step.  Means
            of the last ten batches, 40 rows of a code, keep up with an encoder that begins to
            learn; at 0.99 the first level was measured to fall to two codes.
        dead_below: a code is dead when it is taken less often than this share of an equal one.
        reset_epochs: dead codes are reset at the end of each of the first so many epochs; the
            rest lets new codewords settle.
        kmeans_iterations: most iterations for each level where the codebooks start.
    """

    num_epochs: int = 200
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    commitment_weight: float = 0.25
    gradient: GradientName = "straight_through"
    codebook: Literal["ema", "loss"] = "ema"
    decay: float = 0.9
    dead_below: float = 0.1
    reset_epochs: int = 150
    kmeans_iterations: int = 50

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "kmeans_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("weight_decay", "commitment_weight", "dead_below", "reset_epochs"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be at least 0 and finite")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0 and finite")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be at least 0 and below 1")
        if self.gradient not in GRADIENT_RULES:
            raise ValueError(f"gradient={self.gradient!r} must be one of {[*GRADIENT_RULES]}")
        if self.codebook not in ("ema", "loss"):
            raise ValueError(f'codebook={self.codebook!r} must be "ema" or "loss"')


class OptimizerState(NamedTuple):
    """What is remembered between updates.

    Attributes:
        networks: the Optax optimizer's.
        counts: running mean of the rows of a batch that took each code.
    """

    networks: Any
    counts: Float32[Array, "q c"]


def make_optimizer(
    fn: PureModule[RqVae], training: RqVaeTraining, *, num_steps: int
) -> optax.GradientTransformation:
    """AdamW with a warm-up and a cosine; it leaves codebooks that are running means alone."""
    schedule = warmup_cosine(
        training.learning_rate, warmup_steps=min(100, num_steps // 10 + 1), num_steps=num_steps
    )
    decayed = jax.tree.map(lambda shape: len(shape.shape) == 2, fn.shapes)  # not the codebooks
    optimizer = optax.adamw(schedule, weight_decay=training.weight_decay, mask=decayed)
    return optimizer if training.codebook == "loss" else train_only(optimizer, trained_parts(fn))


def init_rq_vae_state(
    params: Params, optimizer: optax.GradientTransformation, key: PRNGKeyArray, *, rows: int
) -> TrainState:
    """The state before the first update: every code counts as taken equally often.

    Args:
        params: with the codebooks to start from.
        optimizer: from `make_optimizer`.
        key: the run's random key.
        rows: of a batch.
    """
    state = init_state(params, optimizer, key)
    num_levels, num_codes, _ = codebooks_of(params).shape
    counts = jnp.full((num_levels, num_codes), rows / num_codes, jnp.float32)
    return state._replace(opt_state=OptimizerState(state.opt_state, counts))


def codebooks_of(params: Params) -> Float32[Array, "q c z"]:
    """The codebooks among the parameters of an RQ-VAE."""
    return params["codebooks"]["codewords"]


def with_codebooks(params: Params, codebooks: Float32[Array, "q c z"]) -> Params:
    """The parameters of an RQ-VAE with other codebooks."""
    return {**params, "codebooks": {"codewords": codebooks}}


def make_rq_vae_step(
    fn: PureModule[RqVae],
    optimizer: optax.GradientTransformation,
    training: RqVaeTraining,
    *,
    steps_per_epoch: int,
) -> TrainStep:
    """Compile `(state, vectors) -> (state, metrics)`; the old state is donated.

    The order is that of the papers: one assignment serves the loss, the running means (where
    codebooks are such) and, at the end of an epoch, the reset of dead codes.

    Args:
        fn: the RQ-VAE.
        optimizer: from `make_optimizer`.
        training: how it learns.
        steps_per_epoch: dead codes are looked for every so many steps.
    """
    rule = GRADIENT_RULES[training.gradient]
    means, trained = training.codebook == "ema", trained_parts(fn)

    def objective(params: Params, vectors: Array) -> tuple[Array, tuple[Any, Quantized]]:
        params = hold_fixed(params, trained) if means else params
        terms, quantized = rq_vae_loss(fn.bind(params), vectors, gradient=rule)
        averages = jax.tree.map(jnp.mean, terms)
        loss = averages.reconstruction + training.commitment_weight * averages.commitment
        return loss if means else loss + averages.codebook, (averages, quantized)

    def step(state: TrainState, vectors: Array) -> tuple[TrainState, StepMetrics]:
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, quantized)), grads = gradient(state.params, vectors)
        updates, networks = optimizer.update(grads, state.opt_state.networks, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        before = CodebookAverages(codebooks_of(state.params), state.opt_state.counts)
        after = update_averages(before, quantized, decay=training.decay)
        if not means:
            after = after._replace(codebooks=codebooks_of(params))
        after, num_reset = reset(state, after, quantized)
        new = TrainState(
            with_codebooks(params, after.codebooks),
            OptimizerState(networks, after.counts),
            state.step + 1,
            state.key,
        )
        metrics = {**terms._asdict(), "num_reset": num_reset.astype(jnp.float32)}
        return new, StepMetrics(loss, optax.tree.norm(grads), metrics)

    def reset(
        state: TrainState, averages: CodebookAverages, quantized: Quantized
    ) -> tuple[CodebookAverages, Array]:
        equal = quantized.codes.shape[0] / averages.counts.shape[1]  # rows, were all taken alike

        def now() -> tuple[CodebookAverages, Array]:
            key = jax.random.fold_in(state.key, state.step)
            found = reset_dead_codes(
                averages.codebooks,
                averages.counts,
                quantized.residuals,
                key,
                least_usage=training.dead_below * equal,
            )
            counts = jnp.where(found.is_reset, equal, averages.counts)
            return CodebookAverages(found.codebooks, counts), jnp.sum(found.num_reset)

        done = state.step + 1
        last = training.reset_epochs * steps_per_epoch
        due = (done % steps_per_epoch == 0) & (done <= last)
        return jax.lax.cond(due, now, lambda: (averages, jnp.zeros((), jnp.int32)))

    return jax.jit(step, donate_argnums=0)


def trained_parts(fn: PureModule[RqVae]) -> Params:
    """True for each parameter of encoder and decoder, false for the codebooks."""
    return {
        name: jax.tree.map(lambda _, is_network=name != "codebooks": is_network, part)
        for name, part in fn.shapes.items()
    }
