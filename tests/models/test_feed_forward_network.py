"""Multi-layer perceptrons against numpy, and the laws of probabilities."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import flat_params, path_name, purify
from recipe_jax.models.feed_forward_network import (
    FeedForwardClassifier,
    FeedForwardNetwork,
    FeedForwardNetworkConfig,
    classification_loss,
)

B, IN, C = 7, 6, 4
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, IN)), jnp.float32)
LABELS = jnp.arange(B) % C


def config(**changes):
    return FeedForwardNetworkConfig(**{"in_dim": IN, "out_dim": C, "hidden_dims": (5, 5)} | changes)


def drawn(module=FeedForwardNetwork, **changes):
    cfg = config(**changes)
    return draw_parameters(lambda rngs: module(cfg, rngs=rngs))


def call(fn, params, x=X, key=None):
    """Compiled as one: operation by operation takes longer."""
    return jax.jit(lambda params, x, key: fn.bind(params)(x, key=key))(params, x, key)


def in_double(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def zeros(params):
    return jax.tree.map(np.zeros_like, params)


def linear(part, x):
    return x @ part["kernel"] + part["bias"]


def rms(part, x):
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * part["scale"]


def layer(part, x):
    centred = x - x.mean(axis=1, keepdims=True)
    return (
        centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-6) * part["scale"] + part["bias"]
    )


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}
NORMS = {"none": lambda part, x: x, "rms": rms, "layer": layer}


@pytest.mark.parametrize(
    ("norm", "activation", "residual"),
    [
        ("none", "relu", False),
        ("none", "relu", True),
        ("rms", "gelu", False),
        ("layer", "tanh", False),
        ("layer", "gelu", True),
    ],
)
def test_the_network_is_the_formula(norm, activation, residual):
    """Of the widths 6, 5, 5, 3 only the second hidden layer is as wide as its input."""
    fn, params = drawn(hidden_dims=(5, 5, 3), norm=norm, activation=activation, residual=residual)
    known, x = in_double(params), np.asarray(X, np.float64)
    for i in range(3):
        part = known["hidden_layers"][i]
        hidden = ACTIVATIONS[activation](NORMS[norm](part.get("norm"), linear(part["linear"], x)))
        x = x + hidden if residual and i == 1 else hidden
    assert_close(call(fn, params), linear(known["output"], x))


def test_without_hidden_layers_it_is_one_linear_map():
    fn, params = drawn(hidden_dims=())
    assert set(params) == {"output"}
    assert_close(call(fn, params), linear(in_double(params["output"]), np.asarray(X)))


def test_a_residual_layer_adds_exactly_its_input():
    """With weights of zero the layer's own part is tanh(0) = 0, and its input is what remains."""
    fn, params = drawn(hidden_dims=(IN, IN), activation="tanh", residual=True)
    silent = {**params, "hidden_layers": zeros(params["hidden_layers"])}
    assert_close(call(fn, silent), linear(in_double(params["output"]), np.asarray(X)))
    plain, _ = drawn(hidden_dims=(IN, IN), activation="tanh")
    assert (np.asarray(call(plain, silent)) == np.asarray(params["output"]["bias"])).all()


def test_low_precision_stays_what_it_is_and_logits_do_not():
    low = X.astype(jnp.bfloat16)
    fn, params = drawn(norm="layer")
    assert call(fn, params, low).dtype == jnp.bfloat16
    assert_close(call(fn, params, low), call(fn, params), dtype="bfloat16")
    classifier, params = drawn(FeedForwardClassifier)
    assert call(classifier, params, low).dtype == jnp.float32


def test_dropout_acts_on_hidden_units_with_a_key_only():
    fn, params = drawn(hidden_dims=(500,), dropout_rate=0.4)
    plain, _ = drawn(hidden_dims=(500,))
    key, expected = jax.random.key(0), np.asarray(call(plain, params))
    assert (np.asarray(call(fn, params)) == expected).all()
    assert (np.asarray(call(plain, params, key=key)) == expected).all()
    # An output that sums hidden units of one: each is 0 or 1 / (1 - rate).
    ones = zeros(params)
    ones["hidden_layers"][0]["linear"]["bias"] += 1.0
    ones["output"]["kernel"] += 1.0
    kept = np.asarray(call(fn, ones, key=key)) * 0.6 / 500
    assert np.abs(kept - 0.6).max() < 0.1 and len(np.unique(kept)) > 1


