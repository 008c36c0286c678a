"""A set model small enough for brute force: logits are a start vector and a row per food read."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recipe_jax.batches import Molecules

NO_MOLECULES = Molecules(*(np.zeros(shape, np.float32) for shape in ((1, 1), (1, 1), (1, 1), 1)))


@dataclasses.dataclass(frozen=True)
class AdditiveDecoder:
    """Stands for the pure function of a `SetDecoder`; hashable, as jit wants it."""

    max_foods: int
    encodes: bool = False

    def bind(self, params: Any) -> Any:
        return (_Encoding if self.encodes else _Bound)(self.max_foods, params)


class _Bound:
    def __init__(self, max_foods: int, params: Any):
        self.cfg = types.SimpleNamespace(max_foods=max_foods)
        self.params = params

    def embedding(self, molecules: Any) -> jax.Array:
        return self.params["food"]

    def empty_cache(self, batch_size: int) -> jax.Array:
        return jnp.zeros((1, batch_size, len(self.params["start"])))

    def decode(self, table: Any, foods: Any, lengths: Any, cache: Any) -> tuple[Any, Any]:
        rows = jnp.concatenate([table, 0 * table[:1], self.params["start"][None]])[foods]
        real = jnp.arange(foods.shape[1])[None] < lengths[:, None]
        sums = cache[0][:, None] + jnp.cumsum(jnp.where(real[..., None], rows, 0.0), axis=1)
        return sums, sums[None, :, -1]


class _Encoding(_Bound):
    """Reads its prompt backwards: as rows of the opposite sign."""

    def encode_prompt(self, table: Any, foods: Any, lengths: Any) -> jax.Array:
        rows = jnp.concatenate([table, 0 * table[:1]])[foods]
        return -rows.sum(axis=1)[None]


def random_params(seed: int, num_foods: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "start": (scale * rng.normal(size=num_foods + 1)).astype(np.float32),
        "food": (scale * rng.normal(size=(num_foods, num_foods + 1))).astype(np.float32),
    }


def step_log_probabilities(params, foods, *, allowed, least: int, most: int) -> np.ndarray:
    """The rules of decoding written out: log-probabilities of the next choice after `foods`."""
    logits = params["start"].astype(np.float64) + params["food"][list(foods)].sum(axis=0)
    free = [f for f in range(len(allowed)) if allowed[f] and f not in foods]
    may_go_on = len(foods) < most and bool(free)
    possible = np.zeros(len(logits), bool)
    possible[free] = may_go_on
    possible[-1] = len(foods) >= least or not may_go_on
    logits = np.where(possible, logits, -np.inf)
    return logits - np.logaddexp.reduce(logits)


def sequence_log_probability(params, foods, prompt_length: int, **rules) -> float:
    """Of the choices after the prompt and the end."""
    choices = [*foods[prompt_length:], len(params["food"])]
    return sum(
        step_log_probabilities(params, foods[: prompt_length + i], **rules)[choice]
        for i, choice in enumerate(choices)
    )
