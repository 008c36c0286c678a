"""The table of parameters says what is there, and where."""

import jax
from tiny_language_model import tiny_model

from recipe_jax.describe import describe, parameter_rows
from recipe_jax.functional import num_parameters
from recipe_jax.sharding import make_mesh, param_shardings


def test_every_parameter_has_a_row_and_the_total_is_theirs():
    fn, params = tiny_model()
    rows = parameter_rows(params)
    assert len(rows) == len(fn.leaves) and sum(row.size for row in rows) == num_parameters(params)
    query = next(row for row in rows if row.name == "stack/blocks/attention/query")
    assert (query.shape, query.dtype, query.size) == ((2, 12, 6, 4), "float32", 576)
    assert query.devices == "1 x cpu"
    text = describe(params)
    assert f"{num_parameters(params):,} numbers in {len(rows)} parameters" in text
    assert len(text.splitlines()) == len(rows) + 3


def test_shapes_alone_have_no_place():
    fn, _ = tiny_model()
    assert {(row.devices, row.sharding) for row in parameter_rows(fn.shapes)} == {("", "")}


def test_sharded_parameters_name_their_mesh_axes():
    fn, params = tiny_model()
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    params = jax.device_put(params, param_shardings(fn.axes, fn.shapes, mesh))
    rows = {row.name: row for row in parameter_rows(params)}
    query = rows["stack/blocks/attention/query"]
    assert (query.devices, query.sharding) == ("8 x cpu", "-, fsdp, tensor, -")
    assert rows["stack/final_norm/scale"].sharding == "fsdp"
