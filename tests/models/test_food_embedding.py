"""Food vectors: a sum of named sources, of which molecules alone reach foods no recipe taught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from flax import nnx

from recipe_jax.batches import Molecules
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig, gather_foods

V, C, A, E = 6, 4, 4, 16
RNG = np.random.default_rng(0)
MOLECULES = Molecules(
    composition=RNG.normal(size=(V, C)).astype(np.float32),
    observed=(RNG.random((V, C)) < 0.7).astype(np.float32),
    flavour=np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0] * 4, [0] * 4, [0, 1, 0, 0], [0] * 4], "f4"),
    has_flavour=np.array([1, 1, 0, 0, 1, 1], np.float32),
)
MOLECULAR = ("composition", "flavour")


def pure(sources):
    cfg = FoodEmbeddingConfig(
        num_foods=V, num_components=C, num_compounds=A, embed_dim=E, sources=sources
    )
    return draw_parameters(lambda rngs: FoodEmbedding(cfg, rngs=rngs), deviation=E**-0.5)


def vectors(sources, molecules=MOLECULES, params=None):
    fn, initial = pure(sources)
    return np.asarray(fn.bind(initial if params is None else params)(molecules))


def test_the_vector_is_the_sum_of_its_sources():
    fn, params = pure(("composition", "flavour", "learned"))
    inputs = np.concatenate([MOLECULES.composition, MOLECULES.observed], axis=1)
    expected = inputs @ params["composition"] + params["learned"] * E**0.5
    for food in range(V):
        present = np.flatnonzero(MOLECULES.flavour[food])
        rows = np.asarray(params["flavour"])[present]
        scent = rows.sum(axis=0) / max(len(present), 1) ** 0.5
        scent = scent if MOLECULES.has_flavour[food] else np.asarray(params["no_flavour"])
        expected = expected.at[food].add(scent * E**0.5)
    found = fn.bind(params)(MOLECULES)
    np.testing.assert_allclose(found, expected / 3**0.5, rtol=1e-5, atol=1e-5)


def test_without_the_learned_part_no_parameter_belongs_to_a_food():
    _, params = pure(MOLECULAR)
    assert set(params) == {"composition", "flavour", "no_flavour"}
    assert all(V not in leaf.shape for leaf in jax.tree.leaves(params))


def test_foods_with_one_composition_share_a_vector_unless_it_is_learned_too():
    twins = MOLECULES._replace(
        **{
            name: np.array(getattr(MOLECULES, name)[[0, 0, 2, 3, 4, 5]])
            for name in Molecules._fields
        }
    )
    molecular, both = vectors(MOLECULAR, twins), vectors((*MOLECULAR, "learned"), twins)
    assert (molecular[0] == molecular[1]).all()
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_a_food_that_no_recipe_taught_moves_with_the_foods_that_share_its_molecules():
    """Only foods 0 and 1 are trained; the vector of food 4 changes through molecules alone."""
    target = jnp.ones((2, E))

    def change_of_food_4(sources):
        fn, params = pure(sources)
        gradient = jax.grad(
            lambda p: jnp.sum((fn.bind(p)(MOLECULES)[:2] - target) ** 2)  # foods seen in training
        )(params)
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return np.abs(vectors(sources, params=stepped) - vectors(sources))[4].max()

    assert change_of_food_4(MOLECULAR) > 1e-3
    assert change_of_food_4(("learned",)) == 0.0


def test_molecules_are_an_input_that_derivatives_reach():
    fn, params = pure(MOLECULAR)
    gradient = jax.grad(lambda x: fn.bind(params)(MOLECULES._replace(composition=x))[2].sum())(
        jnp.asarray(MOLECULES.composition)
    )
    assert (gradient[2] != 0).all()
    assert (np.delete(gradient, 2, axis=0) == 0).all()


def test_unknown_flavour_is_not_flavourless():
    found = vectors(("flavour",))
    assert (found[2] == found[3]).all()  # both unknown
    assert (found[5] == 0).all()  # known to have none of the compounds
    assert np.abs(found[2]).max() > 0.1


@pytest.mark.parametrize("sources", [("learned",), ("composition",), MOLECULAR])
def test_vectors_start_at_unit_scale(sources):
    n = 400
    rng = np.random.default_rng(1)
    molecules = Molecules(
        rng.normal(size=(n, 50)).astype(np.float32),
        np.ones((n, 50), np.float32),
        (rng.random((n, 60)) < 0.1).astype(np.float32),
        np.ones(n, np.float32),
    )
    cfg = FoodEmbeddingConfig(
        num_foods=n, num_components=50, num_compounds=60, embed_dim=E, sources=sources
    )
    table = FoodEmbedding(cfg, rngs=nnx.Rngs(2))(molecules)
    assert 0.7 < float(jnp.std(table)) < 1.4


def test_padding_has_the_vector_that_is_asked_for():
    table, padding = jnp.arange(6.0).reshape(3, 2), jnp.array([-1.0, -2.0])
    rows = gather_foods(table, padding, jnp.array([[0, 3, 2]], jnp.int32))
    assert rows.tolist() == [[[0.0, 1.0], [-1.0, -2.0], [4.0, 5.0]]]


@pytest.mark.parametrize("sources", [(), ("molecules",)])
def test_unknown_or_no_sources_are_refused(sources):
    with pytest.raises(ValueError, match=r"sources=\(.*must be one or more of"):
        pure(sources)
