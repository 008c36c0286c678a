"""What an attention kernel is asked: arrays, and what is known when the program is compiled."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, UInt32

from recipe_jax.layers.attention import check_heads
from recipe_jax.layers.masks import Mask


class Operands(NamedTuple):
    """The arrays, each with a leading axis of the batch, so that any can be split or folded by it.

    Attributes:
        query: heads that ask.
        key: heads that are asked.
        value: heads that answer.
        slopes: `-slope |i - j|` is added to the logits.
        prefix_lengths: see `Mask`, as all below but the last.
        query_lengths: real queries.
        key_lengths: real keys.
        query_segments: to which sequence a query belongs.
        key_segments: to which sequence a key belongs.
        seeds: what decides which weights are dropped.
    """

    query: Float[Array, "b t h d"]
    key: Float[Array, "b s k d"]
    value: Float[Array, "b s k d"]
    slopes: Float32[Array, "b h"] | None = None
    prefix_lengths: Int32[Array, "b"] | None = None
    query_lengths: Int32[Array, "b"] | None = None
    key_lengths: Int32[Array, "b"] | None = None
    query_segments: Int32[Array, "b t"] | None = None
    key_segments: Int32[Array, "b s"] | None = None
    seeds: UInt32[Array, "b h"] | None = None

    def given(self) -> tuple[tuple[str, ...], tuple[jax.Array, ...]]:
        """Names and values of all that are not None."""
        found = {name: x for name, x in self._asdict().items() if x is not None}
        return tuple(found), tuple(found.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What is known when the program is compiled.

    Attributes:
        names: which of `Operands` there are.
        scale: multiplies the logits.
        causal: see `Mask`.
        window: see `Mask`.
        softcap: logits become `softcap tanh(logits / softcap)`; None leaves them.
        dropout_rate: probability that a weight is dropped.
    """

    names: tuple[str, ...]
    scale: float
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    dropout_rate: float = 0.0

    def operands(self, arrays: tuple[Any, ...]) -> Operands:
        """The arrays by their names."""
        return Operands(**dict(zip(self.names, arrays, strict=True)))


def make_problem(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    *,
    mask: Mask,
    alibi_slopes: Float[Array, "h"] | None,
    scale: float | None,
    softcap: float | None,
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
) -> tuple[Problem, tuple[jax.Array, ...]]:
    """The arguments of `attention`, checked, as a kernel takes them.

    Raises:
        ValueError: names the argument, its value and the rule.
    """
    check_arrays(query, key, value)
    check_mask(mask, query, key)
    check_options(
        query,
        key,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
    )
    (b, t, h, d), s = query.shape, key.shape[1]
    seeds = None
    if dropout_rate > 0 and dropout_key is not None:
        seeds = jax.random.bits(dropout_key, (b, h), jnp.uint32)

    def whole(x: Any) -> Any:
        return None if x is None else jnp.asarray(x, jnp.int32)

    operands = Operands(
        query=query,
        key=key,
        value=value,
        slopes=(
            None
            if alibi_slopes is None
            else jnp.broadcast_to(alibi_slopes.astype(jnp.float32)[None], (b, h))
        ),
        prefix_lengths=whole(mask.prefix_lengths),
        query_lengths=whole(mask.query_lengths),
        key_lengths=whole(mask.key_lengths),
        query_segments=whole(mask.query_segments),
        key_segments=whole(mask.key_segments),
        seeds=seeds,
    )
    names, arrays = operands.given()
    problem = Problem(
        names=names,
        scale=float(d**-0.5 if scale is None else scale),
        causal=mask.causal,
        # Numbers of Python, and a window that no arithmetic of kernels overflows by.
        window=None if mask.window is None else min(int(mask.window), t + s),
        softcap=None if softcap is None else float(softcap),
        dropout_rate=0.0 if seeds is None else float(dropout_rate),
    )
    return problem, arrays


def check_arrays(query: Any, key: Any, value: Any) -> None:
    """Refuse arrays that do not fit each other."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4:
            raise ValueError(
                f"{name} has shape {x.shape}, must have 4 axes: batch, tokens, heads, width"
            )
        if 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}, must not be empty")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {x.dtype}, must be floating-point numbers")
    if key.shape != value.shape:
        raise ValueError(f"key has shape {key.shape}, must be that of value, {value.shape}")
    for axis, what in ((0, "batch"), (3, "head width")):
        if query.shape[axis] != key.shape[axis]:
            raise ValueError(
                f"query has {what} {query.shape[axis]}, must be that of key, {key.shape[axis]}"
            )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype}, {value.dtype}, must "
            "have one: cast them"
        )
    check_heads(query.shape[2], key.shape[2])


def check_options(
    query: Any,
    key: Any,
    *,
    bias: Any = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
) -> None:
    """Refuse what else `attention` takes, where it breaks a rule."""
    h = query.shape[2]
    if bias is not None:
        _check_pairs("bias", bias, query, key)
    if alibi_slopes is not None and alibi_slopes.shape != (h,):
        raise ValueError(f"alibi_slopes has shape {alibi_slopes.shape}, must be ({h},)")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap={softcap} must be positive and finite; None for no cap")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate={dropout_rate} must be at least 0 and below 1")


def _check_pairs(name: str, x: Any, query: Any, key: Any) -> None:
    (b, t, h, _), s = query.shape, key.shape[1]
    fits = x.ndim == 4 and x.shape[0] in (1, b) and x.shape[1] in (1, h) and x.shape[2:] == (t, s)
    if not fits:
        raise ValueError(
            f"{name} has shape {x.shape}, must have ({b} or 1, {h} or 1, {t}, {s}): batch, heads, "
            "queries, keys"
        )


def check_mask(mask: Mask, query: Any, key: Any) -> None:
    """Refuse arrays of a mask that do not fit the batch, the queries or the keys."""
    (b, t), s = query.shape[:2], key.shape[1]
    if mask.dense is not None:
        _check_pairs("mask.dense", mask.dense, query, key)
    shapes = {
        "prefix_lengths": (b,),
        "query_lengths": (b,),
        "key_lengths": (b,),
        "query_segments": (b, t),
        "key_segments": (b, s),
    }
    for name, shape in shapes.items():
        x = getattr(mask, name)
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"mask.{name} has shape {x.shape}, must have {shape}")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"mask.{name} has dtype {x.dtype}, must be whole numbers")
        if isinstance(x, Tracer) or not getattr(x, "is_fully_addressable", True):
            continue
        numbers = np.asarray(x)
        longest = {"query_lengths": t, "prefix_lengths": s, "key_lengths": s}.get(name)
        if (numbers < 0).any():
            raise ValueError(f"mask.{name} holds {numbers.min()}, must be at least 0")
        if longest is not None and (numbers > longest).any():
            raise ValueError(f"mask.{name} holds {numbers.max()}, must be at most {longest}")
