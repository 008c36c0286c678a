"""The ingredient generator in plain PyTorch, for comparison; needs the extra `[parity]`.

The same maths as `recipe_jax.models.ingredient_generator`, written as PyTorch users write it: fused
query-key-value projection, `scaled_dot_product_attention`, `nn.RMSNorm`, `nn.GELU`, `nn.Dropout`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from recipe_jax.batches import Molecules
from recipe_jax.models.ingredient_generator import GeneratorConfig


class TorchFoodEmbedding(nn.Module):
    """The vectors of all foods; see `FoodEmbedding`, here with all three of its sources."""

    composition: Tensor
    flavour_share: Tensor
    has_flavour: Tensor

    def __init__(self, cfg: GeneratorConfig, molecules: Molecules):
        super().__init__()
        v, e = cfg.embedding.num_foods, cfg.embedding.embed_dim
        known = np.concatenate([molecules.composition, molecules.observed], axis=-1)
        count = np.maximum(molecules.flavour.sum(axis=-1, keepdims=True), 1.0)
        share = molecules.flavour / np.sqrt(count)
        self.register_buffer("composition", torch.tensor(known), persistent=False)
        self.register_buffer("flavour_share", torch.tensor(share), persistent=False)
        has_flavour = torch.tensor(molecules.has_flavour)[:, None]
        self.register_buffer("has_flavour", has_flavour, persistent=False)
        self.project_composition = nn.Linear(known.shape[1], e, bias=False)
        self.project_flavour = nn.Linear(share.shape[1], e, bias=False)
        self.no_flavour = nn.Parameter(torch.zeros(e))
        self.learned = nn.Parameter(torch.zeros(v, e))

    def forward(self) -> Tensor:
        """The table, of foods by width."""
        flavour = self.has_flavour * self.project_flavour(self.flavour_share)
        flavour = flavour + (1.0 - self.has_flavour) * self.no_flavour
        scale = self.learned.shape[-1] ** 0.5
        table = self.project_composition(self.composition) + scale * (flavour + self.learned)
        return table * 3**-0.5


class TorchBlock(nn.Module):
    """Self-attention and feed-forward, each normalized first and dropped out before its sum."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(embed_dim, eps=1e-6)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.output = nn.Linear(embed_dim, embed_dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(embed_dim, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim, bias=False),
            nn.GELU(),
            nn.Linear(4 * embed_dim, embed_dim, bias=False),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `b t e`."""
        b, t, e = x.shape
        heads = self.query_key_value(self.attention_norm(x)).view(b, t, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(b, t, e)
        x = x + self.dropout(self.output(attended))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class TorchGenerator(nn.Module):
    """Logits of the next food after every prefix; see `IngredientGenerator`.

    Args:
        cfg: its shape; all sources of the embedding, GELU, RMS norm before each sublayer, no bias.
        molecules: of the foods.
    """

    def __init__(self, cfg: GeneratorConfig, molecules: Molecules):
        super().__init__()
        shape, e = cfg.transformer, cfg.transformer.embed_dim
        self.embedding = TorchFoodEmbedding(cfg, molecules)
        self.start = nn.Parameter(torch.zeros(e))
        self.end = nn.Parameter(torch.zeros(e))
        self.blocks = nn.ModuleList(
            TorchBlock(e, shape.num_heads, shape.dropout_rate) for _ in range(shape.num_layers)
        )
        self.final_norm = nn.RMSNorm(e, eps=1e-6)
        self.output = nn.Linear(e, e, bias=False)
        v = cfg.embedding.num_foods
        self.bias = nn.Parameter(torch.zeros(v + 1))
        self.pairs = nn.Parameter(torch.zeros(v, v + 1)) if cfg.pairs else None

    def forward(self, foods: Tensor) -> Tensor:
        """Logits `b (m + 1) (v + 1)` of foods `b m`, padded with `v`."""
        targets = torch.cat([self.embedding(), self.end[None]])
        start = self.start.expand(foods.shape[0], 1, -1)
        x = torch.cat([start, F.embedding(foods, targets)], dim=1)
        for block in self.blocks:
            x = block(x)
        queries = self.output(self.final_norm(x)) * targets.shape[-1] ** -0.5
        logits = F.linear(queries, targets, self.bias)
        if self.pairs is None:
            return logits
        # Rows of the foods read so far; padding adds nothing.
        rows = F.embedding(foods, F.pad(self.pairs, (0, 0, 0, 1)))
        return logits + F.pad(rows.cumsum(dim=1), (0, 0, 1, 0))


def remaining_set_nats(logits: Tensor, foods: Tensor, lengths: Tensor) -> Tensor:
    """Nats per choice, averaged over the batch; see `remaining_set_loss`.

    Foods are gathered rather than compared with the whole vocabulary: the fastest way found here.
    """
    (b, m), v = foods.shape, logits.shape[-1] - 1
    place = torch.arange(m + 1)
    # The turn at which a food is read; foods that are never read, and the end, come after all.
    turn = torch.full((b, v + 1), m + 1)
    turn.scatter_(1, foods, place[:m].expand(b, m))
    turn[:, v] = m + 1
    chosen = turn[:, None, :] < place[:, None]
    normalizer = logits.masked_fill(chosen, float("-inf")).logsumexp(dim=-1)
    still_to_come = (place[:m] >= place[:, None]) & (place[:m] < lengths[:, None, None])
    remaining = (lengths[:, None] - place).clamp(min=1)
    candidates = logits.gather(2, foods[:, None, :].expand(b, m + 1, m))
    picked = torch.where(still_to_come, candidates, 0.0).sum(dim=-1) / remaining
    picked = torch.where(place == lengths[:, None], logits[..., v], picked)
    nats = torch.where(place <= lengths[:, None], normalizer - picked, 0.0)
    return nats.sum() / (lengths + 1).sum()


def to_torch_layout(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters (or gradients) of an `IngredientGenerator` as a state dict of `TorchGenerator`.

    Linear weights are `[out, in]` there, and each block has its own.
    """
    e = params["output"].shape[0]

    def linear(kernel: Any) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(kernel).T)

    embedding, blocks = params["embedding"], params["stack"]["blocks"]
    named = {
        "embedding.project_composition.weight": linear(embedding["composition"]),
        "embedding.project_flavour.weight": linear(embedding["flavour"]),
        "embedding.no_flavour": np.asarray(embedding["no_flavour"]),
        "embedding.learned": np.asarray(embedding["learned"]),
        "start": np.asarray(params["start"]),
        "end": np.asarray(params["end"]),
        "final_norm.weight": np.asarray(params["stack"]["final_norm"]["scale"]),
        "output.weight": linear(params["output"]),
        "bias": np.asarray(params["bias"]),
    }
    if "pairs" in embedding:
        named["pairs"] = np.asarray(embedding["pairs"])
    attention, feed_forward = blocks["attention"], blocks["feed_forward"]
    for i in range(attention["query"].shape[0]):
        heads = [np.asarray(attention[name][i]).reshape(e, -1) for name in _PROJECTIONS]
        named |= {
            f"blocks.{i}.attention_norm.weight": np.asarray(blocks["attention_norm"]["scale"][i]),
            f"blocks.{i}.query_key_value.weight": linear(np.concatenate(heads, axis=1)),
            f"blocks.{i}.output.weight": linear(attention["output"][i].reshape(-1, e)),
            f"blocks.{i}.feed_forward_norm.weight": np.asarray(
                blocks["feed_forward_norm"]["scale"][i]
            ),
            f"blocks.{i}.feed_forward.0.weight": linear(feed_forward["up"]["kernel"][i]),
            f"blocks.{i}.feed_forward.2.weight": linear(feed_forward["down"]["kernel"][i]),
        }
    return named


_PROJECTIONS = ("query", "key", "value")


def torch_generator(
    cfg: GeneratorConfig, molecules: Molecules, params: Mapping[str, Any]
) -> TorchGenerator:
    """The torch model with the parameters of ours."""
    model = TorchGenerator(cfg, molecules)
    layout = to_torch_layout(params)
    model.load_state_dict({name: torch.tensor(value) for name, value in layout.items()})
    return model
