"""Operations whose implementation is chosen per platform, when a program is lowered.

One traced function then runs on CPU, lowers for CUDA and for TPU, and is exported for all of them,
under jit, vmap, scan and remat; `jax.lax.platform_dependent` would lower every branch everywhere.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

Compute: TypeAlias = Callable[..., tuple[jax.Array, ...]]
"""Arrays in, arrays out; further keywords are static."""

Choose: TypeAlias = Callable[..., tuple[str, Compute]]
"""`(platform, avals, **static)` -> name and function of an implementation, or an error that says
why there is none."""

PLATFORMS = ("cpu", "cuda", "tpu")

_log = logging.getLogger(__name__)


def make_operation(name: str, *, shapes: Compute, choose: Choose) -> Compute:
    """A function of arrays, each with a leading axis of the batch, and of static keywords.

    It has no derivative of its own: a `jax.custom_vjp` is to stand around it.

    Args:
        name: of the primitive.
        shapes: any implementation that can be traced anywhere, which says what the results look
            like.
        choose: which implementation a platform gets.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*avals: Any, **static: Any) -> list[Any]:
        return list(jax.make_jaxpr(functools.partial(shapes, **static))(*avals).out_avals)

    def lowered_for(platform: str) -> Any:
        def rule(ctx: Any, *operands: Any, **static: Any) -> Any:
            implementation, compute = choose(platform, ctx.avals_in, **static)
            _say_once(name, platform, implementation)
            lower = mlir.lower_fun(
                lambda *arrays, **static: list(compute(*arrays, **static)), multiple_results=True
            )
            return lower(ctx, *operands, **static)

        return rule

    primitive.def_abstract_eval(abstract)
    # One function, so that what is called outside jit is compiled once, too.
    bind = jax.jit(
        lambda static, *arrays: primitive.bind(*arrays, **dict(static)), static_argnums=0
    )

    def run(*arrays: Any, **static: Any) -> Any:
        with jax.disable_jit(False):  # a primitive has nothing else to be run by
            return bind(tuple(static.items()), *arrays)

    primitive.def_impl(run)
    for platform in PLATFORMS:
        mlir.register_lowering(primitive, lowered_for(platform), platform=platform)
    batching.primitive_batchers[primitive] = functools.partial(_fold_into_batch, primitive)
    return lambda *arrays, **static: tuple(primitive.bind(*arrays, **static))


def _fold_into_batch(
    primitive: Primitive, arrays: Any, axes: Any, **static: Any
) -> tuple[list[jax.Array], list[int]]:
    """What `vmap` does: the mapped axis and the batch become one."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    if not size:
        raise ValueError(f"{primitive.name}: vmap is over an axis of size 0, must be at least 1")

    def whole(x: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            x = jnp.broadcast_to(x, (size, *x.shape))
        else:
            x = jnp.moveaxis(x, axis, 0)
        return x.reshape(size * x.shape[1], *x.shape[2:])

    folded = [whole(x, axis) for x, axis in zip(arrays, axes, strict=True)]
    results = primitive.bind(*folded, **static)
    return [x.reshape(size, -1, *x.shape[1:]) for x in results], [0] * len(results)


@functools.cache
def _say_once(name: str, platform: str, implementation: str) -> None:
    _log.info("%s on %s: %s", name, platform, implementation)
