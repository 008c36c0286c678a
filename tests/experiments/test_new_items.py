"""Items that no training saw: kept from it, found all the same, and given places by a fallback."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from circle_walkers import circle_walkers
from command_line import TINY
from command_line import headline as headline_of
from command_line import refused as refused_of

from experiments.semantic_ids import new_items as command
from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.catalogue_vectors import item_vectors
from experiments.semantic_ids.choices import Choices, as_json
from experiments.semantic_ids.codes_file import read_codes
from experiments.semantic_ids.datasets import new_items, read_dataset
from experiments.semantic_ids.embedding_retrieval import fit_embedding_retrieval, with_fallback
from experiments.semantic_ids.generative_task import exact_scorer
from experiments.semantic_ids.protocol import target_ranks
from experiments.semantic_ids.recommending import Fallback, recommend
from experiments.semantic_ids.train import TASKS, Flags, training_histories
from experiments.semantic_ids.trained import Recommender, load_recommender
from recipe_jax.data.array_files import read_vectors
from recipe_jax.data.catalogues import Catalogue
from recipe_jax.data.files import DataError
from recipe_jax.data.interactions import Queries, histories_of
from recipe_jax.data.recipes import split_of
from recipe_jax.item_beam_search import Available, search_items
from recipe_jax.models.generative_recommender import History
from recipe_jax.prefix_index import build_prefix_index, count_allowed
from recipe_jax.semantic_ids import format_id

ITEMS = 40
NAMES = tuple(map(str, range(ITEMS)))
ALL = np.ones(ITEMS, bool)
NEW = {name for name in NAMES if split_of(name) == "test"}
CODES = ["--num-levels", "2", "--num-codes", "8", "--kmeans-iterations", "3", "--no-progress"]
FEW = ["--batch-size", "8", "--max-items", "8", "--validation-users", "20", "--dropout", "0"]


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    return headline_of(capsys, *arguments, main=main)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refused_of(capsys, *arguments, main=main)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk along a circle of items, one step at a time; one who has new items alone."""
    path = tmp_path_factory.mktemp("data") / "users.txt"
    lines = ["alone " + " ".join(sorted(NEW)), *circle_walkers(80, num_items=ITEMS, prefix="")]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each item its place on the circle: neighbours are alike."""
    path = tmp_path_factory.mktemp("vectors") / "given.npy"
    turn = 2 * np.pi * np.arange(ITEMS) / ITEMS
    np.save(path, np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32))
    return path


def quantize(vectors: Path, run: Path, *arguments: str) -> Path:
    given = ["quantize", "--catalogue", "none", "--vectors", str(vectors), "--run", str(run)]
    assert main([*given, "--method", "residual-kmeans", *CODES, *arguments]) == 0
    return run


@pytest.fixture(scope="module")
def codes(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(vectors, tmp_path_factory.mktemp("codes") / "run", "--new-items")


@pytest.fixture(scope="module")
def learned(users: Path, codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to walk on, past items that it never saw."""
    run = tmp_path_factory.mktemp("runs") / "learned"
    flags = ["train", "--model", "generative", "--new-items", "--data", users, "--codes", codes]
    steps = ["--steps", "100", "--evaluate-every", "100", "--learning-rate", "0.02"]
    given = [*flags, *TINY, *FEW, *steps, "--encoder-layers", "1", "--run", run]
    assert main([str(value) for value in given]) == 0
    return run


@pytest.fixture(scope="module")
def recommender(learned: Path) -> Recommender:
    return load_recommender(learned)


def fallback_of(recommender: Recommender, vectors: Path, share: float) -> Fallback:
    order = [int(name) for name in recommender.item_ids]
    return Fallback(fit_embedding_retrieval(np.load(vectors)[order], decay=0.5), share)


# Kept from all that is learned.


