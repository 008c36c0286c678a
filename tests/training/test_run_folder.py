"""A run folder belongs to one configuration and is written whole or not at all."""

import errno
import json
import os

import pytest

from recipe_jax.training.run_folder import RunFolder, TrainingError, write_text


def test_claiming_writes_the_config_once(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    folder.claim({"seed": 1, "axes": ("embed", "mlp")})
    folder.claim({"axes": ["embed", "mlp"], "seed": 1})
    assert json.loads(folder.config.read_text()) == {"seed": 1, "axes": ["embed", "mlp"]}
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_without_a_config_only_the_folder_is_made(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("config", [{"seed": 2}, {}, {"seed": 1, "width": 8}])
def test_another_configuration_is_refused_by_field(tmp_path, config):
    RunFolder(tmp_path).claim({"seed": 1})
    field = "width" if "width" in config else "seed"
    with pytest.raises(TrainingError, match=f"holds a run with {field}=.*choose another --run"):
        RunFolder(tmp_path).claim(config)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_an_unreadable_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match=r"config\.json: not .*JSON"):
        RunFolder(tmp_path).claim({"seed": 1})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for config in (None, {"seed": 1}):
        with pytest.raises(TrainingError, match=r"run: cannot write \(Not a directory\)"):
            RunFolder(tmp_path / "file" / "run").claim(config)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_refused_write_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "config.json"
    path.write_text("old")

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(TrainingError) as caught:
        write_text(path, "new")
    assert str(caught.value).startswith(f"{path}: cannot write ({os.strerror(code)})")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
