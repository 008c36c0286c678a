"""Quantizers as objects: codes and back, folders, and what they refuse."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.huggingface import ModelFolderError
from recipe_jax.layers.residual_quantizer import residual_quantize
from recipe_jax.models.residual_codebooks import ResidualCodebooks, ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig
from recipe_jax.quantizers import quantizer as module
from recipe_jax.quantizers.distinct_codes import encode_distinct
from recipe_jax.quantizers.quantizer import ModelQuantizer, fit_scaling
from recipe_jax.quantizers.quantizer_folder import load_quantizer, save_quantizer
from recipe_jax.quantizers.statistics import code_statistics

RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(90, 6)) * [5, 3, 1, 1, 1, 0.1] + 7).astype(np.float32)


def make_quantizer(cfg=None):
    cfg = cfg or ResidualCodebooksConfig(in_dim=6, num_levels=2, num_codes=8)
    made = RqVae if isinstance(cfg, RqVaeConfig) else ResidualCodebooks
    fn, params = purify(made(cfg, rngs=nnx.Rngs(0)))
    return ModelQuantizer(cfg=cfg, fn=fn, params=params, scaling=fit_scaling(VECTORS, "columns"))


QUANTIZER = make_quantizer()
RQ_VAE = make_quantizer(
    RqVaeConfig(in_dim=6, latent_dim=4, hidden_dims=(8,), num_levels=3, num_codes=8)
)


@pytest.mark.parametrize("quantizer", [QUANTIZER, RQ_VAE])
def test_codes_of_a_row_do_not_depend_on_what_else_is_encoded(quantizer, monkeypatch):
    whole = quantizer.encode(VECTORS)
    assert whole.shape == (90, quantizer.num_levels)
    assert whole.dtype == np.int32
    alone = np.concatenate([quantizer.encode(VECTORS[row : row + 1]) for row in range(5)])
    np.testing.assert_array_equal(alone, whole[:5])
    decoded = quantizer.decode(whole)
    np.testing.assert_array_equal(quantizer.decode(whole[3:4]), decoded[3:4])
    assert quantizer.encode(VECTORS[:0]).shape == (0, quantizer.num_levels)
    assert quantizer.decode(whole[:0]).shape == (0, 6)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 32)  # three parts, the last one not full
    np.testing.assert_array_equal(quantizer.encode(VECTORS), whole)


def test_what_is_decoded_is_the_sum_of_codewords_scaled_back():
    scaling = QUANTIZER.scaling
    scaled = jnp.asarray((VECTORS - scaling.mean) / scaling.deviation)
    quantized = residual_quantize(scaled, QUANTIZER.params["codewords"])
    np.testing.assert_array_equal(QUANTIZER.encode(VECTORS), quantized.codes)
    expected = np.asarray(quantized.vectors) * scaling.deviation + scaling.mean
    assert_close(QUANTIZER.decode(np.asarray(quantized.codes)), expected)


def test_scalings_are_what_they_are_named_for():
    constant = np.concatenate([VECTORS, np.full((90, 1), 2.0)], axis=1).astype(np.float32)
    columns = fit_scaling(constant, "columns")
    scaled = (constant - columns.mean) / columns.deviation
    assert_close(scaled[:, :6].std(axis=0), np.ones(6), "gradient")
    assert_close(scaled[:, 6], np.zeros(90))
    centre = fit_scaling(VECTORS, "centre")
    assert len(np.unique(centre.deviation)) == 1
    scaled = (VECTORS - centre.mean) / centre.deviation
    assert np.square(scaled).sum(axis=1).mean() == pytest.approx(6, rel=1e-4)
    none = fit_scaling(VECTORS, "none")
    np.testing.assert_array_equal((VECTORS - none.mean) / none.deviation, VECTORS)


@pytest.mark.parametrize("quantizer", [QUANTIZER, RQ_VAE])
def test_a_folder_gives_back_the_same_quantizer(quantizer, tmp_path):
    save_quantizer(tmp_path / "quantizer", quantizer, card="# Codes\n")
    found = load_quantizer(tmp_path / "quantizer")
    assert found.cfg == quantizer.cfg
    np.testing.assert_array_equal(found.encode(VECTORS), quantizer.encode(VECTORS))
    codes = quantizer.encode(VECTORS)
    np.testing.assert_array_equal(found.decode(codes), quantizer.decode(codes))
    names = {path.name for path in (tmp_path / "quantizer").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}


def test_folders_that_hold_no_quantizer_are_refused_by_name(tmp_path):
    save_quantizer(tmp_path, QUANTIZER, card="")
    tensors = load_file(tmp_path / "model.safetensors")
    for name, broken, message in [
        ("scaling/deviation", np.zeros(6, np.float32), "'scaling/deviation' must be above zero"),
        ("params/codewords", np.zeros((2, 9, 6), np.float32), r"float32\[2, 9, 6\], must be"),
        ("params/codewords", np.full((2, 8, 6), np.nan, np.float32), "not finite"),
    ]:
        save_file({**tensors, name: broken}, tmp_path / "model.safetensors")
        with pytest.raises(ModelFolderError, match=message):
            load_quantizer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "amounts"}))
    with pytest.raises(ModelFolderError, match="'amounts' must be one of"):
        load_quantizer(tmp_path)


def brute_force_least(distances):
    """The least total distance of different columns for the rows, by trying all."""
    if not len(distances):
        return 0.0
    return min(
        row + brute_force_least(np.delete(distances[1:], column, axis=1))
        for column, row in enumerate(distances[0])
    )


def test_distinct_codes_differ_within_a_prefix_at_the_least_total_distance():
    rows = VECTORS[:1] + 1e-3 * RNG.normal(size=(4, 6)).astype(np.float32)
    lonely = VECTORS[40:41]
    rows = np.concatenate([rows, lonely])
    nearest, rest = QUANTIZER.encode_with_rest(rows)
    assert code_statistics(nearest, 8).largest_collision == 4
    found = encode_distinct(QUANTIZER, rows)
    np.testing.assert_array_equal(found[:, 0], nearest[:, 0])
    np.testing.assert_array_equal(found[4], nearest[4])
    assert code_statistics(found, 8).collision_rate == 0.0
    distances = np.square(rest[:4, None] - QUANTIZER.last_codebook[None]).sum(axis=-1)
    total = distances[np.arange(4), found[:4, 1]].sum()
    assert total == pytest.approx(brute_force_least(distances.astype(np.float64)), rel=1e-5)


def test_items_that_come_later_take_the_nearest_codes_that_are_free():
    rows = VECTORS[:1] + 1e-3 * RNG.normal(size=(7, 6)).astype(np.float32)
    taken = encode_distinct(QUANTIZER, rows[:3])
    lonely = VECTORS[40:41]
    found = encode_distinct(QUANTIZER, np.concatenate([rows[3:], lonely]), taken=taken)
    nearest, rest = QUANTIZER.encode_with_rest(rows[3:])
    np.testing.assert_array_equal(found[4], QUANTIZER.encode(lonely)[0])
    assert code_statistics(np.concatenate([taken, found]), 8).collision_rate == 0.0
    free = np.setdiff1d(np.arange(8), taken[taken[:, 0] == nearest[0, 0], 1])
    distances = np.square(rest[:, None] - QUANTIZER.last_codebook[None]).sum(axis=-1)
    total = distances[np.arange(4), found[:4, 1]].sum()
    assert total == pytest.approx(
        brute_force_least(distances[:, free].astype(np.float64)), rel=1e-5
    )
    # Where no code is left, the nearest is shared.
    full = np.stack([np.full(8, nearest[0, 0]), np.arange(8)], axis=1)
    np.testing.assert_array_equal(encode_distinct(QUANTIZER, rows[3:], taken=full), nearest)


def test_with_more_items_than_codes_in_a_prefix_the_rest_share():
    rows = np.tile(VECTORS[:1], (11, 1))
    found = encode_distinct(QUANTIZER, rows)
    assert len(np.unique(found[:, 1])) == 8
    assert code_statistics(found, 8).collision_rate == pytest.approx(3 / 11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QUANTIZER.encode(VECTORS[:, :5]), "5 wide, the quantizer takes in_dim=6"),
        (lambda: QUANTIZER.encode(np.where(VECTORS == VECTORS[4], np.inf, VECTORS)), "row 4 of"),
        (lambda: QUANTIZER.decode(np.zeros((2, 3), int)), "3 codes a row, .* num_levels=2"),
        (lambda: QUANTIZER.decode(np.array([[0, 0], [7, 8]])), "row 1, level 1: code 8 must be"),
        (lambda: QUANTIZER.decode(np.array([[0, -1]])), "row 0, level 1: code -1 must be"),
    ],
)
def test_what_it_cannot_take_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
