"""Where a token stands: values that add to embeddings, rotate heads or bias logits.

Every value has the same three methods, of which most do nothing: `encode` changes embeddings,
`rotate` changes query and key heads, `slopes` gives ALiBi's slopes.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


def sinusoidal_table(
    indices: Int[Array, "b t"], embed_dim: int, *, base: float = 10_000.0
) -> Float32[Array, "b t {embed_dim}"]:
    """Sines in even columns, cosines in odd ones (Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5).

    Args:
        indices: positions, counted from 0.
        embed_dim: number of columns.
        base: wavelengths grow from `2 pi` to about `2 pi base`.

    Raises:
        ValueError: if `embed_dim` is odd.
    """
    _check_even("embed_dim", embed_dim)
    angles = _angles(indices, rotary_frequencies(embed_dim, base=base))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*indices.shape, embed_dim)


def rotary_frequencies(head_dim: int, *, base: float = 10_000.0) -> Float32[Array, "half"]:
    """Radians per position of each pair, `base ** (-2 i / head_dim)` (arXiv:2104.09864, eq. 15)."""
    _check_even("head_dim", head_dim)
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return jnp.asarray(base**-exponents, jnp.float32)


def rotate(
    heads: Float[Array, "b t h d"],
    indices: Int[Array, "#b t"],
    frequencies: Float[Array, "half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "b t h d"]:
    """Turn pairs of features by an angle proportional to the position (arXiv:2104.09864, eq. 34).

    The scalar product of two heads so rotated depends on the distance of their positions only.

    Args:
        heads: query or key heads; the result has their dtype, angles are float32.
        indices: position of each token.
        frequencies: radians per position, one per pair.
        interleaved: pairs are features `(2 i, 2 i + 1)` as in the paper and in llama2.c, else
            `(i, i + d / 2)` as in GPT-NeoX and the transformers library.
    """
    angles = _angles(indices, frequencies)[:, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    wide = heads.astype(jnp.float32)
    if interleaved:
        first, second = wide[..., 0::2], wide[..., 1::2]
    else:
        first, second = jnp.split(wide, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        rotated = jnp.stack(turned, axis=-1).reshape(heads.shape)
    else:
        rotated = jnp.concatenate(turned, axis=-1)
    return rotated.astype(heads.dtype)


def alibi_slopes(num_heads: int) -> Float32[Array, "h"]:
    """Slopes of attention with linear biases (Press et al. 2022, arXiv:2108.12409, section 3).

    For a power of two they are `2 ** (-8 i / h)`, `i = 1 … h`.  Otherwise, as in the authors' code,
    the slopes of the next lower power of two are followed by every other slope of the next higher.
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    lower = 2 ** int(math.log2(num_heads))
    slopes = geometric(lower) + geometric(2 * lower)[0::2][: num_heads - lower]
    return jnp.asarray(slopes, jnp.float32)


def alibi_bias(
    slopes: Float[Array, "h"], query_indices: Int[Array, "#b t"], key_indices: Int[Array, "#b s"]
) -> Float32[Array, "#b h t s"]:
    """What ALiBi adds to the logits: `-slope |i - j|`, the same into the past and the future.

    Under a causal mask this is the paper's bias; without one it is the symmetric form.
    """
    distance = jnp.abs(query_indices[:, None, :, None] - key_indices[:, None, None, :])
    return -slopes.astype(jnp.float32).reshape(1, -1, 1, 1) * distance.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class NoPositions:
    """Order means nothing: the model reads a set.  Also the interface of the other values."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the learned table that `encode` needs; 0 for none."""
        return 0

    def encode(
        self,
        embeddings: Float[Array, "b t e"],
        indices: Int[Array, "#b t"],
        table: Float[Array, "n e"] | None = None,
    ) -> Float[Array, "b t e"]:
        """Embeddings with their positions added."""
        del indices, table
        return embeddings

    def rotate(
        self, heads: Float[Array, "b t h d"], indices: Int[Array, "#b t"]
    ) -> Float[Array, "b t h d"]:
        """Query or key heads turned by their positions."""
        del indices
        return heads

    def slopes(self, num_heads: int) -> Float32[Array, "h"] | None:
        """Slopes of the linear bias, or None."""
        del num_heads
        return None