def test_every_layer_drops_other_units():
    """One mask for both layers would keep half of the units, two keep a quarter."""
    fn, params = drawn(hidden_dims=(50, 50), dropout_rate=0.5, activation="identity")
    ones = zeros(params)
    ones["hidden_layers"][0]["linear"]["bias"] += 1.0
    ones["hidden_layers"][1]["linear"]["kernel"] += np.eye(50, dtype=np.float32)
    ones["output"]["kernel"] += 1.0
    kept = np.asarray(call(fn, ones, key=jax.random.key(0))) / (4 * 50)
    assert np.abs(kept - 0.25).mean() < 0.1


def test_gradients_reach_every_parameter_and_are_those_of_the_formula():
    fn, params = drawn(
        FeedForwardClassifier, norm="layer", activation="gelu", residual=True, hidden_dims=(5, 5)
    )

    @jax.jit
    def gradient_and_probabilities(params):
        model = fn.bind(params)
        gradient = jax.grad(lambda p: classification_loss(fn.bind(p)(X), LABELS).nats.mean())
        return gradient(params), model.predict_proba(X)

    gradient, probabilities = gradient_and_probabilities(params)
    for path, leaf in flat_params(gradient).items():
        assert np.abs(leaf).max() > 0, path_name(path)
    # The gradient of the mean cross-entropy with respect to the last bias is mean(p - onehot).
    expected = (np.asarray(probabilities) - np.eye(C)[np.asarray(LABELS)]).mean(axis=0)
    assert_close(gradient["network"]["output"]["bias"], expected, "gradient")


def test_probabilities_are_one_softmax_of_the_logits():
    fn, params = drawn(FeedForwardClassifier)
    probabilities = np.asarray(jax.jit(lambda p: fn.bind(p).predict_proba(X))(params))
    logits = np.asarray(call(fn, params), np.float64)
    powers = np.exp(logits)
    assert_close(probabilities.sum(axis=1), np.ones(B), "elementwise")
    assert_close(probabilities, powers / powers.sum(axis=1, keepdims=True))
    # Logits are no probabilities yet, else the softmax would have been taken twice.
    assert np.abs(logits.sum(axis=1) - 1).max() > 0.1
    known = in_double(params["network"])
    x = np.asarray(X, np.float64)
    for part in known["hidden_layers"].values():
        x = np.maximum(linear(part["linear"], x), 0)
    assert_close(logits, linear(known["output"], x))


def test_predictions_are_the_most_probable_classes():
    fn, params = drawn(FeedForwardClassifier)

    @jax.jit
    def both(params):
        return fn.bind(params).predict(X), fn.bind(params).predict_proba(X)

    predicted, probabilities = both(params)
    assert predicted.dtype == jnp.int32 and len(set(predicted.tolist())) > 1
    assert predicted.tolist() == np.asarray(probabilities).argmax(axis=1).tolist()


def test_far_apart_logits_give_finite_nats():
    logits = jnp.array([[1e4, 0.0, -1e4]], jnp.float32)
    nats = [classification_loss(logits, jnp.array([label])).nats[0] for label in range(3)]
    assert nats == [0.0, 1e4, 2e4]


