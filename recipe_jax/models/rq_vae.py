"""RQ-VAE: an autoencoder whose latents are quantized level by level.

Lee et al. 2022 (arXiv:2203.01941) for images; Rajput et al. 2023 (TIGER, arXiv:2305.05065, section
3.1) for the vectors of a catalogue, as here.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from recipe_jax.layers.feed_forward import Activation
from recipe_jax.layers.residual_quantizer import (
    GradientRule,
    Quantized,
    codebook_loss,
    commitment_loss,
    straight_through,
)
from recipe_jax.models.feed_forward_network import FeedForwardNetwork, FeedForwardNetworkConfig
from recipe_jax.models.residual_codebooks import ResidualCodebooks, ResidualCodebooksConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RqVaeConfig:
    """Shape of an RQ-VAE.

    Attributes:
        in_dim: width of the vectors.
        latent_dim: width of what is quantized.
        hidden_dims: widths of the encoder's hidden layers; the decoder has them in reverse.
        num_levels: codes of a vector.
        num_codes: codewords of each level.
        activation: of hidden layers.
    """

    in_dim: int
    latent_dim: int = 32
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    num_levels: int = 3
    num_codes: int = 256
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim={self.latent_dim} must be at least 1")
        _ = self.encoder, self.codebooks  # refuse what they refuse

    @property
    def encoder(self) -> FeedForwardNetworkConfig:
        """From vectors to latents."""
        return FeedForwardNetworkConfig(
            in_dim=self.in_dim,
            out_dim=self.latent_dim,
            hidden_dims=self.hidden_dims,
            activation=self.activation,
        )

    @property
    def codebooks(self) -> ResidualCodebooksConfig:
        """Of the latents."""
        return ResidualCodebooksConfig(
            in_dim=self.latent_dim, num_levels=self.num_levels, num_codes=self.num_codes
        )

    @property
    def decoder(self) -> FeedForwardNetworkConfig:
        """From quantized latents to vectors."""
        return dataclasses.replace(
            self.encoder,
            in_dim=self.latent_dim,
            out_dim=self.in_dim,
            hidden_dims=self.hidden_dims[::-1],
        )


class RqVae(nnx.Module):
    """Encoder, codebooks and decoder.

    Args:
        cfg: its shape.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, cfg: RqVaeConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = FeedForwardNetwork(cfg.encoder, rngs=rngs)
        self.codebooks = ResidualCodebooks(cfg.codebooks, rngs=rngs)
        self.decoder = FeedForwardNetwork(cfg.decoder, rngs=rngs)

    @property
    def codewords(self) -> Float32[Array, "q c z"]:
        """Of every level."""
        return self.codebooks.codewords[...]

    def latents(self, vectors: Float[Array, "b d"]) -> Float32[Array, "b z"]:
        """What is quantized."""
        return self.encoder(vectors).astype(jnp.float32)

    def quantize(self, vectors: Float[Array, "b d"]) -> Quantized:
        """Latents, quantized."""
        return self.codebooks.quantize(self.latents(vectors))

    def encode(self, vectors: Float[Array, "b d"]) -> Int32[Array, "b q"]:
        """The codes of each row."""
        return self.quantize(vectors).codes

    def decode(self, codes: Int[Array, "b q"]) -> Float32[Array, "b d"]:
        """The vectors that codes stand for."""
        return self.decoder(self.codebooks.decode(codes)).astype(jnp.float32)


class RqVaeTerms(NamedTuple):
    """Per-example loss terms, each a squared length.

    Attributes:
        reconstruction: of what the decoder gets wrong.
        commitment: of what each level leaves over, summed; draws latents to codewords.
        codebook: the same number; draws codewords to latents, and has no other gradient.
    """

    reconstruction: Float32[Array, "b"]
    commitment: Float32[Array, "b"]
    codebook: Float32[Array, "b"]


def rq_vae_loss(
    model: RqVae, vectors: Float[Array, "b d"], *, gradient: GradientRule = straight_through
) -> tuple[RqVaeTerms, Quantized]:
    """The terms of arXiv:2305.05065, section 3.1, and the codes and residuals they come from.

    The paper's loss is `reconstruction + codebook + 0.25 commitment`; where codebooks are running
    means, `codebook` is left out.  Quantized latents as a whole, not level by level, take the
    gradient rule: with a rule for each level, latents would get their gradient `q` times.

    Args:
        model: the RQ-VAE.
        vectors: rows to reconstruct.
        gradient: how the reconstruction reaches the encoder, such as `rotation_trick`.
    """
    latents = model.latents(vectors)
    quantized = model.codebooks.quantize(latents)
    decoded = model.decoder(gradient(latents, quantized.vectors)).astype(jnp.float32)
    terms = RqVaeTerms(
        reconstruction=jnp.sum(jnp.square(decoded - vectors.astype(jnp.float32)), axis=-1),
        commitment=commitment_loss(quantized.residuals, quantized.codewords),
        codebook=codebook_loss(quantized.residuals, quantized.codewords),
    )
    return terms, quantized
