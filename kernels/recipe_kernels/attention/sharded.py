"""Attention on a mesh: each device computes its own rows and heads, and none asks another."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from recipe_jax.layers.attention import Attend
from recipe_jax.layers.masks import Mask
from recipe_jax.sharding import BATCH_AXES, Mesh
from recipe_kernels.attention.fused import (
    Implementation,
    attend,
    attention,
    check_implementation,
)
from recipe_kernels.attention.problem import make_problem

_NO_MASK = Mask()
_HEAD_AXIS = "tensor"


@dataclasses.dataclass(frozen=True)
class ShardedAttention:
    """`attention` as a value for models that are trained on a mesh.

    Without it the compiler would gather whatever a kernel reads.  Rows are split over the axes
    "data" and "fsdp", heads over "tensor".  Where key heads are too few to be split, every device
    has all of them, takes those that its query heads read, and the devices add up their gradients.
    Where the number of rows, or of query heads, is no multiple, every device computes all of them.

    Attributes:
        mesh: the devices.
        implementation: as for `attention`.
    """

    mesh: Mesh
    implementation: Implementation | None = None

    def __post_init__(self) -> None:
        check_implementation(self.implementation)

    def __call__(
        self,
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
    ) -> Float[Array, "b t h d"]:
        """Arguments, result and errors as for `attention`."""
        options: dict[str, Any] = {
            "mask": mask,
            "alibi_slopes": alibi_slopes,
            "scale": scale,
            "softcap": softcap,
            "dropout_rate": dropout_rate,
            "dropout_key": dropout_key,
        }
        name = self.implementation
        if bias is not None or mask.dense is not None or name == "reference":
            # The reference is products of matrices, which the compiler splits by itself.
            return attention(query, key, value, bias=bias, implementation=name, **options)
        problem, arrays = make_problem(query, key, value, **options)
        h, k = query.shape[2], key.shape[2]
        specs = self._specs(query.shape[0], h, k)
        takes = specs["query"] != specs["key"]

        def local(query: jax.Array, key: jax.Array, value: jax.Array, *rest: Any) -> jax.Array:
            if takes:
                key, value = (_heads_read(x, query.shape[2], h // k) for x in (key, value))
            results: Any = attend(problem, name, (query, key, value, *rest))
            return results[0]

        split = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=tuple(specs[name] for name in problem.names),
            out_specs=specs["query"],
            check_vma=False,
        )
        return split(*arrays)

    def _specs(self, batch_size: int, num_heads: int, num_kv_heads: int) -> Mapping[str, Any]:
        """Where each array is split."""
        sizes = dict(self.mesh.shape)
        present = tuple(axis for axis in BATCH_AXES if sizes.get(axis, 1) > 1)
        rows = present if batch_size % math.prod(sizes[axis] for axis in present) == 0 else None
        size = sizes.get(_HEAD_AXIS, 1)
        heads = _HEAD_AXIS if size > 1 and num_heads % size == 0 else None
        key_heads = heads if num_kv_heads % size == 0 else None
        of_rows, of_tokens = jax.P(rows), jax.P(rows, None)
        return {
            "query": jax.P(rows, None, heads),
            **dict.fromkeys(("key", "value"), jax.P(rows, None, key_heads)),
            **dict.fromkeys(("slopes", "seeds"), jax.P(rows, heads)),
            **dict.fromkeys(("prefix_lengths", "query_lengths", "key_lengths"), of_rows),
            **dict.fromkeys(("query_segments", "key_segments"), of_tokens),
        }


def _heads_read(x: Float[Array, "b s k d"], own: int, group: int) -> Float[Array, "b s _ d"]:
    """Of all key heads those that the query heads of this device read.

    Args:
        x: all of them.
        own: query heads of a device.
        group: query heads that read the same one.
    """
    first = jax.lax.axis_index(_HEAD_AXIS) * own
    if group % own == 0:
        return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2)
    return jnp.take(x, (first + jnp.arange(own)) // group, axis=2)


def attention_on(mesh: Mesh) -> Attend:
    """`attention` for a model on this mesh: split over it, or as it is on one device."""
    return attention if mesh.size == 1 else ShardedAttention(mesh)