@dataclasses.dataclass(frozen=True)
class Sinusoidal(NoPositions):
    """Fixed sines and cosines added to the embeddings; see `sinusoidal_table`."""

    base: float = 10_000.0

    def encode(
        self,
        embeddings: Float[Array, "b t e"],
        indices: Int[Array, "#b t"],
        table: Float[Array, "n e"] | None = None,
    ) -> Float[Array, "b t e"]:
        """Embeddings with their positions added."""
        del table
        encoding = sinusoidal_table(indices, embeddings.shape[-1], base=self.base)
        return embeddings + encoding.astype(embeddings.dtype)


@dataclasses.dataclass(frozen=True)
class Learned(NoPositions):
    """One learned vector per position, added to the embeddings (Gehring et al. 2017).

    Attributes:
        max_positions: rows of the table; a position beyond it is an error of the caller's, since
            under jit it reads the last row.
    """

    max_positions: int

    def __post_init__(self) -> None:
        if self.max_positions < 1:
            raise ValueError(f"max_positions={self.max_positions} must be at least 1")

    @property
    def num_embeddings(self) -> int:
        """Rows of the learned table."""
        return self.max_positions

    def encode(
        self,
        embeddings: Float[Array, "b t e"],
        indices: Int[Array, "#b t"],
        table: Float[Array, "n e"] | None = None,
    ) -> Float[Array, "b t e"]:
        """Embeddings with their positions added.

        Raises:
            ValueError: without a table, or if there are more tokens than rows.
        """
        if table is None:
            raise ValueError("Learned positions need their table: encode(…, table=…)")
        if indices.shape[1] > self.max_positions:
            raise ValueError(f"{indices.shape[1]} tokens exceed max_positions={self.max_positions}")
        return embeddings + table[indices].astype(embeddings.dtype)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def scale(self, frequencies: Float32[Array, "half"]) -> Float32[Array, "half"]:
        """Frequencies for the longer context."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by a factor, short ones kept, those between blended (Llama 3.1).

    Attributes:
        factor: by how much the longest wavelengths grow.
        low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are scaled.
        high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are kept.
        original_max_positions: context length of the model before scaling.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}"
            )

    def scale(self, frequencies: Float32[Array, "half"]) -> Float32[Array, "half"]:
        """Frequencies for the longer context."""
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class Rope(NoPositions):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864); see `rotate`.

    Attributes:
        base: the slowest pair turns about once in `2 pi base` positions.
        scaling: stretches the context beyond that of training; None leaves it.
        interleaved: which features form a pair.
    """

    base: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None
    interleaved: bool = False

    def rotate(
        self, heads: Float[Array, "b t h d"], indices: Int[Array, "#b t"]
    ) -> Float[Array, "b t h d"]:
        """Query or key heads turned by their positions."""
        frequencies = rotary_frequencies(heads.shape[-1], base=self.base)
        if self.scaling is not None:
            frequencies = self.scaling.scale(frequencies)
        return rotate(heads, indices, frequencies, interleaved=self.interleaved)


@dataclasses.dataclass(frozen=True)
class Alibi(NoPositions):
    """Logits that fall linearly with distance (Press et al. 2022, arXiv:2108.12409)."""

    def slopes(self, num_heads: int) -> Float32[Array, "h"] | None:
        """Slopes of the linear bias."""
        return alibi_slopes(num_heads)


def _angles(
    indices: Int[Array, "b t"], frequencies: Float[Array, "half"]
) -> Float32[Array, "b t half"]:
    return indices.astype(jnp.float32)[:, :, None] * frequencies.reshape(1, 1, -1)


def _check_even(name: str, value: int) -> None:
    if value % 2:
        raise ValueError(f"{name}={value} must be even: features turn in pairs")
