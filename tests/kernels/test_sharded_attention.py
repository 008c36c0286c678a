"""On a mesh every device computes its own rows and heads; the results are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe_kernels import ShardedAttention, attention
from tolerances import assert_close

from recipe_jax.layers.masks import Mask
from recipe_jax.sharding import make_mesh

RNG = np.random.default_rng(0)
B, T, H, D = 8, 40, 4, 16
LENGTHS = jnp.arange(B, dtype=jnp.int32) * 5
MASK = Mask(causal=True, key_lengths=LENGTHS, query_lengths=LENGTHS)
MESHES = ["data=8", "data=2,fsdp=2,tensor=2", "tensor=4,data=2"]


def draw(heads: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=(B, T, heads, D)), jnp.float32)


def gradients(attend, *heads):
    def total(*heads):
        slopes = jnp.array([0.5, 0.25, 0.1, 0.05, 0.2, 0.3])[: heads[0].shape[2]]
        return (attend(*heads, mask=MASK, alibi_slopes=slopes) ** 2).sum()

    return jax.value_and_grad(total, (0, 1, 2))(*heads)


@pytest.mark.parametrize(
    ("mesh", "num_heads", "num_kv_heads"),
    [*((mesh, 4, k) for mesh in MESHES for k in (4, 2, 1)), (MESHES[1], 6, 3), (MESHES[2], 3, 3)],
)
def test_values_and_gradients_are_those_of_one_device(mesh, num_heads, num_kv_heads):
    heads = draw(num_heads), draw(num_kv_heads), draw(num_kv_heads)
    sharded = ShardedAttention(make_mesh(mesh))
    found = jax.jit(lambda *heads: gradients(sharded, *heads))(*heads)
    expected = jax.jit(lambda *heads: gradients(attention, *heads))(*heads)
    for ours, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, one)


@pytest.mark.parametrize("mesh", MESHES)
def test_no_device_asks_another_for_heads(mesh):
    made = make_mesh(mesh)
    axes = tuple(axis for axis in ("data", "fsdp") if made.shape.get(axis, 1) > 1)
    sharding = jax.NamedSharding(
        made, jax.P(axes, None, "tensor" if made.shape.get("tensor", 1) > 1 else None)
    )
    heads = [jax.ShapeDtypeStruct((B, T, H, D), jnp.float32, sharding=sharding)] * 3
    text = compiled_gradients(made, *heads)
    for moved in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert moved not in text, moved


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (8, 2), (12, 6)])
def test_key_heads_too_few_to_be_split_are_not_gathered_and_their_gradients_are_added(
    num_heads, num_kv_heads
):
    made = make_mesh("tensor=4,data=2")

    def heads(count: int, axis: str | None) -> jax.ShapeDtypeStruct:
        sharding = jax.NamedSharding(made, jax.P("data", None, axis))
        return jax.ShapeDtypeStruct((B, T, count, D), jnp.float32, sharding=sharding)

    given = heads(num_heads, "tensor"), *[heads(num_kv_heads, None)] * 2
    text = compiled_gradients(made, *given)
    assert "all-reduce" in text
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text, moved


def compiled_gradients(mesh, *heads) -> str:
    def pull(query, key, value):
        out, pull = jax.vjp(lambda *x: ShardedAttention(mesh)(*x, mask=MASK), query, key, value)
        return pull(out)

    return jax.jit(pull).lower(*heads).compile().as_text()


def test_an_unknown_implementation_is_refused(untyped):
    with pytest.raises(ValueError, match="implementation='fast' must be one of"):
        ShardedAttention(make_mesh("data=8"), "fast")


def test_other_rows_and_heads_drop_other_weights():
    heads = [jnp.ones((B, T, H, D))] * 2
    value = jnp.asarray(RNG.normal(size=(1, T, 1, D)), jnp.float32) + jnp.zeros((B, T, H, D))
    options = {"dropout_rate": 0.5, "dropout_key": jax.random.key(1)}
    split = ShardedAttention(make_mesh("data=2,fsdp=2,tensor=2"))(*heads, value, **options)
    assert_close(split, attention(*heads, value, **options))
    flat = np.asarray(split.swapaxes(1, 2).reshape(B * H, -1))
    assert len(np.unique(flat.round(4), axis=0)) == B * H


def test_two_of_one_mesh_are_one_value():
    mesh = make_mesh("data=8")
    assert ShardedAttention(mesh) == ShardedAttention(mesh)
    assert hash(ShardedAttention(mesh)) == hash(ShardedAttention(mesh))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_it_works_within_a_shard_map_that_checks_what_varies(platform):
    mesh = jax.make_mesh((4, 2), ("rows", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    of_heads, slopes = jax.P("rows", None, "heads"), jnp.array([0.5, 0.25, 0.1, 0.05])

    def gradients(attend):
        def total(*heads):
            return (attend(*heads, LENGTHS, slopes) ** 2).sum()

        return jax.jit(jax.grad(total, (0, 1, 2)))

    def attend(query, key, value, lengths, slopes):
        return attention(
            query, key, value, mask=Mask(causal=True, key_lengths=lengths), alibi_slopes=slopes
        )

    split = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(of_heads,) * 3 + (jax.P("rows"), jax.P("heads")),
        out_specs=of_heads,
        check_vma=True,
    )
    ours, one = gradients(split), gradients(attend)
    heads = [draw(H) for _ in range(3)]
    if platform == "cpu":
        for found, expected in zip(ours(*heads), one(*heads), strict=True):
            assert_close(found, expected)
    else:
        pytest.importorskip("triton")
        text = ours.trace(*heads).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("@triton_kernel_call") == 2 and "all_gather" not in text
