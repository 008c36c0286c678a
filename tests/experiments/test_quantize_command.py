"""`quantize`: what it leaves behind, that it resumes, and what it refuses."""

import json

import numpy as np
import pytest
from command_line import contents, headline, refused

from experiments.semantic_ids.__main__ import main
from recipe_jax.quantizers.quantizer_folder import load_quantizer
from recipe_jax.training.tracker import read_metrics

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(60, 5)).astype(np.float32)
VECTORS[30:33] = VECTORS[0]  # nothing tells these four apart
SMALL = ["--num-levels", "3", "--num-codes", "8", "--kmeans-iterations", "3", "--no-progress"]
TRAINED = ["--hidden-dims", "8", "--latent-dim", "3", "--epochs", "2", "--batch-size", "32"]


@pytest.fixture
def vectors(tmp_path):
    np.save(tmp_path / "vectors.npy", VECTORS)
    return tmp_path / "vectors.npy"


def quantize(capsys, vectors, *arguments):
    given = ("quantize", "--catalogue", "none", "--vectors", vectors, *SMALL, *arguments)
    return headline(capsys, *given, main=main)


def test_residual_kmeans_leaves_a_quantizer_codes_pictures_and_a_record(capsys, vectors, tmp_path):
    run = tmp_path / "run"
    found = quantize(capsys, vectors, "--method", "residual-kmeans", "--run", run, "--seeds", "2")
    assert (found["n"], found["distinct_vectors"]) == (60, 57)
    assert found["nearest_collision_rate"] >= 3 / 60
    assert found["collision_rate"] == 0.0
    assert len(found["seed_agreement"]) == 3
    assert len(found["of_seeds"]) == 2
    with np.load(run / "codes.npz", allow_pickle=False) as arrays:
        ids, codes, nearest = arrays["ids"], arrays["codes"], arrays["nearest"]
    assert len(np.unique(codes, axis=0)) == 60
    rows = VECTORS[ids.astype(int)]  # ids travel with their rows
    np.testing.assert_array_equal(load_quantizer(run / "quantizer").encode(rows), nearest)
    assert ids.tolist() != sorted(ids.tolist(), key=int)  # in a random order
    assert {path.name for path in (run / "plots").iterdir()} == {"code_tree.png", "code_usage.png"}
    record = json.loads((run / "record.json").read_text())
    assert record["command"].startswith("python -m experiments.semantic_ids quantize")
    assert str(tmp_path) not in json.dumps(record)
    (row,) = read_metrics(run / "metrics.jsonl")
    assert row["collision_rate"] == pytest.approx(found["nearest_collision_rate"])


def test_rq_vae_trains_and_the_same_command_finds_it_done(capsys, vectors, tmp_path):
    arguments = (
        "--method",
        "rq-vae",
        *TRAINED,
        "--run",
        tmp_path / "run",
        "--assignment",
        "nearest",
    )
    found = quantize(capsys, vectors, *arguments)
    assert found["step"] == 2
    assert found["collision_rate"] == found["nearest_collision_rate"]
    rows = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if r["split"] == "validation"]
    assert [row["step"] for row in rows] == [1, 2]
    before = contents(tmp_path / "run" / "quantizer")
    again = quantize(capsys, vectors, *arguments)
    assert again["reconstruction_error"] == found["reconstruction_error"]
    assert contents(tmp_path / "run" / "quantizer") == before


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (VECTORS[:5], [], "5 rows are too few for 8 codes"),
        (np.where(VECTORS == VECTORS[3], np.nan, VECTORS), [], "row 4 (id='3'): column 1 is nan"),
        (VECTORS.astype(int), [], "must be a matrix of floating-point numbers"),
        (VECTORS[0], [], "must be a matrix of floating-point numbers"),
        (VECTORS, ["--epochs", "0"], "--epochs 0 must be at least 1"),
        (VECTORS, ["--seed", "-1"], "--seed -1 must be from 0"),
        (VECTORS, ["--minutes", "0"], "--minutes 0.0 must be above 0"),
    ],
)
def test_bad_input_is_one_line_and_no_folder(rows, arguments, message, capsys, tmp_path):
    np.save(tmp_path / "vectors.npy", rows)
    line = refused(
        capsys,
        *("quantize", "--catalogue", "none", "--vectors", tmp_path / "vectors.npy"),
        *("--run", tmp_path / "run"),
        *(*SMALL, *arguments),
        main=main,
    )
    assert message in line
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_matrix_and_catalogues_that_are_none_are_refused(capsys, tmp_path):
    (tmp_path / "vectors.npy").write_bytes(b"not an array")
    alone = ("quantize", "--catalogue", "none", "--vectors")
    line = refused(capsys, *alone, tmp_path / "vectors.npy", main=main)
    assert "vectors.npy: not a whole .npy or .npz file" in line
    line = refused(capsys, *alone, tmp_path / "missing.npy", main=main)
    assert "missing.npy: no such file" in line
    line = refused(capsys, "quantize", "--catalogue", "mine", main=main)
    assert "mine: name must end in .jsonl" in line


def test_a_table_of_ones_own_gets_codes_by_its_words(capsys, tmp_path):
    words = ("red", "blue", "green", "lip", "nail", "hair", "matte", "gloss")
    rows = [
        {"sku": f"s{i}", "name": f"{words[i % 3]} {words[3 + i % 2]} {words[6 + i % 2]} no {i % 7}"}
        for i in range(40)
    ]
    table = tmp_path / "shop.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("quantize", "--catalogue", table, "--id-field", "sku", "--text-fields", "name")
    found = headline(
        capsys,
        *given,
        *("--method", "residual-kmeans", "--dim", "4", "--run", tmp_path / "run", *SMALL),
        main=main,
    )
    assert found["n"] == 40
    with np.load(tmp_path / "run" / "codes.npz", allow_pickle=False) as arrays:
        assert sorted(arrays["ids"].tolist()) == sorted(row["sku"] for row in rows)
    table.write_text(table.read_text() + json.dumps(rows[3]) + "\n")
    assert "shop.jsonl: row 41: sku='s3' occurred in row 4" in refused(capsys, *given, main=main)


@pytest.mark.real_data
def test_beauty_has_every_code_in_use_and_an_id_for_each_item(capsys, tmp_path):
    found = headline(
        capsys,
        *("quantize", "--method", "residual-kmeans", "--dim", "16", "--kmeans-iterations", "3"),
        *("--run", tmp_path / "run"),
        main=main,
    )
    assert found["n"] == 12_101
    assert min(found[f"usage_{level}"] for level in range(3)) >= 0.95
    assert found["collision_rate"] <= 0.03
