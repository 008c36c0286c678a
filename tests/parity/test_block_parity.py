"""`torch.nn.Transformer`, its stacks, and the layers that these are made of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights as tw
from tolerances import assert_close
from torch_weights import assert_parity, built, normal, padding, part, randomized

from recipe_jax.batches import SequencePairBatch
from recipe_jax.layers.feed_forward import Activation
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import Learned, NoPositions, Sinusoidal
from recipe_jax.layers.transformer import Block, Stack, TransformerConfig
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
    Source,
    sequence_pair_loss,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
nn = torch.nn

B, T, S, E, H, M, V = 2, 5, 6, 12, 3, 20, 11
EPS = 1e-5
X, CONTEXT = normal(0, B, T, E), normal(1, B, S, E)
LENGTHS, SOURCE_LENGTHS = np.array([3, 5], np.int32), np.array([6, 2], np.int32)
ORDERS = pytest.mark.parametrize("order", ["pre", "post"])


FUTURE = torch.ones(T, T, dtype=torch.bool).triu(1)


def shape(order, activation: Activation = "relu", num_layers=1):
    return TransformerConfig(
        num_layers=num_layers,
        embed_dim=E,
        num_heads=H,
        mlp_dim=M,
        activation=activation,
        norm="layer",
        norm_eps=EPS,
        norm_order=order,
        bias="all",
    )


def their_layer(kind, order, activation="relu"):
    return kind(
        E,
        H,
        M,
        dropout=0.0,
        activation=activation,
        layer_norm_eps=EPS,
        batch_first=True,
        norm_first=order == "pre",
    )


def their_stack(kind, layer, num_layers, order, **options):
    """Pre-norm layers have one more norm at the end."""
    return kind(layer, num_layers, norm=nn.LayerNorm(E, EPS) if order == "pre" else None, **options)


def their_encoder(order, num_layers, activation="relu"):
    layer = their_layer(nn.TransformerEncoderLayer, order, activation)
    return their_stack(nn.TransformerEncoder, layer, num_layers, order, enable_nested_tensor=False)


def their_decoder(order, num_layers, activation="relu"):
    layer = their_layer(nn.TransformerDecoderLayer, order, activation)
    return their_stack(nn.TransformerDecoder, layer, num_layers, order)


def block_params(arrays):
    return tw.block(arrays, H)


def stack_params(arrays):
    return tw.stack(arrays, H)


@pytest.mark.parametrize(("order", "activation"), [("pre", "relu"), ("post", "gelu")])
def test_encoder_block(order, activation):
    fn = built(lambda rngs: Block(shape(order, activation), rngs=rngs))
    theirs = randomized(their_layer(nn.TransformerEncoderLayer, order, activation))
    hidden = padding(LENGTHS, T)
    assert_parity(
        lambda params, x: fn.bind(params)(x, mask=Mask(key_lengths=jnp.asarray(LENGTHS))),
        lambda x: theirs(x, src_key_padding_mask=hidden),
        X,
        module=theirs,
        convert=block_params,
    )


@ORDERS
def test_decoder_block(order):
    fn = built(lambda rngs: Block(shape(order), cross_attention=True, rngs=rngs))
    theirs = randomized(their_layer(nn.TransformerDecoderLayer, order))
    hidden = padding(SOURCE_LENGTHS, S)
    context_mask = Mask(key_lengths=jnp.asarray(SOURCE_LENGTHS))
    assert_parity(
        lambda params, x, y: fn.bind(params)(
            x, y, mask=Mask(causal=True), context_mask=context_mask
        ),
        lambda x, y: theirs(x, y, tgt_mask=FUTURE, memory_key_padding_mask=hidden),
        X,
        CONTEXT,
        module=theirs,
        convert=block_params,
    )


@pytest.mark.parametrize(
    ("order", "remat", "unroll"),
    [("post", "none", 1), ("pre", "elementwise", 1), ("pre", "block", 2)],
)
def test_encoder(order, remat, unroll):
    cfg = shape(order, num_layers=3)
    fn = built(lambda rngs: Stack(cfg, remat=remat, unroll=unroll, rngs=rngs))
    theirs = randomized(their_encoder(order, 3))
    hidden = padding(LENGTHS, T)
    assert_parity(
        lambda params, x: fn.bind(params)(x, mask=Mask(key_lengths=jnp.asarray(LENGTHS))),
        lambda x: theirs(x, src_key_padding_mask=hidden),
        X,
        module=theirs,
        convert=stack_params,
    )


@ORDERS
def test_decoder_reads_past_and_context(order):
    cfg = shape(order, num_layers=2)
    fn = built(lambda rngs: Stack(cfg, cross_attention=True, rngs=rngs))
    theirs = randomized(their_decoder(order, 2))
    hidden = padding(SOURCE_LENGTHS, S)
    masks = {
        "mask": Mask(causal=True),
        "context_mask": Mask(key_lengths=jnp.asarray(SOURCE_LENGTHS)),
    }
    assert_parity(
        lambda params, x, y: fn.bind(params)(x, y, **masks),
        lambda x, y: theirs(x, y, tgt_mask=FUTURE, memory_key_padding_mask=hidden),
        X,
        CONTEXT,
        module=theirs,
        convert=stack_params,
    )


class TorchEncoderDecoder(nn.Module):
    """`torch.nn.Transformer` between embeddings and output layer, as its documentation builds it.

    Our post-norm stacks have no norm of their own at the end, hence stacks made one by one.
    """

    def __init__(self, order, positions, source_vocab_size, tied):
        super().__init__()
        self.target = nn.Embedding(V, E)
        self.source = nn.Embedding(source_vocab_size or V, E)
        if source_vocab_size is None:
            self.source = self.target
        rows = positions.num_embeddings
        self.positions = nn.Embedding(rows, E) if rows else None
        self.transformer = nn.Transformer(
            E,
            H,
            batch_first=True,
            custom_encoder=their_encoder(order, 2, "gelu"),
            custom_decoder=their_decoder(order, 3, "gelu"),
        )
        self.head = nn.Linear(E, V, bias=False)
        if tied:
            self.head.weight = self.target.weight

    def encode_positions(self, embeddings):
        count = embeddings.shape[1]
        if self.positions is not None:
            return embeddings + self.positions(torch.arange(count))
        angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, E, 2) / E)
        return embeddings + torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    def forward(self, source, lengths, target):
        hidden = padding(lengths, source.shape[1])
        states = self.transformer(
            self.encode_positions(E**0.5 * self.source(source)),
            self.encode_positions(E**0.5 * self.target(target)),
            tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
        )
        return self.head(states)


def encoder_decoder_params(arrays):
    params = {
        "embedding": {"table": arrays["target.weight"]},
        "encoder": stack_params(part(arrays, "transformer.encoder")),
        "decoder": stack_params(part(arrays, "transformer.decoder")),
    }
    if "source.weight" in arrays:
        params["source_embedding"] = {"table": arrays["source.weight"]}
    if "positions.weight" in arrays:
        params["positions"] = {"table": arrays["positions.weight"]}
    if "head.weight" in arrays:
        params["head"] = tw.linear(part(arrays, "head"))
    return params


RNG = np.random.default_rng(2)
SOURCE = RNG.integers(0, V, (B, S)).astype(np.int32)
TARGET = RNG.integers(0, V, (B, T)).astype(np.int32)
TARGET_LENGTHS = np.array([3, 5], np.int32)
BATCH = SequencePairBatch(*map(jnp.asarray, (SOURCE, SOURCE_LENGTHS, TARGET, TARGET_LENGTHS)))
BATCH_SOURCE = Source(BATCH.source, BATCH.source_lengths)


SINUSOIDAL = Sinusoidal()


def both_encoder_decoders(
    order="post", positions: NoPositions = SINUSOIDAL, source_vocab_size=None, tied=True
):
    cfg = EncoderDecoderTransformerConfig(
        vocab_size=V,
        transformer=shape(order, "gelu", num_layers=3),
        encoder_layers=2,
        source_vocab_size=source_vocab_size,
        positions=positions,
        max_positions=9,
        tied=tied,
    )
    fn = built(lambda rngs: EncoderDecoderTransformer(cfg, rngs=rngs))
    theirs = TorchEncoderDecoder(order, positions, source_vocab_size, tied)
    return fn, randomized(theirs)


def logits_of(theirs, target):
    return theirs(torch.tensor(SOURCE), SOURCE_LENGTHS, torch.tensor(target))


APART = {"order": "pre", "positions": Learned(9), "source_vocab_size": V + 2, "tied": False}


@pytest.mark.parametrize("changes", [{}, APART], ids=["as in the paper", "nothing shared"])
def test_encoder_decoder(changes):
    fn, theirs = both_encoder_decoders(**changes)
    assert_parity(
        lambda params: fn.bind(params)(BATCH_SOURCE, BATCH.target),
        lambda: logits_of(theirs, TARGET),
        module=theirs,
        convert=encoder_decoder_params,
    )


def test_loss_of_sequence_pairs():
    """The cross-entropy of real targets after the first; torch ignores the index -100."""
    fn, theirs = both_encoder_decoders(source_vocab_size=V + 2)
    wanted = torch.tensor(TARGET[:, 1:]).long()
    wanted = wanted.masked_fill(padding(TARGET_LENGTHS - 1, T - 1), -100)

    def their_loss():
        logits = logits_of(theirs, TARGET[:, :-1]).transpose(1, 2)
        return nn.functional.cross_entropy(logits, wanted, reduction="none").sum(dim=1)

    assert_parity(
        lambda params: sequence_pair_loss(fn.bind(params), BATCH).nats,
        their_loss,
        module=theirs,
        convert=encoder_decoder_params,
    )


def test_decoding_through_a_cache_gives_the_logits_of_torch():
    fn, theirs = both_encoder_decoders(order="pre", positions=Learned(9))

    @jax.jit
    def decoded(params):
        model = fn.bind(params)
        cache, states = model.empty_cache(B, 8, BATCH_SOURCE), []
        for start, end in itertools.pairwise((0, 2, 3, T)):
            tokens = BATCH.target[:, start:end]
            y, cache = model.decode(tokens, jnp.full(B, end - start), cache)
            states.append(y)
        return model.logits(jnp.concatenate(states, axis=1))

    arrays = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    with torch.no_grad():
        assert_close(decoded(encoder_decoder_params(arrays)), logits_of(theirs, TARGET).numpy())
