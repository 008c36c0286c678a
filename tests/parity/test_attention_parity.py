"""Attention of torch and of transformers: the formula, its masks, and the modules around it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights as tw
from torch_weights import assert_parity, built, normal, padding, part, randomized

from recipe_jax.layers.attention import Attention, AttentionConfig, dot_product_attention
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import Alibi, Rope

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

B, T, S, H, D, E = 2, 6, 8, 6, 4, 24
QUERY, KEY, VALUE = normal(0, B, T, H, D), normal(1, B, S, H, D), normal(2, B, S, H, D)
BIAS = normal(3, B, H, T, S)
X, CONTEXT = normal(4, B, T, E), normal(5, B, S, 10)
LENGTHS = np.array([3, 6], np.int32)
CAUSAL = Mask(causal=True)


def scaled_dot_product(query, key, value, attn_mask=None, **options):
    heads = (x.transpose(1, 2) for x in (query, key, value))
    function = torch.nn.functional.scaled_dot_product_attention
    return function(*heads, attn_mask, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [H, 3, 1])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"mask": CAUSAL}, {"is_causal": True}),
        ({"scale": 0.9}, {"scale": 0.9}),
    ],
    ids=["plain", "causal", "scale"],
)
def test_formula(kv_heads, ours, theirs):
    assert_parity(
        lambda _, *heads: dot_product_attention(*heads, **ours),
        lambda *heads: scaled_dot_product(*heads, **theirs),
        QUERY,
        KEY[:, :, :kv_heads],
        VALUE[:, :, :kv_heads],
    )


@pytest.mark.parametrize("bias", [BIAS, BIAS[:1], BIAS[:, :1]], ids=["full", "heads", "rows"])
def test_bias_is_added_to_scaled_logits_and_has_a_gradient(bias):
    hidden = normal(6, B, 1, T, S) > 0.3
    hidden[..., 0] = False

    def theirs(query, key, value, bias):
        bias = bias.masked_fill(torch.tensor(hidden), -torch.inf)
        return scaled_dot_product(query, key, value, bias)

    assert_parity(
        lambda _, q, k, v, bias: dot_product_attention(
            q, k, v, bias=bias, mask=Mask(dense=jnp.asarray(~hidden))
        ),
        theirs,
        QUERY,
        KEY,
        VALUE,
        bias,
    )


def allowed_by(name: str):
    """The conditions of transformers and the masks that should be these."""
    from transformers import masking_utils as conditions

    lengths = torch.tensor(LENGTHS)
    segments = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 3, 3, 0]])
    packed = Mask(query_segments=jnp.asarray(segments), key_segments=jnp.asarray(segments))
    real = conditions.padding_mask_function(~padding(LENGTHS, T))
    dense = normal(7, B, H, T, T) > -0.5
    causal, both = conditions.causal_mask_function, conditions.and_masks
    mask, condition = {
        "window": (Mask(window=3), conditions.sliding_window_bidirectional_mask_function(2)),
        "causal window": (
            Mask(causal=True, window=3),
            conditions.sliding_window_causal_mask_function(3),
        ),
        "prefix": (
            Mask(causal=True, prefix_lengths=jnp.asarray(LENGTHS)),
            conditions.or_masks(causal, lambda b, h, i, j: j < lengths[b]),
        ),
        "packed": (packed, conditions.packed_sequence_mask_function(segments)),
        "packed causal": (
            CAUSAL & packed,
            both(causal, conditions.packed_sequence_mask_function(segments)),
        ),
        "padded": (Mask(key_lengths=jnp.asarray(LENGTHS)), real),
        "padded causal": (CAUSAL & Mask(key_lengths=jnp.asarray(LENGTHS)), both(causal, real)),
        "rows that read nothing": (
            Mask(causal=True, query_lengths=jnp.asarray(LENGTHS)),
            both(causal, lambda b, h, i, j: i < lengths[b]),
        ),
        "any": (Mask(dense=jnp.asarray(dense)), lambda *places: torch.tensor(dense)[places]),
    }[name]
    sizes = (B, H, T, T)
    places = (
        torch.arange(n).view([-1 if i == k else 1 for i in range(4)]) for k, n in enumerate(sizes)
    )
    return mask, condition(*places).expand(sizes)


MASKS = ["window", "causal window", "prefix", "packed", "packed causal", "padded"]
MASKS += ["padded causal", "rows that read nothing", "any"]


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_conditions_of_transformers(name):
    """A row without keys is zero in both, and so are its gradients."""
    mask, allowed = allowed_by(name)
    assert 0 < allowed.float().mean() < 1
    np.testing.assert_array_equal(np.broadcast_to(mask.to_dense(T, T), allowed.shape), allowed)
    assert_parity(
        lambda _, *heads: dot_product_attention(*heads, mask=mask),
        lambda *heads: scaled_dot_product(*heads, attn_mask=allowed),
        QUERY,
        KEY[:, :T, :2],
        VALUE[:, :T, :2],
    )


def test_softcap_is_that_of_gemma_2_and_comes_before_the_bias():
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    module = torch.nn.Module().eval()
    module.num_key_value_groups = 3

    def theirs(query, key, value, bias):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return eager_attention_forward(module, query, key, value, bias, scaling=1.5, softcap=2.0)[0]

    assert_parity(
        lambda _, q, k, v, bias: dot_product_attention(q, k, v, bias=bias, scale=1.5, softcap=2.0),
        theirs,
        QUERY,
        KEY[:, :, :2],
        VALUE[:, :, :2],
        BIAS,
    )


def their_multihead(bias=True, **options):
    return randomized(torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=True, **options))


def multihead_params(arrays):
    return tw.multihead_attention(arrays, H)


PADDING = padding(LENGTHS, T)
FUTURE = torch.ones(T, T, dtype=torch.bool).triu(1)
SELF_ATTENTION = {
    "plain": (Mask(), {}),
    "padded": (Mask(key_lengths=jnp.asarray(LENGTHS)), {"key_padding_mask": PADDING}),
    "padded and causal": (
        Mask(causal=True, key_lengths=jnp.asarray(LENGTHS)),
        {"key_padding_mask": PADDING, "attn_mask": FUTURE},
    ),
}


@pytest.mark.parametrize("case", SELF_ATTENTION)
@pytest.mark.parametrize("bias", ["none", "all"])
def test_self_attention_and_its_weights_per_head(case, bias):
    mask, masked = SELF_ATTENTION[case]
    theirs = their_multihead(bias == "all")
    cfg = AttentionConfig(embed_dim=E, num_heads=H, bias=bias)
    fn = built(lambda rngs: Attention(cfg, rngs=rngs))

    def ours(params, x):
        module = fn.bind(params)
        return module(x, mask=mask), module.weights(x, mask=mask)

    assert_parity(
        ours,
        lambda x: theirs(x, x, x, average_attn_weights=False, **masked),
        X,
        module=theirs,
        convert=multihead_params,
    )


@pytest.mark.parametrize("bias", ["none", "attention"])
def test_cross_attention_to_a_padded_context_of_another_width(bias):
    lengths = np.array([8, 3], np.int32)
    hidden = padding(lengths, S)
    theirs = their_multihead(bias == "attention", kdim=10, vdim=10)
    cfg = AttentionConfig(embed_dim=E, num_heads=H, context_dim=10, bias=bias)
    fn = built(lambda rngs: Attention(cfg, positions=Rope(), rngs=rngs))  # which act elsewhere
    assert_parity(
        lambda params, x, y: fn.bind(params)(x, y, mask=Mask(key_lengths=jnp.asarray(lengths))),
        lambda x, y: theirs(x, y, y, key_padding_mask=hidden, need_weights=False)[0],
        X,
        CONTEXT,
        module=theirs,
        convert=multihead_params,
    )


def projections_params(arrays):
    """From `q_proj`, `k_proj`, `v_proj` and `o_proj`, and norms of heads where there are any."""
    params = tw.attention([tw.linear(part(arrays, f"{name}_proj")) for name in "qkvo"], H)
    if "q_norm.weight" in arrays:
        params["query_norm"] = tw.norm(part(arrays, "q_norm"))
        params["key_norm"] = tw.norm(part(arrays, "k_norm"))
    return params


SHAPE = {
    "hidden_size": E,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "head_dim": 8,  # other than E / H
    "attn_implementation": "eager",
}
INDICES = np.array([[0, 1, 2, 3, 4, 5], [3, 4, 7, 9, 20, 21]], np.int32)
FAMILIES = {
    "Llama": ({"attention_bias": True}, {"bias": "attention"}),
    "Qwen3": ({"rms_norm_eps": 1e-3}, {"qk_norm": True, "norm_eps": 1e-3}),
    "Gemma2": ({"attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}, {"softcap": 1.5}),
}


def their_attention(family, changes):
    """An attention layer of transformers, and it as a function of its input alone."""
    import transformers

    models = getattr(transformers.models, family.lower())
    modeling = getattr(models, f"modeling_{family.lower()}")
    config = getattr(transformers, f"{family}Config")(**SHAPE | changes)
    module = randomized(getattr(modeling, f"{family}Attention")(config, layer_idx=0).eval())
    rotary = getattr(modeling, f"{family}RotaryEmbedding")(config)
    hidden = torch.zeros(T, T).masked_fill(FUTURE, torch.finfo(torch.float32).min)

    def call(x):
        angles = rotary(x, torch.tensor(INDICES))
        return module(x, position_embeddings=angles, attention_mask=hidden[None, None])[0]

    return module, call


def our_attention(**changes):
    cfg = AttentionConfig(embed_dim=E, num_heads=H, num_kv_heads=2, head_dim=8, **changes)
    fn = built(lambda rngs: Attention(cfg, positions=Rope(), rngs=rngs))
    return lambda params, x: fn.bind(params)(x, mask=CAUSAL, indices=jnp.asarray(INDICES))


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_and_rotated_attention_of_transformers(family):
    their_changes, our_changes = FAMILIES[family]
    module, theirs = their_attention(family, their_changes)
    ours = our_attention(**our_changes)
    assert_parity(ours, theirs, X, module=module, convert=projections_params)


def test_low_rank_adapters_of_all_projections():
    module, theirs = their_attention("Llama", {})
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(module, name, tw.LowRankLinear(getattr(module, name), rank=3, alpha=5.0))
    randomized(module)
    targets = ("query", "key", "value", "output")
    ours = our_attention(adapters=LowRank(rank=3, alpha=5.0, targets=targets))
    assert_parity(ours, theirs, X, module=module, convert=projections_params)


def fused_params(arrays):
    """From BLOOM's `query_key_value`, whose rows are heads, then query, key and value."""
    weight = arrays["query_key_value.weight"].reshape(H, 3, D, E)
    bias = arrays["query_key_value.bias"].reshape(H, 3, D)
    maps = [
        tw.linear({"weight": weight[:, i].reshape(E, E), "bias": bias[:, i].reshape(E)})
        for i in range(3)
    ]
    return tw.attention([*maps, tw.linear(part(arrays, "dense"))], H)


