"""Flax NNX modules as pure functions of a plain dict of parameters.

`purify(module)` takes a module apart into `(fn, params)`; `fn.bind(params)` is the module again.
`fn` is static and hashable and `params` a nested dict of arrays, so that jit, grad, vmap, scan,
Optax and Orbax apply directly.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import jax
from flax import nnx

Params: TypeAlias = dict[Any, Any]
"""A nested dict of arrays; its keys are attribute names, and indices within an `nnx.List`."""

ModuleT = TypeVar("ModuleT", bound=nnx.Module)
Path: TypeAlias = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is known of a parameter without its values.

    Attributes:
        path: keys from the root of the nested dict.
        shape: the array's shape.
        dtype: the name of the array's dtype.
        axes: one logical axis name per dimension; None for a dimension that is never sharded.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Part of a parameter: along `axis` from `start` up to, not including, `stop`."""

    start: int
    stop: int
    axis: int = 0

    @property
    def index(self) -> tuple[slice, ...]:
        """What an array is indexed by."""
        return (*[slice(None)] * self.axis, slice(self.start, self.stop))


@dataclasses.dataclass(frozen=True)
class PureModule(Generic[ModuleT]):
    """A module without its parameters: equal, with equal hashes, for equal configurations.

    Attributes:
        graph: the module's static structure.
        leaves: its parameters, in the order of their paths.
    """

    graph: nnx.GraphDef[ModuleT]
    leaves: tuple[Leaf, ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        # As a static argument of jit this is asked for on every call.
        return hash((self.graph, self.leaves))

    @property
    def axes(self) -> Params:
        """A dict like the parameters, whose leaves are tuples of logical axis names."""
        return _nest((leaf.path, leaf.axes) for leaf in self.leaves)

    @property
    def shapes(self) -> Params:
        """A dict like the parameters, whose leaves are `jax.ShapeDtypeStruct`."""
        return _nest(
            (leaf.path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) for leaf in self.leaves
        )

    def bind(self, params: Mapping[Any, Any]) -> ModuleT:
        """The module that holds these parameters; call its methods, do not assign to it.

        Shapes are the caller's: under `vmap` and `scan` they differ from `shapes` by an axis.

        Raises:
            ValueError: if a parameter is missing or unknown.
        """
        given = {path for path, _ in _flatten(params)}
        expected = {leaf.path for leaf in self.leaves}
        if given != expected:
            missing = sorted(map(path_name, expected - given))[:3]
            unknown = sorted(map(path_name, given - expected))[:3]
            raise ValueError(
                f"parameters do not fit {self.graph.nodes[0].type.__name__}: missing {missing}, "  # pyright: ignore
                f"unknown {unknown}; pass a dict with the keys that purify gave"
            )
        return nnx.merge(self.graph, dict(params))


def purify(module: ModuleT) -> tuple[PureModule[ModuleT], Params]:
    """Take a module apart into its static structure and its parameters.

    Logical axes are read from `nnx.Param(value, axes=("embed", "heads"))`; a parameter without
    them is never sharded.

    Raises:
        ValueError: if any state is not an `nnx.Param` (random streams, batch statistics, caches,
            bare arrays), if a parameter's axes do not match its shape, or if the structure is not
            hashable.
    """
    owner = type(module).__name__
    graph, state = nnx.split(module)
    leaves: list[Leaf] = []
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.Param):
            raise ValueError(
                f"{owner}.{path_name(path, '.')} is a {type(variable).__name__}, not an nnx.Param: "
                "a module holds parameters only; pass what changes or is constant as an argument"
            )
        leaves.append(_leaf(owner, path, variable))
    fn = PureModule(graph, tuple(leaves))
    try:
        hash(fn)
    except TypeError as error:
        raise ValueError(
            f"{owner} has an attribute that is not hashable ({error}): keep static "
            "attributes to frozen values such as numbers, strings, tuples and frozen dataclasses"
        ) from error
    return fn, nnx.to_pure_dict(state)


def abstract(make_module: Callable[[], ModuleT]) -> tuple[PureModule[ModuleT], Params]:
    """Take a module apart without allocating it, however large it is.

    Args:
        make_module: builds the module, with random streams that it makes itself.

    Returns:
        What `purify(make_module())` gives, with `jax.ShapeDtypeStruct` in place of arrays.
    """
    found: list[PureModule[ModuleT]] = []

    def initial_params() -> Params:
        fn, params = purify(make_module())
        found.append(fn)
        return params

    shapes = jax.eval_shape(initial_params)
    return found[0], shapes


def stack(
    make_module: Callable[[jax.Array], ModuleT], keys: jax.Array, *, axis: str = "layers"
) -> ModuleT:
    """Build one module per key, their parameters stacked on a new leading axis.

    The result is one module to hold.  To run it over its leading axis, take it apart again:
    `fn, params = purify(stacked)`, then `lax.scan(lambda x, p: (fn.bind(p)(x), None), x, params)`.

    Args:
        make_module: builds a module from one key.
        keys: one random key per module.
        axis: logical name of the leading axis.
    """
    found: list[PureModule[ModuleT]] = []

    def initial_params(key: jax.Array) -> Params:
        fn, params = purify(make_module(key))
        found.append(fn)
        return params

    params = jax.vmap(initial_params)(keys)
    module = found[0].bind(params)
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_metadata(axes=(axis, *_axes_of(variable, variable.get_value().ndim - 1)))
    return module


def num_parameters(params: Mapping[Any, Any]) -> int:
    """How many numbers the parameters hold; takes shapes as well as arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flat_params(params: Mapping[Any, Any]) -> dict[Path, Any]:
    """Path -> leaf of a nested dict, such as parameters, their shapes or their axes."""
    return dict(_flatten(params))


def nested_params(leaves: Mapping[Path, Any]) -> Params:
    """The inverse of `flat_params`."""
    return _nest(iter(leaves.items()))


def path_name(path: Path, separator: str = "/") -> str:
    """A path as one string, such as `decoder/0/kernel`."""
    return separator.join(map(str, path))


def _leaf(owner: str, path: Path, variable: nnx.Param[Any]) -> Leaf:
    value = variable.get_value()
    axes = _axes_of(variable, value.ndim)
    if len(axes) != value.ndim:
        raise ValueError(
            f"{owner}.{path_name(path, '.')} has axes={axes} for shape {value.shape}: "
            "give one name per dimension"
        )
    return Leaf(path, tuple(value.shape), str(value.dtype), axes)


def _axes_of(variable: nnx.Param[Any], ndim: int) -> tuple[str | None, ...]:
    return tuple(variable.get_metadata("axes", (None,) * ndim))


def _flatten(tree: Mapping[Any, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _nest(leaves: Iterator[tuple[Path, Any]]) -> Params:
    nested: Params = {}
    for path, value in leaves:
        node = nested
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return nested
