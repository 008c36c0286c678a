"""The public functions: which kernel computes what, and the derivative around it."""

import functools
import importlib
import logging
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.layers.masks import Mask
from recipe_kernels.attention import tiled
from recipe_kernels.attention.problem import (
    Problem,
    check_arrays,
    check_mask,
    check_options,
    make_problem,
)
from recipe_kernels.op import make_operation

Implementation: TypeAlias = Literal["reference", "tiled", "triton", "pallas"]
"""`dot_product_attention`; tiles in plain JAX, on any platform; kernels in Triton, for NVIDIA's
GPUs; kernels in Pallas, for TPUs."""

_DEFAULT = {"cpu": "tiled", "cuda": "triton", "tpu": "pallas"}
_MODULES = {"tiled": "tiled", "triton": "triton_gpu", "pallas": "pallas_tpu"}
_MADE_FOR = {"triton": "cuda", "pallas": "tpu"}
_NO_MASK = Mask()
_log = logging.getLogger(__name__)


def attention(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    *,
    mask: Mask = _NO_MASK,
    bias: Float[Array, "#b #h t s"] | None = None,
    alibi_slopes: Float[Array, "h"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "b t h d"]:
    """Softmax attention as `dot_product_attention` computes it, in memory linear in the tokens.

    Query head `j` reads key/value head `j // (h / k)`.  Logits, softmax and sums are float32; the
    result has the dtype of the arguments.  Differentiable in query, key and value, by the rule of
    Dao et al. 2022 (arXiv:2205.14135): probabilities are computed again, not kept.

    Args:
        query: what each token asks for.
        key: what each token is asked by; one that no query may attend to is never read, so padding
            may hold NaN.
        value: what each token answers; padding as for `key`.
        mask: which keys a query may attend to.  A row with none returns zeros, and no gradient.
        bias: added to the scaled and capped logits.  A bias of `t s`, and a dense mask, are what
            tiles save memory by not having: with one the reference computes, unless a kernel is
            named.
        alibi_slopes: `-slope |i - j|` is added to the logits of head `h`; it gets no gradient.
        scale: multiplies the logits; `1 / sqrt(d)` if not given.
        softcap: logits become `softcap tanh(logits / softcap)`.
        dropout_rate: probability that a weight is dropped: other weights than the reference drops
            with the same key, the same ones in every kernel.
        dropout_key: random key for it; nothing is dropped without one.
        implementation: runs, or raises; None takes the best one of the platform that the program
            is compiled for, and says once at INFO which.

    Raises:
        ValueError: names the argument that breaks a rule.
        NotImplementedError: the named implementation cannot do this; the message says what.
    """
    check_implementation(implementation)
    dense = "bias" if bias is not None else "mask.dense" if mask.dense is not None else None
    if implementation == "reference" or (implementation is None and dense):
        if implementation is None:
            _say_once(f"attention with {dense}: reference")
        check_arrays(query, key, value)
        check_mask(mask, query, key)
        check_options(
            query,
            key,
            bias=bias,
            alibi_slopes=alibi_slopes,
            scale=scale,
            softcap=softcap,
            dropout_rate=dropout_rate,
        )
        return dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            alibi_slopes=alibi_slopes,
            scale=scale,
            softcap=softcap,
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
        )
    if dense:
        raise NotImplementedError(
            f"attention({implementation}): {dense} is a matrix of queries by keys; use the "
            "structure of Mask, or implementation='reference'"
        )
    return attention_and_log_sum_exp(
        query,
        key,
        value,
        mask=mask,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        implementation=implementation,
    )[0]


def attention_and_log_sum_exp(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    *,
    mask: Mask = _NO_MASK,
    alibi_slopes: Float[Array, "h"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "b t h d"], Float32[Array, "b h t"]]:
    """`attention`, and the logarithm of the sum of each query's exponentiated logits, in nats.

    With it, attention to several sets of keys is put together.  Minus infinity for a query that may
    attend to nothing.  Arguments and errors as for `attention`; the reference has no such result.
    """
    check_implementation(implementation)
    if implementation == "reference" or mask.dense is not None:
        lacking = "a log-sum-exp" if mask.dense is None else "a log-sum-exp under mask.dense"
        raise NotImplementedError(f"attention({implementation or 'any'}): has not {lacking}")
    problem, arrays = make_problem(
        query,
        key,
        value,
        mask=mask,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )
    if implementation in _MADE_FOR:
        _check_limits(implementation, problem, arrays)
    return attend(problem, implementation, arrays)


def check_implementation(name: str | None) -> None:
    """Refuse a name that no implementation has."""
    if name is not None and name not in get_args(Implementation):
        raise ValueError(f"implementation={name!r} must be one of {get_args(Implementation)}")


def _choose(direction: str) -> Any:
    def choose(
        platform: str, avals: Any, *, problem: Problem, implementation: str | None
    ) -> tuple[str, Any]:
        name = implementation or _DEFAULT[platform]
        if platform != (made_for := _MADE_FOR.get(name, platform)):
            raise NotImplementedError(f"attention({name}): runs on {made_for}, not on {platform}")
        kernels = _kernels(name)
        said = name
        if name in _MADE_FOR:
            arrays = tuple(avals[: len(problem.names)])
            if implementation:
                _check_limits(name, problem, arrays)
            if beyond := _limits(name, problem, arrays):
                kernels, said = tiled, f"tiled, not {name}: {beyond}"
        compute = getattr(kernels, direction)
        return said, lambda *arrays, problem, implementation: compute(*arrays, problem=problem)

    return choose


def _check_limits(name: str, problem: Problem, arrays: tuple[Any, ...]) -> None:
    if beyond := _limits(name, problem, arrays):
        raise NotImplementedError(f"attention({name}): {beyond}")


def _limits(name: str, problem: Problem, arrays: tuple[Any, ...]) -> str:
    """What kernels of this name cannot do of the problem; nothing if they can."""
    return "; ".join(_kernels(name).limits(problem.operands(arrays), problem))


def _kernels(name: str) -> Any:
    """A module, imported when a program is lowered that needs it."""
    return importlib.import_module(f"recipe_kernels.attention.{_MODULES[name]}")


def _shapes(compute: Any) -> Any:
    return lambda *arrays, problem, implementation: compute(*arrays, problem=problem)


_forward = make_operation(
    "attention_forward",
    shapes=_shapes(tiled.forward),
    choose=_choose("forward"),
)
_backward = make_operation(
    "attention_backward",
    shapes=_shapes(tiled.backward),
    choose=_choose("backward"),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    problem: Problem, implementation: str | None, arrays: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """Outputs and log-sum-exps of a problem, with their derivative."""
    return _attend_forward(problem, implementation, arrays)[0]


def _attend_forward(
    problem: Problem, implementation: str | None, arrays: tuple[jax.Array, ...]
) -> Any:
    out, lse = _forward(*arrays, problem=problem, implementation=implementation)
    return (out, lse), (arrays, out, lse)


def _attend_backward(
    problem: Problem, implementation: str | None, kept: Any, grads: tuple[jax.Array, jax.Array]
) -> Any:
    arrays, out, lse = kept
    found = _backward(*arrays, out, lse, *grads, problem=problem, implementation=implementation)
    return ((*found, *(_no_gradient(x) for x in arrays[3:])),)


attend.defvjp(_attend_forward, _attend_backward)


def _no_gradient(x: jax.Array) -> Any:
    """Of what is no number to be learned."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else None


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
