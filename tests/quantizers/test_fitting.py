"""Fitting: learns, resumes bit for bit, keeps all that changes in its state, k-means once."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.residual_quantizer import (
    CodebookAverages,
    residual_quantize,
    update_averages,
)
from recipe_jax.models.residual_codebooks import ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig
from recipe_jax.quantizers import fitting
from recipe_jax.quantizers.fitting import (
    ShuffledRows,
    catalogue_metrics,
    fit_residual_kmeans,
    fit_rq_vae,
)
from recipe_jax.quantizers.rq_vae_training import (
    RqVaeTraining,
    codebooks_of,
    init_rq_vae_state,
    make_optimizer,
    make_rq_vae_step,
)
from recipe_jax.training.run_folder import TrainingError
from recipe_jax.training.tracker import read_metrics

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(30, 6))[RNG.integers(0, 30, 200)] * 3).astype(np.float32)
VECTORS += 0.3 * RNG.normal(size=(200, 6)).astype(np.float32)
CFG = RqVaeConfig(in_dim=6, latent_dim=4, hidden_dims=(16,), num_levels=2, num_codes=8)
TRAINING = RqVaeTraining(num_epochs=6, batch_size=64, reset_epochs=4, learning_rate=1e-2)
FN, PARAMS = purify(RqVae(CFG, rngs=nnx.Rngs(0)))


def train(run, training=TRAINING, **changes):
    settings = {"seed": 0, "show_progress": False, **changes}
    return fit_rq_vae(VECTORS, CFG, training, run=run, **settings)


def first_state(training):
    """And the step that goes on from it; the first one has a learning rate of zero."""
    optimizer = make_optimizer(FN, training, num_steps=10)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = init_rq_vae_state(params, optimizer, jax.random.key(0), rows=64)
    return state, make_rq_vae_step(FN, optimizer, training, steps_per_epoch=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, its folder, and of how many rows k-means made codebooks."""
    calls, real = [], fitting.residual_kmeans_codebooks

    def counted(*arguments, **settings):
        calls.append(len(arguments[0]))
        return real(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "residual_kmeans_codebooks", counted)
        folder = tmp_path_factory.mktemp("whole")
        return train(folder), folder, calls


def test_residual_kmeans_is_a_quantizer_that_brings_vectors_back():
    cfg = ResidualCodebooksConfig(in_dim=6, num_levels=2, num_codes=8)
    quantizer = fit_residual_kmeans(VECTORS, cfg, seed=0)
    found = catalogue_metrics(quantizer, VECTORS)
    assert found["usage_0"] == found["usage_1"] == 1.0
    assert found["reconstruction_error"] < 0.25
    again = fit_residual_kmeans(VECTORS, cfg, seed=0)
    np.testing.assert_array_equal(quantizer.params["codewords"], again.params["codewords"])


def test_running_means_are_updated_by_the_assignment_of_the_step_and_by_nothing_else():
    state, step = first_state(dataclasses.replace(TRAINING, decay=0.75, dead_below=0.0))
    state, _ = step(state, VECTORS[:64])
    latents = FN.bind(PARAMS).latents(jnp.asarray(VECTORS[:64]))
    quantized = residual_quantize(latents, codebooks_of(PARAMS))
    before = CodebookAverages(codebooks_of(PARAMS), jnp.full((2, 8), 8.0))
    expected = update_averages(before, quantized, decay=0.75)
    assert_close(codebooks_of(state.params), expected.codebooks, "gradient")
    assert_close(state.opt_state.counts, expected.counts)
    state, _ = step(state, VECTORS[:64])
    for part in ("encoder", "decoder"):
        assert np.any(state.params[part]["output"]["kernel"] != PARAMS[part]["output"]["kernel"])


def test_with_the_codebook_loss_the_optimizer_moves_the_codewords():
    training = dataclasses.replace(TRAINING, codebook="loss", dead_below=0.0)
    state, step = first_state(training)
    for _ in range(2):
        state, metrics = step(state, VECTORS[:64])
    moved = np.asarray(codebooks_of(state.params) - codebooks_of(PARAMS))
    assert 0 < np.abs(moved).max() < 1.1 * TRAINING.learning_rate  # a step of Adam
    terms = metrics.terms
    expected = terms["reconstruction"] + terms["codebook"] + 0.25 * terms["commitment"]
    assert float(metrics.loss) == pytest.approx(float(expected), rel=1e-5)


