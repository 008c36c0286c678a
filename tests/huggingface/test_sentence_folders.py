"""What sentence-transformers writes beside an encoder, and what of it is not known here."""

import json
import re
from pathlib import Path

import pytest
from bert_folder import write_sentence_modules

from recipe_jax.huggingface import ModelFolderError
from recipe_jax.huggingface.sentence_folders import SentenceFolder, read_sentence_folder


def test_modules_say_pooling_normalization_and_length(tmp_path: Path):
    write_sentence_modules(tmp_path)
    assert read_sentence_folder(tmp_path) == SentenceFolder(tmp_path, "cls", True, 9)
    write_sentence_modules(tmp_path, pooling={"pooling_mode_cls_token": False}, normalize=False)
    assert read_sentence_folder(tmp_path) == SentenceFolder(tmp_path, "mean", False, 9)
    write_sentence_modules(tmp_path, pooling={"pooling_mode": "mean"})
    assert read_sentence_folder(tmp_path).pooling == "mean"


def test_a_folder_without_modules_says_what_it_has(tmp_path: Path):
    assert read_sentence_folder(tmp_path) == SentenceFolder(tmp_path)
    write_sentence_modules(tmp_path)
    (tmp_path / "modules.json").unlink()
    assert read_sentence_folder(tmp_path) == SentenceFolder(tmp_path, "cls", False, 9)


def test_the_encoder_may_have_a_folder_of_its_own(tmp_path: Path):
    write_sentence_modules(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    expected = SentenceFolder(tmp_path / "0_Transformer", "cls", True, None)
    assert read_sentence_folder(tmp_path) == expected


def change_modules(change):
    def apply(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        changed = change(modules)
        (folder / "modules.json").write_text(json.dumps(modules if changed is None else changed))

    return apply


def pooling(**modes):
    return lambda folder: write_sentence_modules(folder, pooling=modes)


def written(name: str, **content):
    return lambda folder: (folder / name).write_text(json.dumps(content))


ONE = "must be 'pooling_mode_mean_tokens' or 'pooling_mode_cls_token' alone"
BROKEN = {
    "modules.json: module 'Dense' must be one of": change_modules(
        lambda m: m.insert(2, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    ),
    "modules.json: module 'Pooling' must be one of": change_modules(lambda m: m[::-1][1:]),
    "modules.json: has no module 'Transformer'": change_modules(lambda m: []),
    "modules.json: has no module 'Pooling'": change_modules(lambda m: m[:1]),
    "modules.json: module 3 must have 'type' and 'path'": change_modules(lambda m: [3]),
    "modules.json: path='../other' must be a folder of this one": change_modules(
        lambda m: m[0].update(path="../other")
    ),
    "modules.json: path='/other' must be a folder of this one": change_modules(
        lambda m: m[0].update(path="/other")
    ),
    "modules.json: must hold a JSON array, not a dict": change_modules(lambda m: {"a": 1}),
    f"{{'pooling_mode_mean_tokens': True, 'pooling_mode_cls_token': True}} {ONE}": pooling(),
    f"{{'pooling_mode_max_tokens': True}} {ONE}": pooling(
        pooling_mode_cls_token=False, pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True
    ),
    f"{{'pooling_mode_cls_token': 'yes'}} {ONE}": pooling(
        pooling_mode_mean_tokens=False, pooling_mode_cls_token="yes"
    ),
    f"{{}} {ONE}": pooling(pooling_mode_mean_tokens=False, pooling_mode_cls_token=False),
    "pooling_mode='max' must be 'mean' or 'cls'": pooling(pooling_mode="max"),
    "pooling_mode_median=True is not known here": pooling(pooling_mode_median=True),
    "sentence_bert_config.json: do_lower_case=True must be false": written(
        "sentence_bert_config.json", max_seq_length=9, do_lower_case=True
    ),
    "sentence_bert_config.json: max_seq_length=0 must be a whole number": written(
        "sentence_bert_config.json", max_seq_length=0
    ),
    "default_prompt_name='query' must be null": written(
        "config_sentence_transformers.json", default_prompt_name="query"
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_changes_vectors_and_is_not_known_is_refused(tmp_path: Path, message: str):
    write_sentence_modules(tmp_path)
    BROKEN[message](tmp_path)
    with pytest.raises(ModelFolderError, match=re.escape(message)) as caught:
        read_sentence_folder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