@pytest.mark.parametrize("model", ["sasrec", "generative"])
@pytest.mark.parametrize("learn_validation", [False, True])
def test_no_batch_holds_a_new_item(model: str, learn_validation: bool, users: Path, codes: Path):
    dataset = read_dataset(str(users))
    is_new = new_items(dataset.item_ids)
    assert {dataset.item_ids[item] for item in np.flatnonzero(is_new)} == NEW
    seen: set[int] = set()
    for seed in range(3):
        flags = Flags(
            model=model, data=str(users), codes=codes, new_items=True, seed=seed, batch_size=4,
            learn_validation=learn_validation,
        )  # fmt: skip
        histories = training_histories(flags, dataset)
        batches = iter(TASKS[model](flags, histories, dataset).batches)
        for _ in range(4):
            batch = next(batches)
            real = batch.segments > 0
            seen |= {*batch.items[real].tolist(), *batch.targets[real].tolist()}
    assert seen == set(np.flatnonzero(~is_new).tolist())
    assert "alone" not in histories.users


def test_ids_of_known_items_are_those_that_they_have_without_the_new(tmp_path: Path):
    rng = np.random.default_rng(0)
    for _ in range(10):
        order = rng.permutation(ITEMS)
        ids = np.array(NAMES)[order]
        is_new = np.array([name in NEW for name in ids])
        arrays = {"ids": ids, "codes": rng.integers(0, 3, (ITEMS, 2)), "is_new": is_new}
        np.savez(tmp_path / "codes.npz", num_codes=[3, 3], **arrays)
        item_ids = [NAMES[row] for row in rng.permutation(ITEMS)]
        whole = read_codes(tmp_path, item_ids, unseen=new_items(item_ids))
        known = {name: values[~is_new] for name, values in arrays.items()}
        np.savez(tmp_path / "codes.npz", num_codes=[3, 3], **known)
        alone = read_codes(tmp_path, [name for name in item_ids if name not in NEW])
        rows = [item_ids.index(name) for name in alone.items]
        assert whole.items == tuple(item_ids) and whole.sizes == alone.sizes
        np.testing.assert_array_equal(whole.codes[rows], alone.codes)
        texts = [format_id(row) for row in whole.codes]
        assert [texts[row] for row in rows] == [format_id(row) for row in alone.codes]


def test_what_new_items_are_like_changes_nothing_of_the_others(
    vectors: Path, codes: Path, tmp_path: Path
):
    changed = np.load(vectors)
    is_new = new_items(NAMES)
    changed[is_new] = np.random.default_rng(0).normal(size=(is_new.sum(), 2))
    np.save(tmp_path / "vectors.npy", changed)
    other = quantize(tmp_path / "vectors.npy", tmp_path / "run", "--new-items")
    with np.load(codes / "codes.npz") as one, np.load(other / "codes.npz") as two:
        known = ~one["is_new"]
        assert {*one["ids"][~known].tolist()} == NEW
        np.testing.assert_array_equal(one["codes"][known], two["codes"][known])
        assert (one["codes"] != two["codes"]).any()
        assert len(np.unique(two["codes"], axis=0)) == ITEMS
    rows = read_vectors(codes / "vectors.npz", NAMES)
    np.testing.assert_array_equal(rows, np.load(vectors))


def test_words_of_new_items_are_not_learned():
    texts = [f"item of group {i % 3} and {i % 5}" for i in range(ITEMS)]
    other = [f"novel{i} word" if NAMES[i] in NEW else text for i, text in enumerate(texts)]
    one, two = (
        item_vectors(Catalogue(NAMES, tuple(t), {}, ""), dim=3, seed=0, split=True)
        for t in (texts, other)
    )
    assert one.ids == two.ids
    np.testing.assert_array_equal(one.known.vectors, two.known.vectors)
    assert not two.vectors[two.is_new].any()  # not a word is known
    whole = item_vectors(Catalogue(NAMES, tuple(other), {}, ""), dim=3, seed=0)
    assert not whole.is_new.any() and not np.allclose(whole.vectors, two.vectors)


# Found all the same.


