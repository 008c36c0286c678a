"""Layers that map each row by itself: norms, activations, linear maps, perceptrons of torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights as tw
from scipy import stats
from tolerances import assert_close
from torch_weights import assert_parity, built, normal, part, randomized

from recipe_jax.layers import initializers
from recipe_jax.layers.dense import Dense, DenseConfig
from recipe_jax.layers.dropout import dropout
from recipe_jax.layers.feed_forward import (
    FeedForward,
    FeedForwardBlock,
    FeedForwardConfig,
    Linear,
    activate,
)
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.layers.norms import LayerNorm, RMSNorm
from recipe_jax.models.feed_forward_network import (
    FeedForwardClassifier,
    FeedForwardNetworkConfig,
    classification_loss,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

B, T, E, M, C = 2, 5, 8, 12, 4
X = normal(0, B, T, E)

POINTWISE = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
}
GATED = {
    "glu": "sigmoid",
    "reglu": "relu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "swiglu": "silu",
}


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize(("ours", "theirs"), [(LayerNorm, "LayerNorm"), (RMSNorm, "RMSNorm")])
def test_norms(ours, theirs, eps):
    fn = built(lambda rngs: ours(E, eps=eps, rngs=rngs))
    assert_parity(
        lambda params, x: fn.bind(params)(x),
        randomized(getattr(nn, theirs)(E, eps=eps)),
        X + 2.0,
        convert=tw.norm,
    )


@pytest.mark.parametrize("name", [*POINTWISE, *GATED])
def test_activations(name):
    """Far into both tails; zero is left out, where the derivative of ReLU is a convention."""
    x = np.concatenate([np.linspace(-20, 20, 200), [-100.0, 100.0]]).astype(np.float32)
    assert_parity(
        lambda _, x: activate(name, x), POINTWISE[GATED[name] if name in GATED else name], x
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_linear(use_bias):
    fn = built(lambda rngs: Linear(E, M, use_bias=use_bias, rngs=rngs))
    theirs = randomized(nn.Linear(E, M, bias=use_bias))
    assert_parity(lambda params, x: fn.bind(params)(x), theirs, X, convert=tw.linear)


def test_linear_with_a_low_rank_adapter():
    fn = built(lambda rngs: Linear(E, M, adapter=LowRank(rank=3, alpha=5.0), rngs=rngs))
    theirs = randomized(tw.LowRankLinear(nn.Linear(E, M), rank=3, alpha=5.0))
    assert_parity(lambda params, x: fn.bind(params)(x), theirs, X, convert=tw.linear)


def their_norm(name, dim, eps=1e-6):
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[name](dim, eps=eps)


class Residual(nn.Module):
    """A layer and what is added to it; the norm of a post-norm block is of the sum."""

    def __init__(self, layer, last=None):
        super().__init__()
        self.layer, self.last = layer, nn.Identity() if last is None else last

    def forward(self, x):
        return self.last(x + self.layer(x))


@pytest.mark.parametrize(
    ("norm", "activation", "residual", "use_bias"),
    [
        ("none", "relu", False, True),
        ("none", "tanh", True, False),
        ("layer", "gelu", True, True),
        ("rms", "silu", False, True),
    ],
)
def test_dense(norm, activation, residual, use_bias):
    cfg = DenseConfig(
        in_dim=E,
        out_dim=E if residual else M,
        activation=activation,
        norm=norm,
        residual=residual,
        use_bias=use_bias,
    )
    fn = built(lambda rngs: Dense(cfg, rngs=rngs))
    layers = [nn.Linear(E, cfg.out_dim, bias=use_bias)]
    layers += [] if norm == "none" else [their_norm(norm, cfg.out_dim)]
    layers += [POINTWISE[activation]]
    theirs = nn.Sequential(*layers)

    def convert(arrays):
        layer = part(arrays, "layer") if residual else arrays
        norms = {} if norm == "none" else {"norm": tw.norm(part(layer, "1"))}
        return {"linear": tw.linear(part(layer, "0"))} | norms

    assert_parity(
        lambda params, x: fn.bind(params)(x),
        randomized(Residual(theirs) if residual else theirs),
        X,
        convert=convert,
    )


def sequential(cfg):
    """The feed-forward layer of the paper, at places 0 and 2."""
    return nn.Sequential(
        nn.Linear(cfg.embed_dim, cfg.mlp_dim, bias=cfg.use_bias),
        POINTWISE[cfg.activation],
        nn.Linear(cfg.mlp_dim, cfg.embed_dim, bias=cfg.use_bias),
    )


def sequential_params(arrays):
    return {"up": tw.linear(part(arrays, "0")), "down": tw.linear(part(arrays, "2"))}


@pytest.mark.parametrize(("activation", "use_bias"), [("relu", True), ("gelu", False)])
def test_feed_forward(activation, use_bias):
    cfg = FeedForwardConfig(embed_dim=E, mlp_dim=M, activation=activation, use_bias=use_bias)
    fn = built(lambda rngs: FeedForward(cfg, rngs=rngs))
    assert_parity(
        lambda params, x: fn.bind(params)(x),
        randomized(sequential(cfg)),
        X,
        convert=sequential_params,
    )


@pytest.mark.parametrize(
    ("name", "adapters"),
    [
        *((name, None) for name in GATED),
        ("swiglu", LowRank(rank=3, targets=("gate", "up", "down"))),
    ],
)
def test_gated_feed_forward_is_that_of_llama(name, adapters):
    """The activation acts on the gate, not on the other map."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaMLP

    shape = {"hidden_size": E, "num_attention_heads": 1, "intermediate_size": M}
    theirs = LlamaMLP(transformers.LlamaConfig(**shape, mlp_bias=adapters is None))
    theirs.act_fn = POINTWISE[GATED[name]]
    maps = {key: f"{key}_proj" for key in ("gate", "up", "down")}
    if adapters is not None:
        for place in maps.values():
            base = getattr(theirs, place)
            setattr(theirs, place, tw.LowRankLinear(base, adapters.rank, adapters.alpha))
    cfg = FeedForwardConfig(
        embed_dim=E, mlp_dim=M, activation=name, use_bias=adapters is None, adapters=adapters
    )
    fn = built(lambda rngs: FeedForward(cfg, rngs=rngs))
    assert_parity(
        lambda params, x: fn.bind(params)(x),
        randomized(theirs),
        X,
        convert=lambda arrays: {key: tw.linear(part(arrays, maps[key])) for key in maps},
    )


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_feed_forward_block(order, norm):
    cfg = FeedForwardConfig(embed_dim=E, mlp_dim=M, use_bias=True)
    fn = built(lambda rngs: FeedForwardBlock(cfg, norm=norm, norm_order=order, rngs=rngs))
    one = their_norm(norm, E)
    theirs = (
        Residual(nn.Sequential(one, sequential(cfg)))
        if order == "pre"
        else Residual(sequential(cfg), one)
    )
    names = ("layer.0", "layer.1") if order == "pre" else ("last", "layer")
    assert_parity(
        lambda params, x: fn.bind(params)(x),
        randomized(theirs),
        X,
        convert=lambda arrays: {
            "norm": tw.norm(part(arrays, names[0])),
            "feed_forward": sequential_params(part(arrays, names[1])),
        },
    )