def test_the_loss_is_minus_the_log_of_the_right_probability():
    logits = np.random.default_rng(1).normal(size=(B, C)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    labels = np.where(np.arange(B) < 3, probabilities.argmax(axis=1), probabilities.argmin(axis=1))
    terms = classification_loss(jnp.asarray(logits), jnp.asarray(labels))
    assert_close(terms.nats, -np.log(probabilities[np.arange(B), labels]))
    assert terms.correct.tolist() == [1.0] * 3 + [0.0] * (B - 3)
    low = classification_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert low.nats.dtype == jnp.float32
    assert_close(low.nats, terms.nats, dtype="bfloat16")


def test_equal_logits_are_right_for_the_lowest_class_alone():
    terms = classification_loss(jnp.zeros((C, C)), jnp.arange(C))
    assert_close(terms.nats, np.full(C, np.log(C)), "elementwise")
    assert terms.correct.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_labels_that_are_no_class_give_nan():
    terms = classification_loss(jnp.zeros((3, C)), jnp.array([-1, C, 0]))
    assert jnp.isnan(terms.nats).tolist() == [True, True, False]
    assert terms.correct.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "variance", "bounded"),
    [
        ("xavier_uniform", 2 / (300 + 200), True),
        ("xavier_normal", 2 / (300 + 200), False),
        ("kaiming_uniform", 2 / 300, True),
        ("kaiming_normal", 2 / 300, False),
        ("lecun_normal", 1 / 300, False),
    ],
)
def test_initial_weights_have_the_variance_of_their_name(name, variance, bounded):
    cfg = config(in_dim=300, hidden_dims=(200,), out_dim=200, initializer=name)
    _, params = purify(FeedForwardNetwork(cfg, rngs=nnx.Rngs(0)))
    first = params["hidden_layers"][0]["linear"]
    assert abs(np.var(first["kernel"]) / variance - 1) < 0.03
    assert (np.abs(first["kernel"]).max() <= (3 * variance) ** 0.5) == bounded
    assert not first["bias"].any()
    # The second has 200 inputs, where the first has 300, and as many outputs.
    wanted = 2 / (200 + 200) if name.startswith("xavier") else variance * 300 / 200
    assert abs(np.var(params["output"]["kernel"]) / wanted - 1) < 0.03


def test_it_learns_what_no_linear_map_can():
    """Exclusive or of two signs: a linear model stays at chance."""
    x = np.random.default_rng(1).normal(size=(256, 2)).astype(np.float32)
    features, labels = jnp.asarray(x), jnp.asarray(x[:, 0] * x[:, 1] > 0, jnp.int32)

    def accuracy(hidden_dims):
        cfg = FeedForwardNetworkConfig(in_dim=2, out_dim=2, hidden_dims=hidden_dims)
        fn, params = purify(FeedForwardClassifier(cfg, rngs=nnx.Rngs(0)))

        def terms(params):
            return classification_loss(fn.bind(params)(features), labels)

        @jax.jit
        def learned(params):
            def step(params, _):
                gradient = jax.grad(lambda p: terms(p).nats.mean())(params)
                return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), None

            return terms(jax.lax.scan(step, params, length=200)[0]).correct.mean()

        return float(learned(params))

    assert accuracy((32,)) > 0.95
    assert accuracy(()) < 0.65


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_dim": 0}, "in_dim=0 must be at least 1"),
        ({"out_dim": -1}, "out_dim=-1 must be at least 1"),
        ({"hidden_dims": (8, 0)}, r"hidden_dims=\(8, 0\) must all be at least 1"),
        ({"activation": "swiglu"}, "activation='swiglu' is a gated unit, must be one of identity,"),
        ({"activation": "softplus"}, "activation='softplus' must be one of identity, relu"),
        ({"norm": "batch"}, 'norm=\'batch\' must be "none", "rms" or "layer"'),
        ({"dropout_rate": 1.0}, r"dropout_rate=1\.0 must be at least 0 and below 1"),
        ({"initializer": "ones"}, "initializer='ones' must be one of xavier_uniform, xavier_"),
    ],
)
def test_wrong_configurations_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_one_class_is_not_classified():
    with pytest.raises(ValueError, match="out_dim=1 must be at least 2 classes"):
        FeedForwardClassifier(config(out_dim=1), rngs=nnx.Rngs(0))


def test_rows_of_another_width_are_refused():
    fn, params = drawn()
    with pytest.raises(ValueError, match="x has 5 features, must have in_dim=6"):
        fn.bind(params)(X[:, :5])
