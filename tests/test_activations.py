"""Activations by name: captured as computed by hand, replaced where they are, gradients through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from tolerances import assert_close

from recipe_jax.activations import Replacement, capture, patch

RNG = np.random.default_rng(0)
LAYERS, ROWS, WIDTH = 5, 3, 4
WEIGHTS = jnp.asarray(RNG.normal(size=(LAYERS, WIDTH, WIDTH)) / 2, jnp.float32)
CLEAN, CORRUPTED = jnp.asarray(RNG.normal(size=(2, ROWS, WIDTH)), jnp.float32)
NAMES = ["embeddings", "mix/hidden", "residual", "states"]


def network(x, weights, *, reverse=False, unroll=1, wrap=lambda step: step):
    """A residual network under one scan, marked as the layers of the library are."""
    shift = weights.mean(axis=(0, 1))[None]  # the same in all steps

    def step(x, weight):
        with jax.named_scope("mix"):
            hidden = checkpoint_name(jnp.tanh(x @ weight + shift), "hidden")
        return checkpoint_name(x + hidden, "residual"), None

    x = checkpoint_name(2.0 * x, "embeddings")
    x, _ = jax.lax.scan(wrap(step), x, weights, reverse=reverse, unroll=unroll)
    return checkpoint_name(jnp.sin(x), "states")


def by_hand(x, weights=WEIGHTS, *, reverse=False, edit=lambda layer, hidden: hidden):
    """The same in numpy and float64: the result and all activations, layers by their index."""
    x, weights = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    embeddings = x = 2.0 * x
    hidden, residual, shift = [], [], weights.mean(axis=(0, 1))
    for layer in range(LAYERS)[:: -1 if reverse else 1]:
        hidden.append(edit(layer, np.tanh(x @ weights[layer] + shift)))
        residual.append(x := x + hidden[-1])
    order = slice(None, None, -1 if reverse else 1)
    stacks = np.stack(hidden[order]), np.stack(residual[order])
    return np.sin(x), dict(zip(NAMES, (embeddings, *stacks, np.sin(x)), strict=True))


def primitives(function, *args):
    """Equations of a trace at any depth, as pairs of primitive's name and parameters."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name, eqn.params
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))