@pytest.mark.parametrize(
    ("norm", "activation", "residual"),
    [("none", "relu", False), ("layer", "gelu", True), ("rms", "tanh", True)],
)
def test_classifier(norm, activation, residual):
    """Probabilities and cross-entropy; the second of three layers keeps its width."""
    widths = (E, M, M, 6)
    cfg = FeedForwardNetworkConfig(
        in_dim=E,
        hidden_dims=widths[1:],
        out_dim=C,
        norm=norm,
        activation=activation,
        residual=residual,
    )
    fn = built(lambda rngs: FeedForwardClassifier(cfg, rngs=rngs))
    layers = []
    for i in range(3):
        norms = [] if norm == "none" else [their_norm(norm, widths[i + 1])]
        layer = nn.Sequential(nn.Linear(*widths[i : i + 2]), *norms, POINTWISE[activation])
        layers.append(Residual(layer) if residual and i == 1 else layer)
    theirs = randomized(nn.Sequential(*layers, nn.Linear(widths[-1], C)))

    def convert(arrays):
        hidden = {}
        for i in range(3):
            found = part(arrays, str(i))
            found = part(found, "layer") if residual and i == 1 else found
            hidden[i] = {"linear": tw.linear(part(found, "0"))}
            if norm != "none":
                hidden[i]["norm"] = tw.norm(part(found, "1"))
        return {"network": {"hidden_layers": hidden, "output": tw.linear(part(arrays, "3"))}}

    rows, labels = X.reshape(-1, E), np.arange(B * T) % C

    def ours(params, x):
        model = fn.bind(params)
        nats = classification_loss(model(x), jnp.asarray(labels)).nats
        return model.predict_proba(x), nats

    def their_outputs(x):
        logits = theirs(x)
        nats = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
        return torch.softmax(logits, dim=-1), nats

    assert_parity(ours, their_outputs, rows, module=theirs, convert=convert)