def search(
    recommender: Recommender,
    history: list[int],
    *,
    allowed: np.ndarray = ALL,
    excluded: tuple[int, ...] = (),
) -> list[int]:
    """All items that may be named, best first; one program for every call."""
    ids, cfg = recommender.ids, recommender.fn.bind(recommender.params).cfg
    index = build_prefix_index(ids.codes, ids.sizes)
    padded = np.zeros((1, 4, len(ids.sizes)), np.int32)
    padded[0, : len(history)] = ids.codes[history]
    found = search_items(
        recommender.fn,
        recommender.params,
        jnp.full((1, 1), cfg.start_token, jnp.int32),
        jnp.ones(1, jnp.int32),
        indexes=[index],
        level_tokens=cfg.level_tokens,
        num_beams=ITEMS,
        available=Available(
            counts=(count_allowed(index, jnp.asarray(allowed)[None]),),
            excluded=jnp.array([[*excluded, *[-1] * (4 - len(excluded))]]),
        ),
        context=History(jnp.asarray(padded), jnp.array([len(history)])),
    )
    return [item for item in np.asarray(found.items)[0].tolist() if item >= 0]


def test_every_new_item_can_be_found_and_none_that_was_deleted(recommender: Recommender):
    items = {*range(ITEMS)}
    assert {recommender.item_ids[i] for i in np.flatnonzero(recommender.is_new)} == NEW
    for item in np.flatnonzero(recommender.is_new).tolist():
        alone = np.arange(ITEMS) == item
        assert search(recommender, [2, 3], allowed=alone) == [item]
        assert {*search(recommender, [2, 3], allowed=~alone)} == items - {item}
        assert {*search(recommender, [2], excluded=(item,))} == items - {item}
        # In a history it is read as any other.
        assert {*search(recommender, [2, item], excluded=(2, item))} == items - {2, item}


def test_beams_as_wide_as_the_catalogue_and_every_item_read_agree(recommender: Recommender):
    rows = ([0, 1, 2], [3])
    histories = histories_of(["a", "b"], rows, ordered=True)
    exact = exact_scorer(recommender.fn, recommender.params, recommender.ids)(histories)
    for scores, history in zip(exact, rows, strict=True):
        found = search(recommender, history, excluded=tuple(history))
        scores[history] = -np.inf
        assert found == np.argsort(-scores, kind="stable")[: ITEMS - len(history)].tolist()


# The fallback.


def test_retrieval_is_the_cosine_to_the_mean_of_what_came_last():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4)).astype(np.float32)
    vectors[3] = 0.0
    histories = histories_of(["a", "b", "c"], [[0, 1, 2], [5, 3], [3]], ordered=True)
    unit = [row / max(np.linalg.norm(row), 1e-9) for row in vectors]
    scores = fit_embedding_retrieval(vectors, decay=0.5).score(histories)
    mean = unit[2] + 0.5 * unit[1] + 0.25 * unit[0]
    expected = [row @ mean / np.linalg.norm(mean) for row in unit]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores[1], [row @ unit[5] for row in unit], rtol=1e-5, atol=1e-6)
    assert not scores[2].any()


def constant(values: np.ndarray):
    return lambda histories: np.tile(values, (len(histories.users), 1))


def test_as_a_scorer_it_reserves_the_same_places_and_leaves_the_rest_alone():
    scores, cosines = np.arange(12.0)[::-1].copy(), np.arange(12.0)
    is_new = np.isin(np.arange(12), [1, 10, 11])
    histories = histories_of(["a"], [[0, 11]], ordered=True)

    def order(share: float, num_places: int = 6) -> list[int]:
        mixed = with_fallback(
            constant(scores), constant(cosines), is_new, share=share, num_places=num_places
        )(histories)[0]
        assert not mixed[[0, 11]].any()  # known
        assert (np.sort(mixed)[-num_places:] == np.arange(1, num_places + 1)).all()
        return np.argsort(-mixed)[:num_places].tolist()

    assert order(0.0) == [1, 2, 3, 4, 5, 6]
    assert order(0.5) == [1, 10, 2, 3, 4, 5]  # one place for 10; 1 has its own by merit
    assert order(1.0) == [10, 1, 2, 3, 4, 5]
    # All items equal: no item's rank is better for its number being low, the target's included.
    flat = with_fallback(constant(np.zeros(12)), constant(cosines), is_new, share=0.5, num_places=4)
    queries = Queries(histories, np.array([9], np.int32))
    assert target_ranks(flat, queries, num_items=12).tolist() == [(5 + 10) / 2]


