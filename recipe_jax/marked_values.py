"""Traces whose marked values are read or replaced: the machinery of `recipe_jax.activations`."""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.extend.core.primitives import jit_p, name_p, remat_p, scan_p

Edit: TypeAlias = Callable[[jax.Array, Any], Any]
"""`(value, layer) -> value` of the same shape and dtype, traced.  `layer` is the index of the step
in the enclosing scan, which is that of its slice of what was captured, as an int array without
axes; in nested scans an int array of all indices, the outermost first; outside of any, None."""

Address: TypeAlias = tuple[int, ...]
"""Position of an equation in its jaxpr, after those of the equations around it."""

_OPENED = frozenset({scan_p, jit_p, remat_p})
"""What is looked into, since all inside is computed once, or once per step."""


class Mark(NamedTuple):
    """Where a value is marked.

    Attributes:
        name: scopes and mark, and a number where that is not unique.
        address: of its equation.
        closed: the loop or branch around it that is not looked into; empty if there is none.
        lengths: of the scans around it.
        shape: within them.
    """

    name: str
    address: Address = ()
    closed: str = ""
    lengths: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


def marks_of(jaxpr: Any) -> dict[str, Mark]:
    """All marks in the order of the computation, by names that are unique."""
    found = list(_walk(_opened(jaxpr), (), Mark("")))
    occurrences = collections.Counter(mark.name for mark in found)
    numbers = collections.Counter[str]()
    for i, mark in enumerate(found):
        if occurrences[mark.name] > 1:
            found[i] = mark._replace(name=f"{mark.name}:{numbers[mark.name]}")
            numbers[mark.name] += 1
    return {mark.name: mark for mark in found}


def _walk(jaxpr: Jaxpr, scopes: tuple[str, ...], around: Mark) -> Iterator[Mark]:
    for position, eqn in enumerate(jaxpr.eqns):
        # A name stack is relative to its jaxpr: that of the enclosing equation comes before it.
        here, address = (*scopes, *_scopes(eqn)), (*around.address, position)
        if eqn.primitive is name_p:
            aval: Any = eqn.outvars[0].aval
            name = "/".join((*here, eqn.params["name"]))
            yield around._replace(name=name, address=address, shape=aval.shape)
        steps = (eqn.params["length"],) if eqn.primitive is scan_p else ()
        closed = around.closed or ("" if eqn.primitive in _OPENED else eqn.primitive.name)
        inside = Mark("", address, closed, (*around.lengths, *steps))
        for inner in jaxprs_in_params(eqn.params):
            yield from _walk(inner, here, inside)


def _scopes(eqn: JaxprEqn) -> list[str]:
    """The named scopes around an equation, without the marks of transformations: `vmap(jvp(…))`."""
    stack = re.sub(r"\w+\(|\)", "", str(eqn.source_info.name_stack))
    return [scope for scope in stack.split("/") if scope]


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Computes what a trace computes, and reads or replaces values on the way.

    Attributes:
        names: of the values that are asked for, by the addresses of their marks.
        edits: of those that are replaced.
    """

    names: Mapping[Address, str]
    edits: Mapping[str, Edit]

    def evaluate(
        self, jaxpr: Any, inputs: Sequence[Any], address: Address = (), layer: Any = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Outputs of a jaxpr, and the values that were read."""
        body, constants = _opened(jaxpr), getattr(jaxpr, "consts", ())
        values = dict(zip([*body.constvars, *body.invars], [*constants, *inputs], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        found: dict[str, Any] = {}
        for position, eqn in enumerate(body.eqns):
            scopes = "/".join(_scopes(eqn))
            # Names and settings go over into the next trace, so that it can be captured again.
            with jax.named_scope(scopes) if scopes else contextlib.nullcontext(), eqn.ctx.manager:
                operands = [read(atom) for atom in eqn.invars]
                outputs, inner = self._equation(eqn, operands, (*address, position), layer)
            values.update(zip(eqn.outvars, outputs, strict=True))
            found |= inner
        return [read(atom) for atom in body.outvars], found

    def _equation(
        self, eqn: JaxprEqn, operands: list[Any], address: Address, layer: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        if any(len(at) > len(address) and at[: len(address)] == address for at in self.names):
            return self._inside(eqn, operands, address, layer)
        found: dict[str, Any] = {}
        if name := self.names.get(address):
            value = jnp.asarray(operands[0])
            if name in self.edits:
                operands = [_edited(name, self.edits[name], value, layer)]
            else:
                found[name] = value
        outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        return outputs if eqn.primitive.multiple_results else [outputs], found

    def _inside(
        self, eqn: JaxprEqn, operands: list[Any], address: Address, layer: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        body, params = eqn.params["jaxpr"], eqn.params
        if eqn.primitive is jit_p:
            return self.evaluate(body, operands, address, layer)
        if eqn.primitive is remat_p:
            again = jax.checkpoint(
                lambda operands: self.evaluate(body, operands, address, layer),
                prevent_cse=params["prevent_cse"],
                policy=params["policy"],
            )
            return again(operands)
        num_consts, num_carried = _num_consts_and_carried(eqn)
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carried]

        def step(carry: Any, inputs: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            index, inputs = inputs
            # An index of its own: in a scan that runs backwards, too, values lie in its order.
            here = index if layer is None else jnp.append(layer, index)
            outputs, found = self.evaluate(body, [*consts, *carry, *inputs], address, here)
            return outputs[:num_carried], (outputs[num_carried:], found)

        inputs = (jnp.arange(params["length"]), operands[num_consts + num_carried :])
        carry, (stacked, found) = jax.lax.scan(
            step, carry, inputs, reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*carry, *stacked], found


def _edited(name: str, edit: Edit, value: jax.Array, layer: Any) -> jax.Array:
    edited = edit(value, layer)
    if not isinstance(edited, (jax.Array, np.ndarray)):
        raise ValueError(f"the edit of {name} must return an array, returned {edited!r}")
    if (edited.shape, edited.dtype) != (value.shape, value.dtype):
        raise ValueError(
            f"the edit of {name} must return {value.dtype}{list(value.shape)} like its value, "
            f"returned {edited.dtype}{list(edited.shape)}"
        )
    return jnp.asarray(edited)


def _opened(jaxpr: Any) -> Jaxpr:
    """A jaxpr without its constants: closed and bare ones are two types before JAX 0.11."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _num_consts_and_carried(eqn: JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are the same in all steps, and how many one step hands on.

    Read from the shapes, which the parameters say differently in every version of JAX: only what
    a scan reads or writes step by step has an axis more outside of its body than inside.
    """
    body = _opened(eqn.params["jaxpr"])

    def num_whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(outer.aval.shape) == len(inner.aval.shape) for outer, inner in pairs)

    num_carried = num_whole(eqn.outvars, body.outvars)
    return num_whole(eqn.invars, body.invars) - num_carried, num_carried
