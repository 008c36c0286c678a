"""`vectors`: texts and histories side by side, of training items alone, for `quantize`."""

import functools
import json
from pathlib import Path

import numpy as np
from command_line import headline as headline_of
from command_line import refused as refused_of

from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.codes_file import read_codes

headline = functools.partial(headline_of, main=main)
refused = functools.partial(refused_of, main=main)


def write_shop(folder: Path, last: str = "s9") -> list[str]:
    words = "red blue lip nail matte gloss".split()
    rows = [{"id": f"s{i}", "title": f"{words[i % 6]} {words[i // 2 % 6]}"} for i in range(12)]
    (folder / "shop.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    lines = [" ".join([f"u{u}", *(f"s{(u + s) % 12}" for s in range(6))]) for u in range(11)]
    (folder / "users.txt").write_text("\n".join([*lines, f"u s0 s1 s2 s3 {last}"]) + "\n")
    files = ["--catalogue", str(folder / "shop.jsonl"), "--histories", str(folder / "users.txt")]
    return ["vectors", *files, "--dim", "4", "--history-dim", "3", "--out", str(folder / "v.npz")]


def test_both_parts_have_length_one_and_quantize_takes_them(tmp_path, capsys):
    command = write_shop(tmp_path)
    found = headline(capsys, *command, "--text-weight", 0.5)
    assert found == {"n": 12, "dim": 7, "items_without_history": 0, "items_without_text": 0}
    with np.load(tmp_path / "v.npz") as held:
        ids, vectors = held["ids"].tolist(), held["vectors"]
    assert ids == [f"s{i}" for i in range(12)]
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :3], axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 3:], axis=1), 0.5, atol=1e-5)
    codes = ("--vectors", tmp_path / "v.npz", "--num-codes", 3, "--method", "residual-kmeans")
    made = headline(
        capsys, "quantize", *command[1:3], *codes, "--run", tmp_path / "codes", "--scaling", "none"
    )
    assert made["n"] == 12


def test_items_of_histories_alone_need_no_text(tmp_path, capsys):
    command = write_shop(tmp_path, "s99")
    with (tmp_path / "shop.jsonl").open("a") as shop:
        shop.write('{"id": "unsold", "title": "red"}\n')
    found = headline(capsys, *command, "--items", "histories")
    assert (found["n"], found["items_without_text"]) == (13, 1)
    with np.load(tmp_path / "v.npz") as held:
        ids, vectors = held["ids"].tolist(), held["vectors"]
    assert sorted(ids) == sorted([*(f"s{i}" for i in range(12)), "s99"])
    has_text = np.array(ids) != "s99"
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 3:], axis=1), has_text, atol=1e-5)
    alone = ("--catalogue", "none", "--vectors", tmp_path / "v.npz", "--num-codes", 3)
    run = tmp_path / "codes"
    headline(capsys, "quantize", *alone, "--method", "residual-kmeans", "--run", run)
    assert "to v.npz: 3 levels" in (run / "quantizer" / "README.md").read_text()
    assert sorted(read_codes(run, ids).items) == sorted(ids)


def test_what_is_left_out_for_the_test_is_not_looked_at(tmp_path, capsys):
    vectors = []
    for last in ("s9", "s5"):
        headline(capsys, *write_shop(tmp_path, last))
        with np.load(tmp_path / "v.npz") as held:
            vectors.append(held["vectors"])
    np.testing.assert_array_equal(*vectors)


def test_items_of_another_catalogue_are_refused_and_nothing_is_written(tmp_path, capsys):
    command = write_shop(tmp_path, "s99")
    line = refused(capsys, *command)
    assert "users.txt: item 's99' and 0 others are not in" in line
    assert not (tmp_path / "v.npz").exists()
    (tmp_path / "shop.jsonl").write_text('{"id": "other", "title": "red"}\n')
    line = refused(capsys, *command, "--items", "histories")
    assert "is not in the catalogue, nor is any of the others" in line
    assert not (tmp_path / "v.npz").exists()
    line = refused(capsys, *command[:-1], tmp_path / "v.csv")
    assert line.endswith("v.csv must end in .npz")