def test_dead_codes_are_reset_at_the_end_of_early_epochs_alone():
    training = dataclasses.replace(TRAINING, dead_below=0.5, reset_epochs=1, decay=0.0)
    state, step = first_state(training)
    same = np.tile(VECTORS[:1], (64, 1))  # one code of each level is taken, all others are dead
    state, metrics = step(state, same)
    assert (float(metrics.terms["num_reset"]), int((state.opt_state.counts == 0).sum())) == (0, 14)
    before = np.asarray(codebooks_of(state.params))
    state, metrics = step(state, VECTORS[:64])  # the end of the first epoch
    assert metrics.terms["num_reset"] > 0
    assert np.any(np.asarray(codebooks_of(state.params)) != before)
    for _ in range(2):  # the end of the second one included
        state, metrics = step(state, same)
        assert metrics.terms["num_reset"] == 0


def test_every_epoch_has_the_statistics_of_the_whole_catalogue(whole):
    found, folder, _ = whole
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] != "train"]
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18]
    expected = catalogue_metrics(found.quantizer, VECTORS)
    assert {name: rows[-1][name] for name in expected} == expected
    assert rows[-1]["reconstruction_error"] < 0.7 * rows[0]["reconstruction_error"]
    assert rows[-1]["usage_0"] > 0.9


def state_bytes(found):
    """Parameters, codebooks, what the optimizer remembers and the counts of codes."""
    state = found.result.state
    leaves = jax.tree.leaves((state.params, state.opt_state, state.step))
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves)


def test_killed_it_resumes_bit_identically_and_never_runs_kmeans_again(
    whole, tmp_path, monkeypatch
):
    """The known fault: k-means hidden in a forward pass, and run again on resume."""
    program = f"""
import os, signal, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]}
import test_fitting
from pathlib import Path
take = test_fitting.ShuffledRows.__next__
def deadly(self):
    if self._position == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self)
test_fitting.ShuffledRows.__next__ = deadly
test_fitting.train(Path({str(tmp_path)!r}))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    def never(*arguments, **settings):
        raise AssertionError("k-means ran again")

    monkeypatch.setattr(fitting, "residual_kmeans_codebooks", never)
    resumed = train(tmp_path)
    uninterrupted, folder, calls = whole
    assert calls == [200]  # once, of all rows
    assert state_bytes(resumed) == state_bytes(uninterrupted)
    kept = ("step", "split", "loss", "reconstruction_error", "usage_0", "collision_rate")
    histories = [
        [[row.get(name) for name in kept] for row in read_metrics(run / "metrics.jsonl")]
        for run in (tmp_path, folder)
    ]
    assert histories[0] == histories[1]


def test_a_run_goes_on_only_with_what_it_began_with(whole, tmp_path):
    _, folder, _ = whole
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(TrainingError, match="seed=0, not 1"):
        train(tmp_path, seed=1)
    with pytest.raises(TrainingError, match="scaling='columns', not 'none'"):
        train(tmp_path, scaling="none")
    with pytest.raises(TrainingError, match="holds a run with vectors="):
        fit_rq_vae(VECTORS[::-1].copy(), CFG, TRAINING, run=tmp_path, seed=0)


def test_batches_remember_where_they_are_and_an_epoch_has_every_row_at_most_once():
    batches = ShuffledRows(VECTORS, batch_size=64, seed=3)
    seen = [next(batches) for _ in range(7)]
    epoch = np.concatenate(seen[:3])
    assert len(np.unique(epoch, axis=0)) == 192
    assert np.any(seen[0] != seen[3])
    later = ShuffledRows(VECTORS, batch_size=64, seed=3)
    later.set_state({"position": 5})
    np.testing.assert_array_equal(next(later), seen[5])
    assert later.get_state() == {"position": 6}
    assert ShuffledRows(VECTORS, batch_size=500, seed=0).batch_size == 200


@pytest.mark.parametrize(
    ("vectors", "changes", "message"),
    [
        (VECTORS[:7], {}, "7 rows are too few for 8 codes"),
        (VECTORS[:, :5], {}, "5 wide, the configuration has in_dim=6"),
        (np.where(np.arange(200)[:, None] == 9, np.nan, VECTORS), {}, "row 9 of the vectors"),
        (VECTORS, {"decay": 1.0}, "decay=1.0 must be at least 0 and below 1"),
        (VECTORS, {"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        (VECTORS, {"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        (VECTORS, {"dead_below": -1.0}, "dead_below=-1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_a_folder_is_made(
    vectors, changes, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        training = dataclasses.replace(TRAINING, **changes)
        fit_rq_vae(vectors, CFG, training, run=tmp_path / "run", seed=0)
    assert not (tmp_path / "run").exists()