def test_what_is_no_share_and_no_new_item_is_refused():
    score = constant(np.zeros(3))
    with pytest.raises(ValueError, match=r"share=1\.5 must be from 0 to 1"):
        with_fallback(score, score, np.ones(3, bool), share=1.5)
    with pytest.raises(ValueError, match="none of 3 items is new"):
        with_fallback(score, score, np.zeros(3, bool), share=0.5)


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (5, 0.2), (10, 0.2), (10, 0.5), (10, 1.0)])
def test_new_items_get_their_places_and_the_model_has_the_others(
    k: int, share: float, recommender: Recommender, vectors: Path
):
    history = [name for name in NAMES[2:7] if name not in NEW]
    fallback = fallback_of(recommender, vectors, share)
    found = recommend(recommender, history, k=k, fallback=fallback).items
    names = [row.item for row in found]
    assert len(set(names)) == k and not set(names) & set(history)
    by_fallback = [place for place, row in enumerate(found, start=1) if row.by_fallback]
    due = [p for p in range(1, k + 1) if int(share * p) > int(share * (p - 1))]
    assert by_fallback == due[: len(NEW)]
    assert {names[place - 1] for place in by_fallback} <= NEW
    # Nearest first, each with its cosine.
    cosines = [found[place - 1].score for place in by_fallback]
    assert cosines == sorted(cosines, reverse=True)
    own = [row for row in found if not row.by_fallback]
    plain = {row.item: row.score for row in recommend(recommender, history, k=k).items}
    assert [row.item for row in own] == [name for name in plain if name in {r.item for r in own}]
    assert all(row.score == plain[row.item] for row in own)
    assert recommend(recommender, history, k=k, fallback=fallback).items == found
    # A new item of the history is read, and gets no place.
    known = min(NEW)
    found = recommend(recommender, [*history, known], k=k, fallback=fallback).items
    assert known not in {row.item for row in found}


def test_a_fallback_that_does_not_fit_is_refused(recommender: Recommender, vectors: Path):
    fallback = fallback_of(recommender, vectors, 0.5)

    def refuse(message: str, model: Recommender = recommender, **changed: object) -> None:
        with pytest.raises(ValueError, match=message):
            recommend(model, ["1"], k=5, fallback=fallback._replace(**changed))

    refuse(r"share=-0\.1 must be from 0 to 1", share=-0.1)
    refuse("has 3 vectors, must have one for each of the model's 40", retrieval=(
        fit_embedding_retrieval(np.eye(3, dtype=np.float32))
    ))  # fmt: skip
    refuse("none of 40 items is new", recommender._replace(is_new=np.zeros(ITEMS, bool)))


# From the command line.