KINDS = {
    "plain": network,
    "backwards": functools.partial(network, reverse=True),
    "unrolled": functools.partial(network, unroll=2),
    "rematerialized": functools.partial(network, wrap=jax.checkpoint),
    "jitted": jax.jit(network),
    "jitted steps": functools.partial(network, wrap=jax.jit),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", ["eager", "jit"])
def test_what_is_captured_is_what_is_computed_by_hand(kind, outside):
    function = capture(KINDS[kind])
    result, found = (jax.jit(function) if outside == "jit" else function)(CLEAN, WEIGHTS)
    expected, activations = by_hand(CLEAN, reverse=kind == "backwards")
    assert_close(result, expected)
    assert_close(found, activations)


def test_names_and_shapes_are_known_before_anything_is_computed():
    shape = jax.ShapeDtypeStruct(CLEAN.shape, CLEAN.dtype)
    _, found = jax.eval_shape(capture(network), shape, WEIGHTS)
    layers = jax.ShapeDtypeStruct((LAYERS, ROWS, WIDTH), jnp.float32)
    assert found == dict(zip(NAMES, (shape, layers, layers, shape), strict=True))


def test_only_what_is_asked_for_is_captured():
    result, found = capture(network, ["residual"])(CLEAN, WEIGHTS)
    assert list(found) == ["residual"]
    np.testing.assert_array_equal(jnp.sin(found["residual"][-1]), result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [NAMES[:2], NAMES[2:3]])
def test_patching_with_what_was_captured_changes_no_bit(kind, names):
    @jax.jit
    def run(x, values, taken):
        """One program for every run: two that XLA compiles apart may differ in the last bit."""

        def recall(name, value, layer):
            new = values[name] if layer is None else values[name][layer]
            return jnp.where(taken, new, value)

        edits = {name: functools.partial(recall, name) for name in names}
        return capture(patch(KINDS[kind], edits))(x, WEIGHTS)

    _, shapes = jax.eval_shape(capture(network), CLEAN, WEIGHTS)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    result, found = run(CLEAN, nothing, False)
    assert_close(result, KINDS[kind](CLEAN, WEIGHTS))
    assert not np.array_equal(run(CORRUPTED, nothing, False)[0], result)
    np.testing.assert_array_equal(run(CLEAN, found, True)[0], result)
    # All comes from the other run: the input of this one no longer counts.
    np.testing.assert_array_equal(run(CORRUPTED, found, True)[0], result)


@pytest.mark.parametrize("kind", ["plain", "backwards", "rematerialized"])
def test_causal_tracing_restores_all_from_the_restored_layer_on(kind):
    """The residual stream is all that a layer hands on (arXiv:2202.05262, section 2.1)."""

    @jax.jit
    def run(x, values, restored):
        """One program for every run, as above; no layer has the index `LAYERS`."""
        edits = {"residual": Replacement(values, layers=restored)}
        return capture(patch(KINDS[kind], edits))(x, WEIGHTS)

    nothing = jnp.zeros((LAYERS, ROWS, WIDTH))
    clean_result, clean = run(CLEAN, nothing, LAYERS)
    _, corrupted = run(CORRUPTED, nothing, LAYERS)
    for restored in range(LAYERS):
        result, found = run(CORRUPTED, clean["residual"], restored)
        np.testing.assert_array_equal(result, clean_result)
        for layer in range(LAYERS):
            is_clean = layer <= restored if kind == "backwards" else layer >= restored
            expected = clean if is_clean else corrupted
            np.testing.assert_array_equal(found["residual"][layer], expected["residual"][layer])
            assert not np.array_equal(clean["residual"][layer], corrupted["residual"][layer])


def test_a_replacement_acts_at_its_layers_and_positions_and_nowhere_else():
    values = jnp.asarray(RNG.normal(size=(LAYERS, ROWS, WIDTH)), jnp.float32)
    edits = {"mix/hidden": Replacement(values, layers=[0, 3], positions=2)}
    result, found = capture(patch(network, edits))(CLEAN, WEIGHTS)

    def by_mask(layer, hidden):
        hidden = hidden.copy()
        if layer in (0, 3):
            hidden[:, 2] = values[layer][:, 2]
        return hidden

    expected, activations = by_hand(CLEAN, edit=by_mask)
    assert_close(result, expected)
    assert_close(found, activations)
    whole = patch(network, {"mix/hidden": values, "embeddings": np.zeros_like(CLEAN)})
    assert_close(whole(CLEAN, WEIGHTS), jnp.sin(values.sum(axis=0)))


def test_vmap_over_layers_and_positions_patches_each_in_turn():
    _, clean = capture(network)(CLEAN, WEIGHTS)

    def restored(layer, position):
        edits = {"residual": Replacement(clean["residual"], layer, position)}
        return patch(network, edits)(CORRUPTED, WEIGHTS)

    def of_layer(layer):
        return jax.vmap(functools.partial(restored, layer))(jnp.arange(WIDTH))

    grid = jax.jit(jax.vmap(of_layer))(jnp.arange(LAYERS))
    assert grid.shape == (LAYERS, WIDTH, ROWS, WIDTH)
    for layer, position in ((0, 1), (LAYERS - 1, 3)):
        assert_close(grid[layer, position], restored(layer, position))
    kept = jnp.arange(WIDTH)[None, None] == jnp.arange(WIDTH)[:, None, None]
    last = jnp.where(kept, network(CLEAN, WEIGHTS)[None], network(CORRUPTED, WEIGHTS)[None])
    assert_close(grid[-1], last)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_one_layer_acts_there_and_nowhere_else(kind):
    def ablate(value, layer):
        return jnp.where(layer == 1, 0.25, value)

    reverse = kind == "backwards"
    result = patch(KINDS[kind], {"mix/hidden": ablate})(CLEAN, WEIGHTS)
    expected, _ = by_hand(
        CLEAN,
        reverse=reverse,
        edit=lambda layer, hidden: 0 * hidden + 0.25 if layer == 1 else hidden,
    )
    assert_close(result, expected)


@pytest.mark.parametrize("kind", ["backwards", "rematerialized", "jitted steps"])
def test_gradients_with_respect_to_a_patched_value_are_finite_differences(kind):
    start = jnp.asarray(RNG.normal(size=(ROWS, WIDTH)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(hidden):
        edits = {"mix/hidden": lambda value, layer: jnp.where(layer == 2, hidden, value)}
        return patch(KINDS[kind], edits)(CLEAN, WEIGHTS).sum()

    def total(hidden):
        edit = {2: hidden}
        return by_hand(
            CLEAN, reverse=kind == "backwards", edit=lambda layer, h: edit.get(layer, h)
        )[0].sum()

    start64, step = np.asarray(start, np.float64), 1e-5
    expected = np.zeros_like(start64)
    for place in np.ndindex(*start64.shape):
        change = np.zeros_like(start64)
        change[place] = step
        expected[place] = (total(start64 + change) - total(start64 - change)) / (2 * step)
    assert_close(gradient(start), expected, kind="gradient")


@pytest.mark.parametrize("kind", ["backwards", "rematerialized", "jitted steps"])
def test_gradients_with_respect_to_parameters_stay_what_they_are(kind):
    def gradient(function):
        return jax.jit(jax.grad(lambda weights: function(CLEAN, weights).sum()))(WEIGHTS)

    expected = gradient(KINDS[kind])
    unchanged = {name: lambda value, layer: value for name in NAMES}
    assert_close(gradient(patch(KINDS[kind], unchanged)), expected, kind="gradient")
    captured = gradient(lambda *args: capture(KINDS[kind])(*args)[0])
    assert_close(captured, expected, kind="gradient")


def test_the_gradient_of_an_activation_is_that_of_the_function_up_to_it():
    def hidden(function, weights):
        return function(weights)["mix/hidden"][1].sum()

    found = jax.grad(functools.partial(hidden, lambda w: capture(network)(CLEAN, w)[1]))(WEIGHTS)

    def two_layers(weights):
        x, shift = 2.0 * CLEAN, weights.mean(axis=(0, 1))[None]
        return jnp.tanh((x + jnp.tanh(x @ weights[0] + shift)) @ weights[1] + shift).sum()

    assert_close(found, jax.grad(two_layers)(WEIGHTS), kind="gradient")


def test_vmap_gives_what_one_call_after_the_other_gives():
    inputs = jnp.stack([CLEAN, CORRUPTED])
    result, found = jax.vmap(capture(network), in_axes=(0, None))(inputs, WEIGHTS)
    singles = [capture(network)(x, WEIGHTS) for x in inputs]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    assert_close((result, found), expected)

    def scaled(x, scale):
        return patch(network, {"residual": lambda value, layer: scale * value})(x, WEIGHTS)

    scales = jnp.array([0.5, 2.0])
    expected = jnp.stack([scaled(x, scale) for x, scale in zip(inputs, scales, strict=True)])
    assert_close(jax.vmap(scaled)(inputs, scales), expected)


def test_a_scan_stays_the_scan_that_it_was():
    function = functools.partial(network, reverse=True, unroll=2)
    unchanged = {"mix/hidden": lambda value, layer: value}
    for changed in (capture(function), patch(function, unchanged)):
        ((_, scan),) = [p for p in primitives(changed, CLEAN, WEIGHTS) if p[0] == "scan"]
        assert (scan["length"], scan["reverse"], scan["unroll"]) == (LAYERS, True, 2)


def test_a_scan_that_carries_reads_and_writes_several_arrays_gives_the_same():
    def function(x, rate):
        def step(carry, inputs):
            (total, count), (row, sign) = carry, inputs
            total = checkpoint_name(rate * total + sign * row, "total")
            return (total, count + 1), (total.sum(), count)

        signs = jnp.array([1.0, -1.0, 1.0])
        (total, count), written = jax.lax.scan(step, (x[0], 0), (x, signs), reverse=True)
        halved, _ = jax.lax.scan(
            lambda y, _: (checkpoint_name(y / 2.0, "half"), None), total, length=2
        )
        return halved, count, written

    result, found = capture(function)(CLEAN, jnp.float32(0.5))
    expected = function(CLEAN, jnp.float32(0.5))
    jax.tree.map(np.testing.assert_array_equal, result, expected)
    np.testing.assert_array_equal(found["total"].sum(axis=1), expected[2][0])
    np.testing.assert_array_equal(found["half"], [found["total"][0] / 2.0, expected[0]])


def test_rematerialization_keeps_its_policy():
    policy = jax.checkpoint_policies.save_only_these_names("hidden")
    function = functools.partial(network, wrap=functools.partial(jax.checkpoint, policy=policy))
    for changed in (capture(function), patch(function, {"residual": lambda value, layer: value})):
        found = primitives(changed, CLEAN, WEIGHTS)
        assert [params["policy"] for _, params in found if "policy" in params] == [policy]


def test_patches_compose_and_what_is_captured_is_what_was_put_there():
    def double(value, layer):
        return 2.0 * value

    twice = patch(patch(network, {"mix/hidden": double}), {"mix/hidden": double})
    result, found = capture(twice)(CLEAN, WEIGHTS)
    expected, activations = by_hand(CLEAN, edit=lambda layer, hidden: 4.0 * hidden)
    assert_close(result, expected)
    assert_close(found, activations)


def test_arguments_may_be_trees_and_results_too():
    def function(tree, *, scale):
        product = checkpoint_name(tree["x"] * scale, "product")
        return {"out": product + tree["y"][0], "none": None, "one": 1.0}

    args = {"x": np.ones(2), "y": (jnp.arange(2.0),)}
    result, found = capture(function)(args, scale=3)
    np.testing.assert_array_equal(result["out"], [3.0, 4.0])
    np.testing.assert_array_equal(found["product"], [3.0, 3.0])
    assert result["none"] is None and result["one"] == 1.0


def two_stacks(x):
    with jax.named_scope("encoder"):
        context = network(x, WEIGHTS)
    with jax.named_scope("decoder"):
        return jax.jit(network)(context, WEIGHTS[:2])


def test_scopes_tell_two_stacks_apart():
    names = jax.eval_shape(capture(two_stacks), CLEAN)[1]
    assert set(names) == {f"{stack}/{name}" for stack in ("encoder", "decoder") for name in NAMES}
    assert names["decoder/residual"].shape == (2, ROWS, WIDTH)
    result, found = capture(two_stacks)(CLEAN)
    context, encoder = by_hand(CLEAN)
    assert_close(found["encoder/residual"], encoder["residual"])
    expected = patch(network, {"mix/hidden": lambda value, layer: 0.0 * value})(
        jnp.asarray(context, jnp.float32), WEIGHTS[:2]
    )
    ablated = patch(two_stacks, {"decoder/mix/hidden": lambda value, layer: 0.0 * value})(CLEAN)
    assert_close(ablated, expected)
    assert not np.allclose(ablated, result)


def test_a_name_that_occurs_twice_is_numbered():
    def function(x):
        return checkpoint_name(jax.jit(lambda x: checkpoint_name(x + 1.0, "h"))(x) * 3.0, "h")

    x = jnp.arange(2.0)
    _, found = capture(function)(x)
    assert_close(found, {"h:0": x + 1.0, "h:1": (x + 1.0) * 3.0})
    np.testing.assert_array_equal(patch(function, {"h:0": lambda v, _: 0.0 * v})(x), [0.0, 0.0])
    with pytest.raises(ValueError, match="unknown activations h: the function marks h:0, h:1"):
        patch(function, {"h": lambda value, layer: value})(x)


def test_nested_scans_have_an_axis_and_an_index_each():
    def function(x):
        def inner(x, y):
            return checkpoint_name(x + y, "sum"), None

        def outer(x, row):
            return jax.lax.scan(inner, x, row)

        return jax.lax.scan(outer, x, jnp.arange(6.0).reshape(2, 3))[0]

    _, found = capture(function)(jnp.zeros(()))
    np.testing.assert_array_equal(found["sum"], np.cumsum(np.arange(6.0)).reshape(2, 3))

    def edit(value, layer):
        return jnp.where((layer == jnp.array([1, 0])).all(), 100.0, value)

    assert patch(function, {"sum": edit})(jnp.zeros(())) == 100.0 + 4.0 + 5.0
    # Layers are those of the innermost scan: the last of the first row, then of the second.
    last = Replacement(jnp.array([[0.0, 0.0, 7.0], [0.0, 0.0, 9.0]]), layers=2)
    _, patched = capture(patch(function, {"sum": last}))(jnp.zeros(()))
    np.testing.assert_array_equal(patched["sum"], [[0.0, 1.0, 7.0], [10.0, 14.0, 9.0]])


def test_what_vmap_maps_inside_is_captured_under_the_same_name():
    def function(x):
        with jax.named_scope("rows"):
            return jax.vmap(network, in_axes=(0, None))(x[:, None], WEIGHTS)[:, 0]

    result, found = capture(function)(CLEAN)
    assert list(found) == [f"rows/{name}" for name in NAMES]
    expected, activations = by_hand(CLEAN)
    assert_close(result, expected)
    assert_close(found["rows/residual"][:, :, 0], activations["residual"])


@jax.custom_vjp
def straight_through(x):
    return checkpoint_name(jnp.round(x), "rounded")


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g,))


def looping(x):
    @jax.jit
    def turn(_, x):
        return checkpoint_name(x + 1.0, "turn")

    x = jax.lax.fori_loop(0, jnp.int32(x.sum()) + 3, turn, checkpoint_name(x, "start"))
    x = straight_through(x)
    return jax.lax.cond(
        x.sum() > 0, lambda x: checkpoint_name(x, "left"), lambda x: checkpoint_name(-x, "right"), x
    )


@pytest.mark.parametrize(
    ("name", "inside"), [("turn", "while"), ("left", "cond"), ("rounded", "custom_vjp_call")]
)
def test_names_in_loops_and_branches_are_refused_if_asked_for(name, inside):
    x = jnp.zeros(2)
    message = f"activation {name} is inside a {inside}"
    with pytest.raises(NotImplementedError, match=message):
        capture(looping, [name])(x)
    with pytest.raises(NotImplementedError, match=message):
        patch(looping, {name: lambda value, layer: value})(x)


def test_loops_branches_and_derivatives_of_their_own_are_passed_through_otherwise():
    x = jnp.zeros(2)
    result, found = capture(looping)(x)
    assert list(found) == ["start"]
    np.testing.assert_array_equal(result, looping(x))
    patched = patch(looping, {"start": lambda value, layer: value + 2.0})(x)
    np.testing.assert_array_equal(patched, looping(x) + 2.0)
    rounded = patch(lambda x: straight_through(checkpoint_name(x, "x")), {"x": lambda x, _: 2 * x})
    np.testing.assert_array_equal(jax.grad(lambda x: rounded(x).sum())(x), [2.0, 2.0])


def test_unknown_names_are_refused_with_the_known_ones():
    known = "the function marks embeddings, mix/hidden, residual, states"
    with pytest.raises(ValueError, match=f"unknown activations attention, hidden: {known}"):
        capture(network, ["hidden", "residual", "attention"])(CLEAN, WEIGHTS)
    with pytest.raises(ValueError, match=f"unknown activations hidden: {known}"):
        patch(network, {"hidden": lambda value, layer: value})(CLEAN, WEIGHTS)
    with pytest.raises(ValueError, match="the function marks none"):
        capture(jnp.sin, ["hidden"])(CLEAN)
    with pytest.raises(ValueError, match="names='residual' must be a collection"):
        capture(network, "residual")


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("residual", CLEAN, r"of residual must have shape \(5, 3, 4\) as captured, has \(3, 4\)"),
        ("residual", WEIGHTS[:2, :3], r"has \(2, 3, 4\)"),
        ("residual", Replacement(WEIGHTS[:, :3], 5), "layers=5 of residual must be from 0 to 4"),
        ("residual", Replacement(WEIGHTS[:, :3], [0, -1]), r"layers=\[0, -1\] of residual"),
        ("residual", Replacement(WEIGHTS[:, :3], positions=4), "positions=4 .* from 0 to 3"),
        ("states", Replacement(CLEAN, 0), "layers=0 are given for states, which has none"),
    ],
)
def test_a_replacement_that_does_not_fit_is_refused(name, replacement, message):
    with pytest.raises(ValueError, match=message):
        patch(network, {name: replacement})(CLEAN, WEIGHTS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value, layer: value[:2], r"returned float32\[2, 4\]"),
        (lambda value, layer: value.astype(jnp.bfloat16), r"returned bfloat16\[3, 4\]"),
        (lambda value, layer: None, "returned None"),
        (lambda value, layer: 0.0, "returned 0.0"),
    ],
)
@pytest.mark.parametrize("name", ["embeddings", "mix/hidden"])
def test_an_edit_that_changes_shape_or_dtype_is_refused_by_name(name, edit, message):
    with pytest.raises(ValueError, match=f"the edit of {name} must return .*{message}"):
        patch(network, {name: edit})(CLEAN, WEIGHTS)