def test_dropout_keeps_and_scales_alike():
    """The draws differ, the rule does not: a share of zeros, the rest divided by `1 - rate`."""
    rate, x = 0.3, np.full((100, 100), 1.7, np.float32)
    torch.manual_seed(0)
    theirs = F.dropout(torch.tensor(x), rate).numpy()
    ours = np.asarray(dropout(jnp.asarray(x), rate, jax.random.key(0)))
    assert_close(np.unique(ours), np.unique(theirs), "elementwise")
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    for found in (ours, theirs):
        assert abs((found == 0).mean() - rate) < 4 * deviation


IN, OUT = 300, 400
SPECS = [("e -> h d", (IN, 8, 50)), ("h d -> e", (6, 50, OUT))]
INITIALIZERS = {
    "xavier_uniform": ("xavier_uniform_", {}),
    "xavier_normal": ("xavier_normal_", {}),
    "kaiming_uniform": ("kaiming_uniform_", {}),
    "kaiming_normal": ("kaiming_normal_", {}),
    "lecun_uniform": ("kaiming_uniform_", {"nonlinearity": "linear"}),
    "lecun_normal": ("kaiming_normal_", {"nonlinearity": "linear"}),
}


def chance_of_alarm(ours, theirs) -> float:
    """That samples of one distribution differ as much as these (Kolmogorov and Smirnov)."""
    found: Any = stats.ks_2samp(ours, theirs)
    return found.pvalue


@pytest.mark.parametrize(("spec", "shape"), SPECS)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initial_weights_are_drawn_as_in_torch(name, spec, shape):
    """One distribution, with one false alarm in a thousand, of one scale.

    Of 120,000 uniform draws the largest is within 1e-4 of the bound but for one case in 10**5;
    the deviation of as many normal ones is known to 0.2 %, and 0.8 % are allowed.
    """
    their_name, options = INITIALIZERS[name]
    ours = np.asarray(getattr(initializers, name)(spec)(jax.random.key(0), shape)).ravel()
    torch.manual_seed(0)
    theirs = getattr(nn.init, their_name)(torch.empty(OUT, IN), **options).numpy().ravel()
    assert ours.size == theirs.size
    assert chance_of_alarm(ours, theirs) > 1e-3
    if name.endswith("uniform"):
        torch.manual_seed(0)
        unit = torch.empty(OUT, IN).uniform_(-1, 1).numpy().ravel()
        bound = np.median(theirs / unit)
        assert_close(theirs, bound * unit, "elementwise")
        assert (1 - 1e-4) * bound < np.abs(ours).max() <= bound * (1 + 1e-6)
    else:
        assert abs(ours.std() / theirs.std() - 1) < 0.008


def test_truncated_normal_weights_are_drawn_as_in_torch():
    """Cut at two deviations of the normal distribution, which the cut makes narrower."""
    uncut = 0.5 / stats.truncnorm(-2, 2).std()
    ours = np.asarray(initializers.truncated_normal(0.5)(jax.random.key(0), (IN, OUT))).ravel()
    torch.manual_seed(0)
    theirs = torch.empty(OUT, IN)
    nn.init.trunc_normal_(theirs, std=uncut, a=-2 * uncut, b=2 * uncut)
    assert chance_of_alarm(ours, theirs.numpy().ravel()) > 1e-3
    assert abs(ours.std() / 0.5 - 1) < 0.008
    assert (1 - 1e-3) * 2 * uncut < np.abs(ours).max() <= 2 * uncut * (1 + 1e-6)