def test_it_is_measured_who_finds_them(
    learned: Path, users: Path, codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    choices, record = tmp_path / "choices.json", tmp_path / "record.json"
    choices.write_text(json.dumps({"choices": as_json(Choices(ease_penalty=1.0))}))
    given = ["new_items", "--run", learned, "--vectors", codes / "vectors.npz", "--data", users]
    given += ["--choices", choices, "--exact-users", "3", "--record", record, "--split", "test"]
    given += ["--runs", learned]
    found = headline(capsys, *given)
    assert found["num_new_items"] == len(NEW) and found["num_items"] == ITEMS
    systems, shares = found["systems"], found["shares"]
    dataset = read_dataset(str(users))
    is_new = new_items(dataset.item_ids)
    asked = is_new[dataset.split.test.targets]
    # While it was trained it was asked for the others alone.
    trained = json.loads((learned / "record.json").read_text())
    assert trained["n"] == (~is_new[dataset.split.validation.targets]).sum()
    for row in systems.values():
        parts = [row[kind] for kind in ("new_target", "old_target", "all")]
        assert [part["n"] for part in parts] == [asked.sum(), (~asked).sum(), len(asked)]
        hits = [part["n"] * part["recall_at_10"] for part in parts]
        assert hits[0] + hits[1] == pytest.approx(hits[2])
    # Nobody learned of them but by their codes and vectors; neighbours on the circle are alike.
    assert systems["generative"]["old_target"]["recall_at_10"] > 0.8
    # Without a place for new items the model's own ranking is left.
    plain = systems[load_recommender(learned).model_type]
    for kind, row in shares["0"].items():
        assert row["recall_at_10"] == plain[kind]["recall_at_10"]
    assert systems["ease"]["new_target"]["recall_at_5"] == 0.0
    assert systems["embedding_retrieval"]["new_target"]["recall_at_10"] > 0.8
    assert shares["0.5"]["new_target"]["recall_at_10"] > 0.8
    assert found["items_in_somebodys_top_10"]["0.5"]["new"] == 1.0
    chosen = found["chosen_on_validation"]
    tried = {share: row["all"]["recall_at_10"] for share, row in chosen["shares"].items()}
    assert tried[f"{chosen['share']:g}"] == max(tried.values())
    assert systems["generative_with_fallback"] == shares[f"{chosen['share']:g}"]
    assert found["without_beams"]["new_target"]["n"] == 3
    told = json.loads(record.read_text())["command"]
    assert told.startswith("python -m experiments.semantic_ids new_items --run RUN --vectors DIR/")


def test_recommend_keeps_places_for_new_items(
    learned: Path, codes: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["recommend", "--run", learned, "--history", "2", "3", "--k", "4", "--new-share"]
    found = headline(capsys, *given, "0.5", "--vectors", codes / "vectors.npz")
    assert found["by_fallback"] == [False, True, False, True]
    assert {found["items"][1], found["items"][3]} <= NEW
    line = refused(capsys, *given, "1.5", "--vectors", codes / "vectors.npz")
    assert "share=1.5 must be from 0 to 1" in line
    assert "--new-share needs --vectors" in refused(capsys, *given, "0.5")
    line = refused(capsys, *given, "0.5", "--vectors", codes / "none.npz")
    assert "none.npz: no such file" in line


def test_a_quantizer_or_a_model_that_saw_new_items_is_refused(
    users: Path,
    vectors: Path,
    learned: Path,
    recommender: Recommender,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    seen = quantize(vectors, tmp_path / "seen")
    capsys.readouterr()
    flags = ["train", "--model", "generative", "--data", users, "--codes", seen, *TINY, *FEW]
    flags += ["--steps", "1", "--evaluate-every", "1", "--run", tmp_path / "run"]
    line = refused(capsys, *flags, "--new-items")
    assert "codes.npz: the quantizer saw item '" in line and "quantize with --new-items" in line
    (tmp_path / "choices.json").write_text(json.dumps({"choices": as_json(Choices())}))
    given = ["new_items", "--data", users, "--choices", tmp_path / "choices.json"]
    given += ["--vectors", vectors, "--run"]
    names = learned / "model" / "new_items.json"
    content = names.read_bytes()
    try:
        names.write_bytes(b"[]")
        line = refused(capsys, *given, learned)
        assert "new_items.json: is not the one that the model was saved with" in line
    finally:
        names.write_bytes(content)
    assert "of 2 queries of validation ask for" in refused(capsys, *given, learned, "--users", 2)
    for changed, message in (
        ({"is_new": np.zeros(ITEMS, bool)}, "learned: none of 40 items is new"),
        ({"learned_validation": True}, "learned: the model learned the validation items"),
        ({"ids": None}, "learned: holds no generative model"),
    ):
        other = recommender._replace(**changed)
        monkeypatch.setattr(command, "load_recommender", lambda run, other=other: other)
        assert message in refused(capsys, *given, learned)


def test_data_without_a_new_item_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match="none of the 2 items is new"):
        new_items([name for name in NAMES if name not in NEW][:2])
    old = [name for name in NAMES if name not in NEW][:4]
    (tmp_path / "users.txt").write_text(f"u {' '.join(old)}\n")
    flags = ["train", "--data", tmp_path / "users.txt", "--new-items", "--run", tmp_path / "run"]
    assert "none of the 4 items is new" in refused(capsys, *flags)
    assert not (tmp_path / "run").exists()
