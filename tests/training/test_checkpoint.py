"""Checkpoints give back what was saved, on any mesh, or say in one line why they cannot."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import make_model, make_optimizer

from recipe_jax.functional import purify
from recipe_jax.sharding import make_mesh
from recipe_jax.training.checkpoint import CheckpointError, Checkpoints, Progress
from recipe_jax.training.fingerprints import fingerprint, fingerprints
from recipe_jax.training.state import TrainState, init_sharded, init_state

KEY = jax.random.key(5)


def make_state(optimizer=None, *, seed: int = 0) -> TrainState:
    _, params = purify(make_model())
    params = jax.tree.map(lambda leaf: leaf + seed, params)
    return init_state(params, optimizer or make_optimizer(), KEY)


def to_host(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf: (
            np.array(jax.random.key_data(leaf))
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else np.array(leaf)
        ),
        state,
    )


def assert_same(state: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, to_host(state), expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 3 (best) and 7, and what step 7 holds."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, config={"width": 8}) as checkpoints:
        checkpoints.save(3, make_state(), Progress(best_step=3, best_value=0.5))
        progress = Progress(12.5, {"position": [7, "a"]}, 3, 0.5, 1)
        checkpoints.save(7, make_state(seed=1), progress)
        checkpoints.finish()
    return folder


def test_round_trip_keeps_arrays_structure_and_progress(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        state, progress = checkpoints.restore(make_state())
        assert checkpoints.config() == {"width": 8}
    assert_same(state, to_host(make_state(seed=1)))
    assert 0 in state.params["down"]  # an integer key stays an integer
    assert progress == Progress(12.5, {"position": [7, "a"]}, 3, 0.5, 1)
    assert jax.random.key_impl(state.key) == jax.random.key_impl(KEY)


def test_parameters_alone_come_from_the_best_step(saved):
    fn, params = purify(make_model())
    with Checkpoints(saved, read_only=True) as checkpoints:
        best, latest = checkpoints.restore_params(fn.shapes), checkpoints.restore_params(params, 7)
    jax.tree.map(np.testing.assert_array_equal, best, params)
    np.testing.assert_array_equal(latest["up"], params["up"] + 1)


@pytest.mark.parametrize("spec", ["fsdp=4,tensor=2", "data=8", "data=2,fsdp=4"])
def test_restores_onto_another_mesh(tmp_path, spec):
    _, state, _ = init_sharded(make_model, make_optimizer(), KEY, make_mesh("data=2,fsdp=4"))
    expected = to_host(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, Progress())
        checkpoints.finish()
        _, like, shardings = init_sharded(make_model, make_optimizer(), KEY, make_mesh(spec))
        restored, _ = checkpoints.restore(like)
    assert_same(restored, expected)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored.params) == shardings.params


def test_a_save_is_what_the_state_was_although_training_goes_on(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    params = {"w": jax.random.normal(KEY, (1000, 1000)), "v": jnp.ones((2000, 300))}
    state = init_state(params, optax.sgd(0.1), KEY)
    expected = to_host(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, Progress())
        for _ in range(10):
            params = change(params)
        jax.block_until_ready(params)
        checkpoints.finish()
        restored, _ = checkpoints.restore(
            TrainState(params, state.opt_state, state.step, state.key)
        )
    assert_same(restored, expected)


def test_keeps_the_latest_and_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, make_state(), Progress(best_step=min(step, 2)))
        checkpoints.finish()
        assert checkpoints.steps() == [2, 4, 5]


def test_saving_a_step_again_renews_its_progress_only(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_state(), Progress())
        checkpoints.save(5, make_state(seed=1), Progress(best_step=5, best_value=2.0))
        state, progress = checkpoints.restore(make_state())
    assert_same(state, to_host(make_state()))
    assert (progress.best_step, progress.best_value) == (5, 2.0)


def test_half_written_steps_are_removed_and_ignored(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    half = folder / "9.orbax-checkpoint-tmp"
    shutil.copytree(folder / "7", half)
    (half / "run" / "metadata").unlink()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [3, 7]
    assert half.exists()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [3, 7]
        checkpoints.restore(make_state())
        checkpoints.save(9, make_state(), Progress())
        checkpoints.finish()
    assert not half.exists()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "arrays missing": lambda step: shutil.rmtree(step / "params"),
    "a damaged manifest": lambda step: flip_a_bit(step / "params" / "manifest.ocdbt"),
    "record cut short": lambda step: (step / "run" / "metadata").write_text('{"format"'),
    "a foreign record": lambda step: (step / "run" / "metadata").write_text('{"step": 7}'),
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_one_line_with_the_folder_and_the_way_out(saved, tmp_path, damage, capfd):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    damage(folder / "7")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(make_state())
        message = str(caught.value)
        assert message.startswith(f"{folder / '7'}: the checkpoint ")
        assert message.endswith("delete this folder to go on from step 3")
        assert "\n" not in message and len(message) < 500
        state, _ = checkpoints.restore(make_state(), step=3)
    assert_same(state, to_host(make_state()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "is damaged: params/w is not what was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged or no checkpoint"),
        (lambda path: path.unlink(), "is damaged or no checkpoint"),
    ],
    ids=["flipped bit", "cut short", "missing"],
)
def test_damage_to_the_numbers_themselves_is_seen(tmp_path, damage, reason, capfd):
    params = {"w": jax.random.normal(KEY, (300, 300)), "v": jax.random.normal(KEY, (300, 200))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, init_state(params, optax.adam(0.1), KEY), Progress())
        checkpoints.finish()
        files = [path for path in (tmp_path / "1" / "params").rglob("*") if path.is_file()]
        damage(max(files, key=lambda path: path.stat().st_size))
        with pytest.raises(CheckpointError, match=reason):
            checkpoints.restore_params(params)
    assert capfd.readouterr().err == ""


def test_another_model_is_named_by_its_first_difference(saved):
    wider = {"up": jnp.zeros((8, 33)), "down": {0: jnp.zeros((32, 8))}, "bias": jnp.zeros(8)}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), purify(make_model())[1])
    with Checkpoints(saved, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=r"params/up is float32\[8, 32\], not .*8, 33"):
            checkpoints.restore_params(wider)
        with pytest.raises(CheckpointError, match=r"is float32\[8\], not bfloat16\[8\]"):
            checkpoints.restore_params(half)
        with pytest.raises(CheckpointError, match=r"only this model has params/extra"):
            checkpoints.restore_params({**purify(make_model())[1], "extra": jnp.zeros(1)})
        with pytest.raises(
            CheckpointError, match="another model: only the checkpoint has opt_state"
        ):
            checkpoints.restore(make_state(optax.sgd(0.1)))


def test_missing_checkpoints_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoints(tmp_path / "absent", read_only=True)
    with Checkpoints(saved, read_only=True) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"no checkpoint of step 5; there are steps \[3, 7\]"
        ):
            checkpoints.restore(make_state(), step=5)


def test_a_full_disk_is_found_before_anything_is_written(saved, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(CheckpointError, match=r"No space left.*last good one is step 7"):
            checkpoints.save(9, make_state(), Progress())
    assert sorted(path.name for path in folder.iterdir()) == ["3", "7"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be opened \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "checkpoints")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "complex64", "uint16"])
def test_a_fingerprint_sees_every_change_of_one_element(dtype):
    array = jnp.arange(24).reshape(2, 3, 4).astype(dtype)
    seen = {int(fingerprint(array))}
    for place in np.ndindex(array.shape):
        changed = array.at[place].set(~array[place] if dtype == "bool" else array[place] + 3)
        seen.add(int(fingerprint(changed)))
    assert len(seen) >= 24
    assert int(fingerprint(array)) != int(fingerprint(array[:, ::-1]))


def test_a_fingerprint_does_not_depend_on_the_mesh():
    _, whole = purify(make_model())
    _, split, _ = init_sharded(make_model, make_optimizer(), KEY, make_mesh("fsdp=4,tensor=2"))
    placed = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding), whole, split.params
    )
    assert fingerprints({"up": placed["up"]}) == fingerprints({"up": whole["up"]})
