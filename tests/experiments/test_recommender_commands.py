"""Training, choosing and evaluating recommenders from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from circle_walkers import circle_walkers
from command_line import TINY, contents
from command_line import headline as headline_of
from command_line import refused as refused_of

from experiments.semantic_ids import choose
from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.choices import Choices, as_json
from experiments.semantic_ids.datasets import read_dataset
from experiments.semantic_ids.train import Flags, training_histories

METRICS = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10")
FEW = ["--batch-size", "4", "--max-items", "8", "--validation-users", "20"]


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    return headline_of(capsys, *arguments, main=main)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refused_of(capsys, *arguments, main=main)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk along a circle of thirty items, one step at a time."""
    path = tmp_path_factory.mktemp("data") / "users.txt"
    path.write_text("\n".join(circle_walkers(60, num_items=30)) + "\n")
    return path


@pytest.fixture(scope="module")
def learned(users: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to walk on."""
    run = tmp_path_factory.mktemp("runs") / "learned"
    few = ["--steps", "120", "--evaluate-every", "60", "--learning-rate", "0.02", "--dropout", "0"]
    assert main(["train", "--data", str(users), "--run", str(run), *TINY, *FEW, *few]) == 0
    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller sweep."""
    monkeypatch.setattr(choose, "EASE_PENALTIES", (1.0,))
    monkeypatch.setattr(choose, "TRANSITION_PENALTIES", (0.1,))
    monkeypatch.setattr(choose, "LEARNING_DECAYS", (0.5,))


@pytest.mark.usefixtures("quick")
def test_what_was_learned_is_chosen_and_tested(
    learned: Path, users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    choices, record = tmp_path / "choices.json", tmp_path / "record.json"
    chosen = headline(capsys, "choose", "--data", users, "--runs", learned, "--record", choices)
    assert chosen["n"] == 60 and set(chosen["choices"]["blend"]) == {
        "ease",
        "item_knn",
        "popularity",
        "transitions",
        "sasrec",
    }
    given = ["--data", users, "--runs", learned, "--choices", choices]
    validation = headline(capsys, "evaluate", *given)
    assert set(validation["baselines"]) == {"train"} and "published" not in validation
    found = headline(capsys, "evaluate", *given, "--split", "test", "--record", record)
    rows = found["baselines"]["train"]
    assert rows["sasrec"]["recall_at_5"] > 0.9 > rows["popularity"]["recall_at_5"]
    assert rows["transitions"]["recall_at_5"] > 0.9
    assert rows["next_index"]["recall_at_5"] < 0.4 and "ease_as_known" in rows
    assert set(rows) - {"sasrec", "blend"} == set(found["baselines"]["train_and_validation"])
    for row in (found, *rows.values()):
        assert all(row[f"{m}_interval"][0] <= row[m] <= row[f"{m}_interval"][1] for m in METRICS)
        assert row["n"] == 60
    assert json.loads(record.read_text())["command"].endswith(
        "evaluate --data DIR/users.txt --split test --runs DIR/learned --choices DIR/choices.json"
    )


def test_two_steps_a_model_that_knows_its_items_and_any_mesh(
    users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    arguments = ["train", "--data", users, *TINY, *FEW, "--steps", "2", "--evaluate-every", "2"]
    trained = headline(
        capsys, *arguments, "--mesh", "data=2,fsdp=2,tensor=2", "--positions", "rope", "--run", run
    )
    assert trained["step"] == 2 and trained["n"] == 60
    ids = json.loads((run / "model" / "items.json").read_text())
    assert tuple(ids) == read_dataset(str(users)).item_ids
    (tmp_path / "choices.json").write_text(json.dumps({"choices": as_json(Choices())}))
    evaluate = ["evaluate", "--choices", tmp_path / "choices.json", "--data", users]
    line = refused(capsys, *evaluate, "--runs", run, "--data-seed", "1")
    assert (
        f"{run}: the model's 30 items are not the DIR/users.txt data's 30 in the same order" in line
    )
    (run / "model" / "items.json").write_text(json.dumps(ids[::-1]))
    assert "items.json: is not the one that the model" in refused(capsys, *evaluate, "--runs", run)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = ["train", "--data", users, *TINY, *FEW, "--steps", "4", "--evaluate-every", "2"]
    flags += ["--learn-validation", "--temperature", "0.1", "--run"]
    trained = headline(capsys, *flags, whole)
    assert "recall_at_5" not in trained and trained["best_step"] is None
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    shutil.rmtree(stopped / "checkpoints" / "4")
    headline(capsys, *flags, stopped)
    files = [contents(run / "model")["model.safetensors"] for run in (whole, stopped)]
    assert files[0] == files[1]
    # What learned the validation items is not asked for them.
    (tmp_path / "choices.json").write_text(json.dumps({"choices": as_json(Choices())}))
    given = ["--data", users, "--runs", whole, "--choices", tmp_path / "choices.json"]
    line = refused(capsys, "evaluate", *given)
    assert f"{whole}: the model learned the validation items" in line


def test_validation_items_are_learned_only_where_asked_for(users: Path):
    dataset = read_dataset(str(users))
    asked = dataset.split.validation.targets
    for learn, expected in ((False, dataset.split.train), (True, dataset.split.before_test)):
        flags = Flags(data=str(users), learn_validation=learn)
        histories = training_histories(flags, dataset)
        assert histories is expected
        lasts = histories.items[histories.offsets[1:] - 1]
        assert bool((lasts == asked).all()) == learn


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("data", "users", "items", "interactions", "ordered"),
    [("beauty", 22_363, 12_101, 198_502, True), ("mealrec", 1_928, 9_857, 167_594, False)],
)
def test_real_data_are_split_whole(
    data: str, users: int, items: int, interactions: int, ordered: bool
):
    dataset = read_dataset(data)
    split = dataset.split
    assert len(dataset.item_ids) == items and split.train.ordered == ordered
    assert len(split.test.targets) == len(split.train.users) == users
    assert len(split.train.items) == interactions - 2 * users and split.num_too_short == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nothing.txt"], "nothing.txt: no such file"),
        (["train", "--steps", "0"], "--steps 0 must be at least 1"),
        (["train", "--minutes", "0"], "--minutes 0.0 must be above 0"),
        (["train", "--data-seed", "-1"], "--data-seed -1 must be at least 0"),
        (["choose", "--users", "1"], "--users 1 must be at least 2"),
        (["evaluate", "--data", "nothing.txt"], "nothing.txt: no such file"),
    ],
)
def test_a_flag_that_breaks_a_rule_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in refused(capsys, *arguments)


def test_missing_choices_and_parts_of_a_blend_are_named(
    users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "choices.json"
    evaluate = ["evaluate", "--data", users, "--choices", path]
    assert "run the command `choose` first" in refused(capsys, *evaluate)
    path.write_text("{}")
    assert f"{path}: not a record of choices" in refused(capsys, *evaluate)
    blend = as_json(Choices(blend={"ease": 1.0, "sasrec": 0.5}))
    path.write_text(json.dumps({"choices": blend}))
    assert "the chosen blend needs 'sasrec'" in refused(capsys, *evaluate)
    monkeypatch.delenv("RECIPE_JAX_DATA", raising=False)
    assert "$RECIPE_JAX_DATA is not set" in refused(capsys, "train", "--data", "beauty")
