"""What a quantizer is, and the quantizers that a model makes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from recipe_jax.batches import AnyArray
from recipe_jax.functional import Params, PureModule
from recipe_jax.models.residual_codebooks import ResidualCodebooks, ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig

ScalingName: TypeAlias = Literal["none", "centre", "columns"]

ROWS_AT_ONCE = 1024
"""Rows that are encoded or decoded together; fewer are filled up.

One program for any number of rows: the codes of a row do not depend on what else is encoded.
"""


class Quantizer(Protocol):
    """Vectors to a few codes each, and back to what the codes stand for."""

    @property
    def in_dim(self) -> int:
        """Width of the vectors."""
        ...

    @property
    def num_levels(self) -> int:
        """Codes of a vector, the coarsest first."""
        ...

    @property
    def num_codes(self) -> int:
        """Each code is from 0 to below this."""
        ...

    def encode(self, vectors: Float[np.ndarray, "n d"]) -> Int32[np.ndarray, "n q"]:
        """The codes of each row."""
        ...

    def decode(self, codes: Int[np.ndarray, "n q"]) -> Float32[np.ndarray, "n d"]:
        """The vectors that codes stand for."""
        ...


class Scaling(NamedTuple):
    """What is subtracted from each column of the vectors, and then divides it.

    Attributes:
        mean: subtracted.
        deviation: divides; 1 where a column does not vary.
    """

    mean: Float32[AnyArray, "d"]
    deviation: Float32[AnyArray, "d"]


def fit_scaling(vectors: Float[np.ndarray, "n d"], name: ScalingName) -> Scaling:
    """The scaling of a catalogue.

    Args:
        vectors: all of it.
        name: `none` leaves vectors alone; `centre` subtracts the mean and divides all columns by
            one number, after which the mean squared length is the width; `columns` gives every
            column variance 1, which whitens vectors whose columns are uncorrelated, such as those
            of a singular value decomposition.

    Raises:
        ValueError: another name.
    """
    width = vectors.shape[1]
    if name == "none":
        return Scaling(np.zeros(width, np.float32), np.ones(width, np.float32))
    mean = vectors.mean(axis=0, dtype=np.float64)
    variance = np.square(vectors - mean).mean(axis=0)
    if name == "centre":
        variance = np.full(width, variance.mean())
    elif name != "columns":
        raise ValueError(f'scaling={name!r} must be "none", "centre" or "columns"')
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    return Scaling(mean.astype(np.float32), deviation.astype(np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelQuantizer:
    """A quantizer made of a model with `encode` and `decode`, and of the scaling of its input.

    Attributes:
        cfg: the model's configuration.
        fn: its pure function.
        params: its parameters.
        scaling: of the vectors, before the model sees them.
    """

    cfg: RqVaeConfig | ResidualCodebooksConfig
    fn: PureModule[RqVae] | PureModule[ResidualCodebooks]
    params: Params
    scaling: Scaling

    @property
    def in_dim(self) -> int:
        """Width of the vectors."""
        return self.cfg.in_dim

    @property
    def num_levels(self) -> int:
        """Codes of a vector."""
        return self.cfg.num_levels

    @property
    def num_codes(self) -> int:
        """Codewords of each level."""
        return self.cfg.num_codes

    def encode(self, vectors: Float[np.ndarray, "n d"]) -> Int32[np.ndarray, "n q"]:
        """The codes of each row; memory beside them does not grow with `n`.

        Raises:
            ValueError: rows of another width, or one that is not finite.
        """
        return self.encode_with_rest(vectors)[0]

    def encode_with_rest(
        self, vectors: Float[np.ndarray, "n d"]
    ) -> tuple[Int32[np.ndarray, "n q"], Float32[np.ndarray, "n z"]]:
        """The codes of each row, and what the last level was given: its code is the nearest.

        Raises:
            ValueError: as for `encode`.
        """
        check_vectors(vectors, self.in_dim)
        found = _in_parts(
            lambda part: _encode(self.fn, self.params, self.scaling, part),
            vectors.astype(np.float32, copy=False),
        )
        codes = np.zeros((0, self.num_levels), np.int32)
        rest = np.zeros((0, self.last_codebook.shape[1]), np.float32)
        return (
            np.concatenate([codes, *(part[0] for part in found)]),
            np.concatenate([rest, *(part[1] for part in found)]),
        )

    @property
    def last_codebook(self) -> Float32[np.ndarray, "c z"]:
        """Codewords of the last level."""
        return np.asarray(self.fn.bind(self.params).codewords[-1])

    def decode(self, codes: Int[np.ndarray, "n q"]) -> Float32[np.ndarray, "n d"]:
        """The vectors that codes stand for.

        Raises:
            ValueError: another number of codes, or a code that does not exist.
        """
        check_codes(codes, num_levels=self.num_levels, num_codes=self.num_codes)
        found = _in_parts(
            lambda part: _decode(self.fn, self.params, self.scaling, part),
            codes.astype(np.int32, copy=False),
        )
        nothing = np.zeros((0, self.in_dim), np.float32)
        return np.concatenate([nothing, *(part for (part,) in found)])


def check_vectors(vectors: Float[np.ndarray, "n d"], in_dim: int) -> None:
    """Refuse rows of another width than the quantizer's, or that are not finite.

    Raises:
        ValueError: names the first such row, counted from 0.
    """
    if vectors.shape[1] != in_dim:
        raise ValueError(
            f"vectors are {vectors.shape[1]} wide, the quantizer takes in_dim={in_dim}"
        )
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        raise ValueError(f"row {row} of the vectors holds a value that is not finite")


def check_codes(codes: Int[np.ndarray, "n q"], *, num_levels: int, num_codes: int) -> None:
    """Refuse codes that do not exist.

    Raises:
        ValueError: names the first such row, counted from 0, and the code.
    """
    if codes.shape[1] != num_levels:
        raise ValueError(f"{codes.shape[1]} codes a row, the quantizer has num_levels={num_levels}")
    outside = (codes < 0) | (codes >= num_codes)
    if outside.any():
        row, level = np.argwhere(outside)[0]
        raise ValueError(
            f"row {row}, level {level}: code {codes[row, level]} must be from 0 to {num_codes - 1}"
        )


def _in_parts(
    apply: Callable[[np.ndarray], tuple[Array, ...]], rows: np.ndarray
) -> list[tuple[np.ndarray, ...]]:
    found = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        filled = np.zeros((ROWS_AT_ONCE, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        found.append(tuple(np.asarray(result)[: len(part)] for result in apply(filled)))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    fn: PureModule[Any], params: Params, scaling: Scaling, vectors: Float32[Array, "b d"]
) -> tuple[Int32[Array, "b q"], Float32[Array, "b z"]]:
    scaled = (vectors - scaling.mean[None, :]) / scaling.deviation[None, :]
    quantized = fn.bind(params).quantize(scaled)
    return quantized.codes, quantized.residuals[:, -1]


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    fn: PureModule[Any], params: Params, scaling: Scaling, codes: Int32[Array, "b q"]
) -> tuple[Float32[Array, "b d"]]:
    decoded = fn.bind(params).decode(codes)
    return (decoded * scaling.deviation[None, :] + scaling.mean[None, :],)
