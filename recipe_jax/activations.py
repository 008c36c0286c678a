"""Intermediate values of a model by name: read them, and replace them.

Layers mark a value by `jax.ad_checkpoint.checkpoint_name(x, "query")`, which computes nothing.  Its
name is that mark after the scopes (`jax.named_scope`) around it, such as `encoder/attention/query`.
A function is traced and its trace interpreted, so that models need neither hooks nor further
arguments, and the results are pure functions again, for jit, grad, vmap and scan:

    logits, clean = jax.jit(capture(fn))(params, tokens)
    restore = Replacement(clean["residual"], layers=3, positions=[4, 5])
    logits = jax.jit(patch(fn, {"residual": restore}))(params, other_tokens)

    shapes = jax.eval_shape(capture(fn), params, tokens)[1]  # all names, and nothing computed

A name inside a scan, such as that over the layers of a stack, stands for one value per step: what
is captured has a leading axis of steps.  Where a name occurs more than once otherwise, a number is
appended to each, from 0 in the order of the computation (`query:0`, `query:1`), and the bare name
is unknown: nothing is replaced in one place and forgotten in another.

Every call traces anew: put `jax.jit` around the outside.  A `jax.jit` inside is dissolved where a
name in it is asked for, with the shardings it demands.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from recipe_jax.functional import PureModule
from recipe_jax.marked_values import Edit, Interpreter, Mark, marks_of

Function: TypeAlias = Callable[..., Any] | PureModule[Any]
"""Of trees of arrays; a pure module stands for `fn.bind(params)(…)`, a function of `params, …`."""

Indices: TypeAlias = int | Sequence[int] | jax.Array | np.ndarray


def capture(
    fn: Function, names: Collection[str] | None = None
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """A function that also returns intermediate values, `(result, {name: value})`.

    Result and gradients are those of `fn`; gradients of the values are theirs.

    Args:
        fn: whose values are read.
        names: which of them; all that can be read if None.

    Raises:
        ValueError: if `names` is a string; when called, if a name is unknown.
        NotImplementedError: when called, if a name is asked for inside a loop or a branch that may
            compute it any number of times (`while`, `cond`), or inside a custom derivative.
    """
    if isinstance(names, str):
        raise ValueError(f"names={names!r} must be a collection of names, not one of them")

    def captured(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        return _run(fn, args, kwargs, names, {})

    return captured


def patch(fn: Function, edits: Mapping[str, Edit | jax.Array | np.ndarray]) -> Callable[..., Any]:
    """A function in which intermediate values are replaced.

    Putting in values of another input is activation patching (Vig et al. 2020, arXiv:2004.12265;
    Wang et al. 2022, arXiv:2211.00593), with a corrupted input causal tracing (Meng et al. 2022,
    arXiv:2202.05262, section 2.1); putting in zeros or means is ablation.  Gradients flow through
    the edits, also into arrays that they hold or close over.

    Args:
        fn: whose values are replaced.
        edits: name -> an `Edit`, such as a `Replacement`, or an array that replaces all layers.

    Raises:
        ValueError: when called, if a name is unknown, if an edit returns another shape or dtype, or
            if a replacement does not fit.
        NotImplementedError: when called, for names as in `capture`.
    """
    made = {
        name: Replacement(edit) if isinstance(edit, (jax.Array, np.ndarray)) else edit
        for name, edit in edits.items()
    }

    def patched(*args: Any, **kwargs: Any) -> Any:
        return _run(fn, args, kwargs, made, made)[0]

    return patched


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Values to be put in at some layers and positions, the others kept.

    Layers and positions may be traced: `vmap` over them patches each in turn; then they are not
    checked, and one that does not exist replaces nothing.

    Attributes:
        values: of the shape that `capture` gives, with the axis of layers if there is one.
        layers: one or several, along the innermost scan; all if None.
        positions: one or several, along the axis after that of the batch (`b t …`); all if None.
    """

    values: jax.Array | np.ndarray
    layers: Indices | None = None
    positions: Indices | None = None

    def __call__(self, value: jax.Array, layer: Any) -> jax.Array:
        """The value with what replaces it; an `Edit`."""
        steps: tuple[Any, ...] = () if layer is None else tuple(jnp.atleast_1d(layer))
        chosen = jnp.asarray(True)
        if self.layers is not None:
            chosen &= _among(steps[-1], self.layers)
        if self.positions is not None:
            here = _among(jnp.arange(value.shape[1]), self.positions)
            chosen &= here.reshape(1, -1, *(1,) * (value.ndim - 2))
        return jnp.where(chosen, jnp.asarray(self.values)[steps], value)

    def check(self, mark: Mark) -> None:
        """Refuse values, layers or positions that do not fit what they replace."""
        shape = (*mark.lengths, *mark.shape)
        if self.values.shape != shape:
            raise ValueError(
                f"the replacement of {mark.name} must have shape {shape} as captured, "
                f"has {self.values.shape}"
            )
        for name, chosen, sizes in (
            ("layers", self.layers, mark.lengths[-1:]),
            ("positions", self.positions, mark.shape[1:2]),
        ):
            if chosen is None or (sizes and isinstance(chosen, Tracer)):
                continue
            if not sizes:
                raise ValueError(f"{name}={chosen} are given for {mark.name}, which has none")
            if not ((np.asarray(chosen) >= 0) & (np.asarray(chosen) < sizes[0])).all():
                raise ValueError(f"{name}={chosen} of {mark.name} must be from 0 to {sizes[0] - 1}")


def _among(indices: jax.Array, chosen: Indices) -> jax.Array:
    return (indices[..., None] == jnp.asarray(chosen).reshape((1,) * indices.ndim + (-1,))).any(-1)


def _run(
    fn: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Collection[str] | None,
    edits: Mapping[str, Any],
) -> tuple[Any, dict[str, jax.Array]]:
    """The result, edited, and the values of all names that have no edit."""
    args, kwargs = jax.tree.map(jnp.asarray, (args, kwargs))
    jaxpr, shapes = jax.make_jaxpr(_function(fn), return_shape=True)(*args, **kwargs)
    marks = marks_of(jaxpr)
    if names is None:
        names = [name for name, mark in marks.items() if not mark.closed]
    _check_names(names, marks)
    for name, edit in edits.items():
        if isinstance(edit, Replacement):
            edit.check(marks[name])
    interpreter = Interpreter({marks[name].address: name for name in names}, edits)
    outputs, found = interpreter.evaluate(jaxpr, jax.tree.leaves((args, kwargs)))
    return jax.tree.unflatten(jax.tree.structure(shapes), map(jnp.asarray, outputs)), found


def _function(fn: Function) -> Callable[..., Any]:
    if isinstance(fn, PureModule):
        return lambda params, *args, **kwargs: fn.bind(params)(*args, **kwargs)
    return fn


def _check_names(names: Collection[str], marks: Mapping[str, Mark]) -> None:
    if unknown := sorted(set(names) - set(marks)):
        raise ValueError(
            f"unknown activations {', '.join(unknown)}: "
            f"the function marks {', '.join(marks) if marks else 'none'}"
        )
    for name in names:
        if closed := marks[name].closed:
            raise NotImplementedError(
                f"activation {name} is inside a {closed}, which is not looked into: "
                "capture or patch the function in there instead"
            )
