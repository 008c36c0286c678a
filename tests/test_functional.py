"""Laws of taking modules apart: nothing is lost, equal structures are equal, transforms apply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import abstract, num_parameters, purify, stack


class Projection(nnx.Module):
    def __init__(self, width: int, axes=("embed", "mlp"), *, rngs: nnx.Rngs):
        self.width = width
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)), axes=axes)

    def __call__(self, inputs):
        return jnp.tanh(inputs @ self.kernel[...])


class Tower(nnx.Module):
    def __init__(self, width: int = 4, depth: int = 2, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Projection(width, rngs=rngs) for _ in range(depth)])

    def __call__(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


class Holder(nnx.Module):
    def __init__(self, value):
        self.kernel = nnx.Param(jnp.zeros(2))
        self.value = value


def tower(seed: int = 0, **config) -> Tower:
    return Tower(rngs=nnx.Rngs(seed), **config)


INPUTS = jax.random.normal(jax.random.key(3), (5, 4))


def test_bound_module_equals_the_module():
    fn, params = purify(tower())
    np.testing.assert_array_equal(fn.bind(params)(INPUTS), tower()(INPUTS))
    assert isinstance(fn.bind(params), Tower)


def test_params_are_a_plain_nested_dict_of_arrays():
    _, params = purify(tower())
    assert type(params) is dict and type(params["blocks"]) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert num_parameters(params) == 2 * 4 * 4


def test_equal_configurations_compile_once():
    traces = 0

    def forward(fn, params):
        nonlocal traces
        traces += 1
        return fn.bind(params)(INPUTS)

    compiled = jax.jit(forward, static_argnums=0)
    for seed in range(3):
        compiled(*purify(tower(seed)))
    assert traces == 1
    compiled(*purify(tower(depth=3)))
    assert traces == 2


def test_equality_and_hash_follow_the_configuration():
    fn, same, other = purify(tower(0))[0], purify(tower(1))[0], purify(tower(0, width=8))[0]
    assert fn == same and hash(fn) == hash(same)
    assert fn != other


def test_equality_sees_logical_axes():
    fn, _ = purify(Projection(4, rngs=nnx.Rngs(0)))
    renamed, _ = purify(Projection(4, axes=("embed", "heads"), rngs=nnx.Rngs(0)))
    assert fn != renamed


def test_axes_and_shapes_mirror_the_parameters():
    fn, params = purify(tower())
    assert fn.axes == {"blocks": {i: {"kernel": ("embed", "mlp")} for i in range(2)}}
    assert jax.tree.structure(fn.shapes) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda s, p: s.shape == p.shape, fn.shapes, params))


def test_parameters_without_axes_are_never_sharded():
    fn, _ = purify(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert fn.axes == {"kernel": (None, None), "bias": (None,)}


def test_grad_is_the_analytic_one():
    fn, params = purify(Projection(4, rngs=nnx.Rngs(0)))
    gradient = jax.grad(lambda p: fn.bind(p)(INPUTS).sum())(params)["kernel"]
    slope = 1 - np.tanh(INPUTS @ params["kernel"]) ** 2
    assert_close(gradient, INPUTS.T @ slope, "gradient")


def test_vmap_over_parameters_is_an_ensemble():
    members = [purify(tower(seed)) for seed in range(3)]
    fn = members[0][0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params for _, params in members])
    outputs = jax.vmap(lambda p: fn.bind(p)(INPUTS))(stacked)
    for output, (_, params) in zip(outputs, members, strict=True):
        assert_close(output, fn.bind(params)(INPUTS))


def test_abstract_is_purify_without_values():
    fn, params = purify(tower())
    abstract_fn, shapes = abstract(tower)
    assert abstract_fn == fn and hash(abstract_fn) == hash(fn)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_abstract_allocates_nothing():
    _, shapes = abstract(lambda: tower(width=1_000_000, depth=1))
    assert num_parameters(shapes) == 10**12


def test_a_stack_scans_like_its_modules_in_turn():
    keys = jax.random.split(jax.random.key(0), 3)
    fn, params = purify(stack(lambda key: Projection(4, rngs=nnx.Rngs(key)), keys))
    assert fn.axes == {"kernel": ("layers", "embed", "mlp")}
    scanned, _ = jax.lax.scan(lambda x, p: (fn.bind(p)(x), None), INPUTS, params)
    expected = INPUTS
    for key in keys:
        expected = Projection(4, rngs=nnx.Rngs(key))(expected)
    assert_close(scanned, expected)


@pytest.mark.parametrize(
    ("make_module", "path"),
    [
        (lambda: nnx.Dropout(0.1, rngs=nnx.Rngs(0)), "Dropout.rngs.count is a RngCount"),
        (lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)), "BatchNorm.mean is a BatchStat"),
        (lambda: Holder(nnx.List([jnp.zeros(3)])), "Holder.value.0 is a "),
        (lambda: Holder(np.zeros(3)), "Holder.value is a ndarray"),
    ],
)
def test_state_that_is_no_parameter_is_refused_by_path(make_module, path):
    with pytest.raises(ValueError, match=f"{path}.*not an nnx.Param"):
        purify(make_module())


def test_unhashable_attributes_are_refused():
    with pytest.raises(ValueError, match="Holder has an attribute that is not hashable"):
        purify(Holder({"heads": 2}))


def test_axes_must_match_the_shape():
    with pytest.raises(ValueError, match=r"Projection\.kernel has axes=\('embed',\)"):
        purify(Projection(4, axes=("embed",), rngs=nnx.Rngs(0)))


def test_bind_names_missing_and_unknown_parameters():
    fn, params = purify(tower())
    broken = {"blocks": {0: params["blocks"][0], "1": params["blocks"][1]}}
    with pytest.raises(ValueError, match=r"Tower: missing \['blocks/1/kernel'\]"):
        fn.bind({"blocks": {0: params["blocks"][0]}})
    with pytest.raises(ValueError, match="unknown"):
        fn.bind(broken)