def their_alibi_attention(real):
    """BLOOM's, and it as a function of its input alone, zero at padding."""
    import transformers
    from transformers.models.bloom import modeling_bloom

    config = transformers.BloomConfig(hidden_size=E, n_head=H)
    module = randomized(modeling_bloom.BloomAttention(config, layer_idx=0).eval())
    slopes = modeling_bloom.build_alibi_tensor(real, H, torch.float32)
    hidden = FUTURE[None, None] | (real == 0)[:, None, None]
    masked = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)

    def call(x):
        y = module(x, residual=torch.zeros_like(x), alibi=slopes, attention_mask=masked)[0]
        return y * real[:, :, None]

    return module, call


@pytest.mark.parametrize(
    ("padded", "counts"),
    [([0, 0, 1, 1, 1, 1], False), ([0, 1, 1, 0, 0, 1], True)],
    ids=["by rows", "by indices"],
)
def test_linear_biases_are_those_of_bloom(padded, counts):
    """Six heads, no power of two.  BLOOM counts real tokens: with gaps, rows are not positions."""
    real = torch.tensor([[1] * T, padded])
    module, theirs = their_alibi_attention(real)
    cfg = AttentionConfig(embed_dim=E, num_heads=H, bias="attention")
    fn = built(lambda rngs: Attention(cfg, positions=Alibi(), rngs=rngs))
    indices = jnp.asarray(real.cumsum(1) - 1) if counts else None
    kept = jnp.asarray(real)
    mask = CAUSAL & Mask(dense=(kept == 1)[:, None, None])
    assert_parity(
        lambda params, x: fn.bind(params)(x, mask=mask, indices=indices) * kept[:, :, None],
        theirs,
        X,
        module=module,
        convert=fused_params,
    )
