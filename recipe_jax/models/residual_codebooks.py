"""Codebooks of a residual quantizer as a module: vectors to codes and back."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from recipe_jax.layers.initializers import normal
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.residual_quantizer import Quantized, residual_quantize, sum_codewords


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualCodebooksConfig:
    """Shape of the codebooks.

    Attributes:
        in_dim: width of what is quantized.
        num_levels: codes of a vector.
        num_codes: codewords of each level.
    """

    in_dim: int
    num_levels: int = 3
    num_codes: int = 256

    def __post_init__(self) -> None:
        for name in ("in_dim", "num_levels", "num_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class ResidualCodebooks(nnx.Module):
    """One codebook for each level; each quantizes what the levels before it left over.

    Args:
        cfg: its shape.
        rngs: what the initial codewords are drawn from; k-means gives better ones.
    """

    def __init__(self, cfg: ResidualCodebooksConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.codewords = parameter(
            rngs.params(),
            (cfg.num_levels, cfg.num_codes, cfg.in_dim),
            ("levels", "codes", None),
            normal(cfg.in_dim**-0.5),
        )

    def quantize(self, vectors: Float[Array, "b z"]) -> Quantized:
        """`residual_quantize` by these codebooks."""
        return residual_quantize(vectors, self.codewords[...])

    def encode(self, vectors: Float[Array, "b z"]) -> Int32[Array, "b q"]:
        """The codes of each row."""
        return self.quantize(vectors).codes

    def decode(self, codes: Int[Array, "b q"]) -> Float32[Array, "b z"]:
        """The vectors that codes stand for: the sum of their codewords."""
        return sum_codewords(codes, self.codewords[...])
