"""Set transformers put together from torch's attention, norms and linear maps."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights as tw
from torch_weights import assert_parity, built, normal, padding, part, randomized

from recipe_jax.layers.set_transformer import (
    AttentionPooling,
    InducedSetAttentionBlock,
    MultiheadAttentionBlock,
    SetAttentionBlock,
    SetConfig,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
nn = torch.nn

B, T, S, E, H, M = 2, 5, 6, 12, 3, 20
X, LENGTHS = normal(0, B, S, E), np.array([6, 2], np.int32)


class TorchMultiheadAttentionBlock(nn.Module):
    """MAB(X, Y) of arXiv:1810.00825, eq. 6 and 7, in parts of torch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(E, H, batch_first=True)
        self.first_norm, self.second_norm = nn.LayerNorm(E, 1e-6), nn.LayerNorm(E, 1e-6)
        self.rows = their_rows()

    def forward(self, x, y, hidden=None):
        attended, _ = self.attention(x, y, y, key_padding_mask=hidden)
        x = self.first_norm(x + attended)
        return self.second_norm(x + self.rows(x))


def their_rows():
    return nn.Sequential(nn.Linear(E, M), nn.ReLU(), nn.Linear(M, E))


def rows_params(arrays):
    return {"up": tw.linear(part(arrays, "0")), "down": tw.linear(part(arrays, "2"))}


def set_block_params(arrays):
    return {
        "attention": tw.multihead_attention(part(arrays, "attention"), H),
        "attention_norm": tw.norm(part(arrays, "first_norm")),
        "feed_forward": rows_params(part(arrays, "rows")),
        "feed_forward_norm": tw.norm(part(arrays, "second_norm")),
    }


class TorchSetTransformer(nn.Module):
    """SAB, ISAB and PMA one after the other: eq. 8 to 11."""

    def __init__(self):
        super().__init__()
        self.members = TorchMultiheadAttentionBlock()
        self.points, self.seeds = nn.Parameter(torch.zeros(4, E)), nn.Parameter(torch.zeros(2, E))
        self.gather, self.spread = TorchMultiheadAttentionBlock(), TorchMultiheadAttentionBlock()
        self.rows, self.pool = their_rows(), TorchMultiheadAttentionBlock()

    def forward(self, x, hidden):
        x = self.members(x, x, hidden)
        x = self.spread(x, self.gather(self.points.expand(B, -1, -1), x, hidden))
        return self.pool(self.seeds.expand(B, -1, -1), self.rows(x), hidden)


SET = SetConfig(embed_dim=E, num_heads=H, mlp_dim=M)


def test_multihead_attention_block():
    fn = built(lambda rngs: MultiheadAttentionBlock(SET, rngs=rngs))
    theirs = randomized(TorchMultiheadAttentionBlock())
    assert_parity(
        lambda params, x, y: fn.bind(params)(x, y),
        theirs,
        normal(1, B, T, E),
        X,
        convert=set_block_params,
    )


def test_set_transformer_of_padded_sets():
    sab = built(lambda rngs: SetAttentionBlock(SET, rngs=rngs))
    isab = built(lambda rngs: InducedSetAttentionBlock(SET, 4, rngs=rngs))
    pma = built(lambda rngs: AttentionPooling(SET, 2, rngs=rngs))
    theirs = randomized(TorchSetTransformer())
    hidden, lengths = padding(LENGTHS, S), jnp.asarray(LENGTHS)

    def ours(params, x):
        for fn, name in ((sab, "sab"), (isab, "isab"), (pma, "pma")):
            x = fn.bind(params[name])(x, lengths=lengths)
        return x

    def convert(arrays):
        found = {
            name: set_block_params(part(arrays, name))
            for name in ("members", "gather", "spread", "pool")
        }
        return {
            "sab": {"block": found["members"]},
            "isab": {
                "points": arrays["points"],
                "gather": found["gather"],
                "spread": found["spread"],
            },
            "pma": {
                "seeds": arrays["seeds"],
                "feed_forward": rows_params(part(arrays, "rows")),
                "block": found["pool"],
            },
        }

    assert_parity(ours, lambda x: theirs(x, hidden), X, module=theirs, convert=convert)
