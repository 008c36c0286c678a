"""What attention is measured on: shapes, masks, the numbers in them, and what they must cost."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32
from recipe_kernels.attention.exact import exact
from recipe_kernels.attention.problem import Problem


class Workload(NamedTuple):
    """One shape with one mask; as many keys as queries.

    Attributes:
        name: what it is about.
        b: rows of the batch.
        t: tokens of a row.
        h: query heads.
        k: key heads.
        d: width of a head.
        dtype: of query, key and value.
        causal: whether a query reads no later key.
        alibi: whether `-slope |i - j|` is added to the logits.
        shortest: rows have from so many tokens to `t`, uniformly; all have `t` if None.
        packed: a row holds sequences of so many tokens, which do not read each other.
        timed: else only its memory is asked for.
    """

    name: str
    b: int
    t: int
    h: int
    d: int
    k: int | None = None
    dtype: str = "bfloat16"
    causal: bool = True
    alibi: bool = False
    shortest: int | None = None
    packed: int | None = None
    timed: bool = True

    @property
    def key_heads(self) -> int:
        """Key heads; as many as query heads if not given."""
        return self.h if self.k is None else self.k

    def small(self) -> "Workload":
        """The same with a few tokens, to try whether everything runs."""
        t = min(self.t, 64)
        packed = None if self.packed is None else t // 4
        heads = {"h": min(self.h, 4), "k": None if self.k is None else 2}
        return self._replace(b=min(self.b, 4), t=t, packed=packed, timed=True, **heads)

    def lengths(self) -> Int32[np.ndarray, "b"]:
        """Tokens of each row."""
        shortest = self.t if self.shortest is None else self.shortest
        return np.random.default_rng(1).integers(shortest, self.t + 1, self.b).astype(np.int32)

    def segments(self) -> Int32[np.ndarray, "b t"]:
        """The sequence of a row that a token is of."""
        row = np.arange(self.t, dtype=np.int32) // (self.packed or self.t)
        return np.tile(row, (self.b, 1))

    def slopes(self) -> Float32[np.ndarray, "h"]:
        """Of ALiBi (Press et al. 2022, arXiv:2108.12409)."""
        return (2.0 ** (-8.0 * np.arange(1, self.h + 1) / self.h)).astype(np.float32)

    def draw(self) -> list[Float32[np.ndarray, "b t _ d"]]:
        """Queries, keys, values, and gradients of the outputs, which padding has none of.

        Rounded to the dtype, so that every contestant reads the same numbers.
        """
        rng = np.random.default_rng(0)
        found = []
        for heads in (self.h, self.key_heads, self.key_heads, self.h):
            x = rng.standard_normal((self.b, self.t, heads, self.d), np.float32)
            found.append(x.astype(jnp.dtype(self.dtype)).astype(np.float32))
        real = np.arange(self.t) < self.lengths()[:, None]
        found[3] *= real[:, :, None, None]
        return found

    @property
    def pairs(self) -> float:
        """Of queries and keys that meet, over all rows."""
        tokens = self.lengths().astype(float) if self.packed is None else np.full(self.b, 1.0)
        if self.packed is not None:
            sequences, size = self.t // self.packed, float(self.packed)
            each = size * (size + 1) / 2 if self.causal else size**2
            return float(tokens.sum()) * sequences * each
        return float((tokens * (tokens + 1) / 2 if self.causal else tokens**2).sum())

    def operations(self, part: str) -> float:
        """Additions and multiplications of a forward pass, or of `both` it and a backward pass.

        Two products for each pair forwards, five backwards, which computes the logits again.
        """
        return (4 if part == "forward" else 14) * self.pairs * self.h * self.d

    def moved_bytes(self, part: str) -> float:
        """What must be read and written at least.

        Forwards query, key, value and output; backwards the first three once more, the gradient of
        the output, and three gradients.
        """
        size, real = jnp.dtype(self.dtype).itemsize * self.d, float(self.lengths().sum())
        of_queries, of_keys = size * self.h, size * self.key_heads
        forward = real * (of_queries + 2 * of_keys) + self.b * self.t * of_queries
        if part == "forward":
            return forward
        written = self.b * self.t * (of_queries + 2 * of_keys)
        return forward + real * (2 * of_queries + 2 * of_keys) + written

    def exact(self) -> list[np.ndarray]:
        """Output and gradients in float64, of the first row and the heads of its first key head."""
        group = self.h // self.key_heads
        query, key, value, grad = (x[:1] for x in self.draw())
        arrays: dict[str, Any] = {
            "query": query[:, :, :group],
            "key": key[:, :, :1],
            "value": value[:, :, :1],
        }
        if self.alibi:
            arrays["slopes"] = self.slopes()[None, :group]
        if self.shortest is not None:
            arrays["query_lengths"] = arrays["key_lengths"] = self.lengths()[:1]
        if self.packed is not None:
            arrays["query_segments"] = arrays["key_segments"] = self.segments()[:1]
        problem = Problem(names=tuple(arrays), scale=self.d**-0.5, causal=self.causal)
        none = np.zeros((1, group, self.t))
        found = exact(problem, tuple(arrays.values()), grad[:, :, :group], none)
        return [found.out, found.query, found.key, found.value]

    def sample(self, results: list[np.ndarray]) -> list[np.ndarray]:
        """The part of a contestant's output and gradients that `exact` gives."""
        group = self.h // self.key_heads
        heads = (group, group, 1, 1)
        found = [x[:1, :, :n].astype(np.float64) for x, n in zip(results, heads, strict=True)]
        found[0][:, self.lengths()[0] :] = 0.0  # what padding answers is not asked for
        return found


CPU = (
    Workload("causal, 64", 8, 64, 8, 64, dtype="float32"),
    Workload("causal, 256", 8, 256, 8, 64, dtype="float32"),
    Workload("causal, 512", 8, 512, 8, 64, dtype="float32"),
    Workload("causal, 2,048", 8, 2048, 8, 64, dtype="float32"),
    Workload("causal, 4,096", 8, 4096, 8, 64, dtype="float32", timed=False),
    Workload("short sets", 512, 32, 8, 64, dtype="float32", causal=False, shortest=3),
    Workload("ALiBi, 1,024", 2, 1024, 8, 64, dtype="float32", alibi=True),
    Workload("packed 8 x 256", 2, 2048, 8, 64, dtype="float32", packed=256),
)

GPU = (
    Workload("short sets", 8192, 32, 8, 64, causal=False, shortest=3),
    Workload("causal, width 64", 8, 4096, 16, 64),
    Workload("ALiBi", 8, 4096, 16, 64, alibi=True),
    Workload("causal, width 128", 8, 4096, 16, 128),
    Workload("grouped heads, width 128", 2, 4096, 64, 128, k=8),
    Workload("packed 16 x 512", 4, 8192, 16, 64, packed=512),
    Workload("ALiBi, 32,768", 1, 32768, 16, 64, alibi=True, timed=False),
)

OF_DEVICE = {"cpu": CPU, "gpu": GPU}
