"""A language model small enough for brute force, with parameters that numpy draws."""

from drawn_parameters import draw_parameters

from recipe_jax.layers.positions import Rope
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig

VOCAB_SIZE = 13


def tiny_config(*, tied: bool = False, positions=Rope(), **shape) -> CausalLanguageModelConfig:  # noqa: B008
    given = {"num_layers": 2, "embed_dim": 12, "num_heads": 6, "num_kv_heads": 2, "mlp_dim": 20}
    transformer = TransformerConfig(**given | {"activation": "swiglu", "head_dim": 4} | shape)
    return CausalLanguageModelConfig(
        vocab_size=VOCAB_SIZE,
        transformer=transformer,
        positions=positions,
        max_positions=40,
        tied=tied,
    )


def tiny_model(cfg: CausalLanguageModelConfig | None = None, *, seed: int = 0, **options):
    """Pure function and parameters; of large deviation, so that no two logits are alike."""
    cfg = tiny_config() if cfg is None else cfg
    return draw_parameters(lambda rngs: CausalLanguageModel(cfg, rngs=rngs, **options), seed=seed)
