"""Attention in float64, by matrices, with its gradients written out: what kernels are held to."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from recipe_kernels.attention.dropout import kept
from recipe_kernels.attention.problem import Operands, Problem


class Results(NamedTuple):
    """What attention gives.

    Attributes:
        out: outputs.
        log_sums: log-sum-exps in nats.
        query: its gradient.
        key: its gradient.
        value: its gradient.
    """

    out: Float[np.ndarray, "b t h d"]
    log_sums: Float[np.ndarray, "b h t"]
    query: Float[np.ndarray, "b t h d"]
    key: Float[np.ndarray, "b s k d"]
    value: Float[np.ndarray, "b s k d"]


def exact(
    problem: Problem,
    arrays: tuple[Any, ...],
    out_grad: Float[np.ndarray, "b t h d"],
    log_sum_grad: Float[np.ndarray, "b h t"],
) -> Results:
    """Results of a problem, one head of one row after another.

    Args:
        problem: what is static.
        arrays: as `problem.names` say; what no pair uses may be anything.
        out_grad: gradient of the outputs.
        log_sum_grad: gradient of the log-sum-exps.
    """
    operands = problem.operands(tuple(np.asarray(x) for x in arrays))
    allowed = allowed_pairs(problem, operands)
    (b, t, h, d), (s, k) = operands.query.shape, operands.key.shape[1:3]
    reads, is_read = who_meets(allowed)

    def wide(x: Any, used: Bool[np.ndarray, "b n"]) -> np.ndarray:
        return np.where(used[:, :, None, None], np.asarray(x, np.float64), 0.0)

    query, grad = wide(operands.query, reads), wide(out_grad, reads)
    key, value = wide(operands.key, is_read), wide(operands.value, is_read)
    found = Results(
        np.zeros((b, t, h, d)),
        np.full((b, h, t), -math.inf),
        np.zeros((b, t, h, d)),
        np.zeros((b, s, k, d)),
        np.zeros((b, s, k, d)),
    )
    for row, head in np.ndindex(b, h):
        other = head // (h // k)
        q, g = query[row, :, head], grad[row, :, head]
        keys, values = key[row, :, other], value[row, :, other]
        logits, bend = _logits(problem, operands, row, head, q @ keys.T)
        shares, log_sums = _softmax(logits, allowed[row])
        remains = _remains(problem, operands, row, head)
        weights, weight_grads = shares * remains, g @ values.T * remains
        live = np.isfinite(log_sums)
        delta = (shares * weight_grads).sum(1) - np.where(live, log_sum_grad[row, head], 0.0)
        product_grads = shares * (weight_grads - delta[:, None]) * bend * problem.scale
        found.out[row, :, head] = weights @ values
        found.log_sums[row, head] = log_sums
        found.query[row, :, head] = product_grads @ keys
        found.key[row, :, other] += product_grads.T @ q
        found.value[row, :, other] += weights.T @ g
    return found


def allowed_pairs(problem: Problem, operands: Operands) -> Bool[np.ndarray, "b t s"]:
    """Which query may attend to which key."""
    (b, t), s = operands.query.shape[:2], operands.key.shape[1]
    i, j = np.arange(t)[None, :, None], np.arange(s)[None, None, :]
    allowed = np.ones((b, t, s), bool)
    if problem.causal:
        seen = j <= i
        if operands.prefix_lengths is not None:
            seen = seen | (j < operands.prefix_lengths[:, None, None])
        allowed &= seen
    if problem.window is not None:
        allowed &= abs(i - j) < problem.window
    if operands.query_lengths is not None:
        allowed &= i < operands.query_lengths[:, None, None]
    if operands.key_lengths is not None:
        allowed &= j < operands.key_lengths[:, None, None]
    if operands.query_segments is not None and operands.key_segments is not None:
        allowed &= operands.query_segments[:, :, None] == operands.key_segments[:, None, :]
    return allowed


def who_meets(
    allowed: Bool[np.ndarray, "b t s"],
) -> tuple[Bool[np.ndarray, "b t"], Bool[np.ndarray, "b s"]]:
    """Queries that attend to any key, and keys that any query attends to."""
    return np.logical_or.reduce(allowed, 2), np.logical_or.reduce(allowed, 1)


def _logits(
    problem: Problem, operands: Operands, row: int, head: int, products: Float[np.ndarray, "t s"]
) -> tuple[Float[np.ndarray, "t s"], Any]:
    """Logits, and the derivative of the cap."""
    logits, bend = products * problem.scale, 1.0
    if problem.softcap is not None:
        bent = np.tanh(logits / problem.softcap)
        logits, bend = problem.softcap * bent, 1.0 - bent**2
    if operands.slopes is not None:
        t, s = products.shape
        distance = abs(np.arange(t)[:, None] - np.arange(s)[None])
        logits = logits - float(operands.slopes[row, head]) * distance
    return logits, bend


def _softmax(
    logits: Float[np.ndarray, "t s"], allowed: Bool[np.ndarray, "t s"]
) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t"]]:
    """Shares, and log-sum-exps; zeros and minus infinity where nothing is allowed."""
    masked = np.where(allowed, logits, -math.inf)
    highest = masked.max(1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    shares = np.exp(masked - highest)
    total = shares.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_sums = np.log(total) + highest
    return shares / np.where(total > 0, total, 1.0), log_sums[:, 0]


def _remains(problem: Problem, operands: Operands, row: int, head: int) -> Any:
    """What weights are multiplied by: 0 where they are dropped."""
    if operands.seeds is None:
        return 1.0
    places = (jnp.arange(operands.query.shape[1]), jnp.arange(operands.key.shape[1]))
    seeds = jnp.asarray(operands.seeds[row, head : head + 1])
    return np.asarray(kept(seeds, *places, problem.dropout_rate)[0]) / (1.0 - problem.dropout_rate)
