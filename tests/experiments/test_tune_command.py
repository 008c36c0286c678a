"""A language model that learns the IDs of items: in two stages, and what it then says."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import headline as headline_of
from command_line import refused as refused_of
from safetensors.numpy import load_file
from story_checkpoint import VOCAB_SIZE, write_checkpoint

from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.desk import Limits
from experiments.semantic_ids.language_recommending import (
    history_scorer,
    load_language_recommender,
    prompt_tokens,
    query_scorer,
    recommend_for_history,
    recommend_for_query,
)
from experiments.semantic_ids.serve import Flags as Serve
from experiments.semantic_ids.serve import load_service
from recipe_jax.data.interactions import histories_of
from recipe_jax.data.texts import read_documents, tokenize_documents
from recipe_jax.semantic_ids import parse_id
from recipe_jax.training.tracker import read_metrics

headline = functools.partial(headline_of, main=main)
refused = functools.partial(refused_of, main=main)
TITLES = [f"the {letter}" for letter in "abcdefghijkl"]
SIZES = (3, 4, 4)
FEW = ("--batch-size", 4, "--num-tokens", 96, "--evaluate-every", 200, "--no-progress")
TEMPLATES = {
    "system": "s",
    "templates": [
        {"type": "predict_semantic_id", "query": "{title} [REC]", "response": "{id}"},
        {"type": "predict_attribute", "query": "{id}", "response": "{title}"},
        {"type": "predict_next_item", "query": "{history} [REC]", "response": "{id}"},
    ],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", max_positions=96)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve items, and users who walk along the circle of them."""
    folder = tmp_path_factory.mktemp("examples")
    names = [f"i{row}" for row in range(12)]
    shop = [{"id": name, "title": title} for name, title in zip(names, TITLES, strict=True)]
    (folder / "shop.jsonl").write_text("\n".join(map(json.dumps, shop)))
    walks = [" ".join([f"u{u}", *(f"i{(u + s) % 12}" for s in range(6))]) for u in range(24)]
    (folder / "users.txt").write_text("\n".join(walks) + "\n")
    (folder / "templates.json").write_text(json.dumps(TEMPLATES))
    (folder / "codes").mkdir()
    codes = np.array([[row // 4, row % 4] for row in range(12)], np.int32)
    np.savez(folder / "codes" / "codes.npz", ids=names, codes=codes, num_codes=SIZES[:2])
    flags = {"catalogue": "shop.jsonl", "histories": "users.txt", "templates": "templates.json"}
    paths = {**flags, "codes": "codes", "out": "made"}
    words = [str(word) for name, path in paths.items() for word in (f"--{name}", folder / path)]
    assert main(["examples", *words, "--max-items", "3"]) == 0
    return folder / "made"


@pytest.fixture(scope="module")
def tuned(
    checkpoint: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list]:
    run = tmp_path_factory.mktemp("runs") / "tuned"
    steps = ("--new-token-steps", 60, "--steps", 450, "--learning-rate", 0.008, "--weight-decay", 0)
    command = ["tune", "--examples", examples, "--model", checkpoint, "--run", run, *steps, *FEW]
    assert main([*map(str, command)]) == 0
    return run, command


def test_each_stage_learns_and_a_finished_run_stays_as_it_is(tuned, capsys):
    run, command = tuned
    found = json.loads((run / "record.json").read_text())
    before, between = (found["baselines"][name] for name in ("before", "new_tokens"))
    assert between["nats_per_token"] < before["nats_per_token"] - 0.2
    assert found["nats_per_token"] < between["nats_per_token"] - 0.3
    assert found["num_new_tokens"] == sum(SIZES) + 3
    assert str(run.parent) not in (run / "record.json").read_text()
    written = (run / "model" / "model.safetensors").read_bytes()
    again = headline(capsys, *command)
    assert again["nats_per_token"] == found["nats_per_token"]
    assert (run / "model" / "model.safetensors").read_bytes() == written


def test_a_question_is_asked_as_it_was_learned(tuned):
    """Token for token: what the model reads is a training example up to where its ID begins."""
    recommender = load_language_recommender(tuned[0])
    path = tuned[1][2] / "histories_train.jsonl"
    for name in (path, path.with_name("train.jsonl")):
        learned = tokenize_documents(read_documents(name), recommender.tokenizer)
        for number, row in enumerate(read_examples(name)[:20]):
            if row["type"] == "predict_attribute":
                continue
            start, stop = learned.offsets[number : number + 2]
            whole, counts = learned.tokens[start:stop], learned.weights[start:stop]
            prompt = prompt_tokens(recommender, row["query"], "it")
            assert whole[: len(prompt)].tolist() == prompt
            codes = recommender.ids.codes[recommender.ids.items.index(row["item_id"])]
            following = whole[len(prompt) : len(prompt) + len(SIZES)]
            assert following.tolist() == (codes + recommender.level_tokens).tolist()
            assert counts[len(prompt) :].all() and not counts[: len(prompt) - 2].any()


def test_a_history_brings_the_next_item(tuned):
    recommender = load_language_recommender(tuned[0])
    found = recommend_for_history(recommender, ["i3", "i4", "i5"], k=9)
    assert found.items[0].item == "i6" and found.num_read == 3
    # All that may be named, each once, whatever the model thinks of it.
    assert sorted(row.item for row in found.items) == sorted(
        {f"i{i}" for i in range(12)} - {"i3", "i4", "i5"}
    )
    for row in found.items:
        codes = parse_id(row.semantic_id, SIZES)
        assert codes == tuple(recommender.ids.codes[recommender.ids.items.index(row.item)])
    longer = recommend_for_history(recommender, ["i0", "i3", "i4", "i5"], k=1)
    assert longer.num_read == 3 and longer.items[0].item == "i6"


def test_scorers_say_what_recommendations_say(tuned):
    recommender = load_language_recommender(tuned[0])
    names = recommender.ids.items
    order = tuple(reversed(names))
    histories = histories_of(["u", "v"], [[11 - 3, 11 - 4], [11 - 7]], ordered=True)
    scores = history_scorer(recommender, order)(histories)
    for row, history in enumerate((["i3", "i4"], ["i7"])):
        found = recommend_for_history(recommender, history, k=12 - len(history))
        for each in found.items:
            assert scores[row, order.index(each.item)] == pytest.approx(each.score, abs=1e-4)
        assert all(scores[row, order.index(i)] < found.items[-1].score for i in history)
    found = recommend_for_query(recommender, TITLES[5], k=12)
    scores = query_scorer(recommender, order)([TITLES[0], TITLES[5]])
    assert {row.item: pytest.approx(row.score, abs=1e-4) for row in found.items} == dict(
        zip(order, scores[1].tolist(), strict=True)
    )
    with pytest.raises(ValueError, match="item 'i99' has no ID, nor have 0 others"):
        history_scorer(recommender, ("i0", "i99"))


def test_words_that_read_as_tokens_are_made_plain(tuned):
    recommender = load_language_recommender(tuned[0])
    plain = recommend_for_query(recommender, "(SEM_0_2) the cat", k=3)
    sly = recommend_for_query(recommender, "[SEM_0_2] the\ncat", k=3)
    assert [row.score for row in sly.items] == [row.score for row in plain.items]


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (" \n", 1, "query=' \\\\n' must be a text that is not empty"),
        ("the cat", 13, "k=13 must be from 1 to 12: so many items there are"),
        ("the cat", 0, "k=0 must be from 1 to 12"),
        ("the cat " * 99, 1, "the query makes [0-9]+ tokens, must make at most 94"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(tuned, query, k, message):
    with pytest.raises(ValueError, match=message):
        recommend_for_query(load_language_recommender(tuned[0]), query, k=k)


def test_the_command_recommends(tuned, capsys):
    found = headline(capsys, "recommend", "--run", tuned[0], "--query", TITLES[0], "--k", 4)
    assert len(set(found["items"])) == 4
    found = headline(capsys, "recommend", "--run", tuned[0], "--history", "i1", "i2", "--k", 10)
    assert len(set(found["items"]) | {"i1", "i2"}) == 12
    line = refused(capsys, "recommend", "--run", tuned[0], "--history", "i1", "--query", "cat")
    assert line.endswith("give either --history, of one item at least, or --query")


def test_it_is_served_to_sentences_and_histories(tuned):
    service = load_service(Serve(run=tuned[0]), Limits(max_k=5, max_history_items=4))
    assert service.by_query is not None and service.by_history is not None
    recommender = load_language_recommender(tuned[0])
    found = service.by_query(TITLES[3], 5).items
    assert found == recommend_for_query(recommender, TITLES[3], k=5).items
    assert service.by_history(["i3", "i4", "i5"], 1).items[0].item == "i6"
    with pytest.raises(ValueError, match="--catalogue is for models that read no sentences"):
        load_service(Serve(run=tuned[0], catalogue="beauty"), Limits())


def test_with_adapters_not_a_bit_of_the_known_words_moves(checkpoint, examples, tmp_path, capsys):
    run = tmp_path / "run"
    steps = ("--new-token-steps", 2, "--steps", 2, "--lora-rank", 2, "--weight-decay", 0.5)
    command = ("tune", "--examples", examples, "--model", checkpoint, "--run", run)
    headline(capsys, *command, *steps, *FEW)
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, run / "model"))
    assert set(before) == set(after)
    for name, old in before.items():
        new = after[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(new) == VOCAB_SIZE + sum(SIZES) + 3
            np.testing.assert_array_equal(new[:VOCAB_SIZE].view(np.int32), old.view(np.int32))
            assert len(np.unique(new[VOCAB_SIZE:], axis=0)) == sum(SIZES) + 3
        elif "norm" in name:
            np.testing.assert_array_equal(new, old)
        else:
            assert (new != old).any(), name


def test_eight_devices_train_as_one(tuned, checkpoint, examples, tmp_path, capsys):
    losses = []
    for mesh in ((), ("--mesh", "data=2,fsdp=2,tensor=2")):
        run = tmp_path / f"run{len(losses)}"
        command = ("tune", "--examples", examples, "--model", checkpoint, "--run", run)
        steps = ("--new-token-steps", 3, "--steps", 3, *FEW[:-3], "--evaluate-every", 1)
        headline(capsys, *command, *steps, "--no-progress", *mesh)
        rows = [read_metrics(run / stage / "metrics.jsonl") for stage in ("new_tokens", "whole")]
        losses.append([row["loss"] for stage in rows for row in stage if "loss" in row])
    assert len(losses[0]) == 6 and len(set(losses[0])) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)


def test_ids_of_others_and_missing_files_are_refused(tuned, examples, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for path in (tuned[0] / "model").iterdir():
        (run / "model" / path.name).write_bytes(path.read_bytes())
    asked = ("recommend", "--run", run, "--query", "the cat")
    (run / "model" / "ids.npz").write_bytes((examples / "ids.npz").read_bytes() + b" ")
    assert "ids.npz: is not the one that the model was saved with" in refused(capsys, *asked)
    (run / "model" / "ids.npz").unlink()
    assert "ids.npz: cannot be read (No such file" in refused(capsys, *asked)
    (run / "model" / "questions.json").write_text('{"system": 1}')
    assert "questions.json: system=1 must be of type str" in refused(capsys, *asked)
    line = refused(capsys, "tune", "--examples", tmp_path, "--run", tmp_path / "other")
    assert "ids.npz" in line and not (tmp_path / "other").exists()


def read_examples(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
