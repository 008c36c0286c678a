import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from recipe_jax.data.files import DataError
from recipe_jax.data.recipe_archive import collect_recipes, recipe_id_of

TOAST = {
    "title": "Toast",
    "source": "allrecipes.com",
    "url": "http://allrecipes.com/recipe/12/toast/",
    "language": "en-US",
    "tags": ["quick"],
    "ingredients": ["2 slices bread", "10 g crème fraîche"],
    "directions": ["Toast the bread."],
}


def write_archive(path: Path, files: dict[str, object]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, recipe in files.items():
            content = recipe if isinstance(recipe, bytes) else json.dumps(recipe).encode()
            member = tarfile.TarInfo(f"recipes-312b3ad/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read_rows(path: Path) -> list[dict[str, object]]:
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_ids_follow_the_rule_of_the_collected_file():
    # sha1 of the URL, computed with `printf %s URL | sha1sum`.
    url = "http://www.epicurious.com/recipes/food/views/101-whaler-fish-sandwich-239757"
    assert recipe_id_of("www.epicurious.com", url) == "epic_f19231f36e"
    url = "http://www.williams-sonoma.com/recipe/20-minute-beef-stew.html"
    assert recipe_id_of("www.williams-sonoma.com", url) == "will_33c5206f24"
    url = "http://allrecipes.com/recipe/235063/1-2-3-cherry-poke-cake/"
    assert recipe_id_of("allrecipes.com", url) == "ar235063"
    assert recipe_id_of("allrecipes.com", "http://allrecipes.com/recipe/87845") == "ar87845"


def test_collects_recipes_in_order_and_counts_the_rest(tmp_path):
    archive = write_archive(
        tmp_path / "recipes.tar.gz",
        {
            "README.md": b"# About",
            "index/README.md": b"# Index",
            "index/t/toast.json": TOAST,
            "index/t/toast-again.json": TOAST | {"title": "Toast II"},
            "index/t/turned-away.json": TOAST | {"title": "Too Many Requests", "ingredients": []},
            "index/n/nothing.json": TOAST | {"ingredients": []},
            "index/b/broken.json": b"{",
            "index/b/bare.json": ["no object"],
            "other/toast.json": TOAST,
        },
    )
    out = tmp_path / "deep" / "recipes.jsonl.zst"
    collected = collect_recipes(archive, out)
    rows = read_rows(out)
    assert [row["id"] for row in rows] == ["ar12", "ar12-2"]
    assert rows[0] == {
        "id": "ar12",
        "title": "Toast",
        "source": "allrecipes.com",
        "url": "http://allrecipes.com/recipe/12/toast/",
        "tags": ["quick"],
        "ingredients": ["2 slices bread", "10 g crème fraîche"],
    }
    assert collected.num_recipes == 2
    assert collected.skipped == {
        "an error page of the site": 1,
        "no ingredients": 1,
        "not a recipe in JSON": 2,
    }
    assert [path.name for path in out.parent.iterdir()] == ["recipes.jsonl.zst"]


def test_a_damaged_archive_leaves_the_old_file_alone(tmp_path):
    archive = write_archive(tmp_path / "recipes.tar.gz", {"index/t/toast.json": TOAST})
    out = tmp_path / "recipes.jsonl.zst"
    collect_recipes(archive, out)
    before = out.read_bytes()
    for damaged in (archive.read_bytes()[:-40], b"<html>"):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"not a whole \.tar\.gz archive .*fetch it again"):
            collect_recipes(archive, out)
    assert out.read_bytes() == before
    assert not out.with_name("recipes.jsonl.zst.part").exists()


def test_missing_and_empty_archives_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"absent\.tar\.gz: no such file; fetch"):
        collect_recipes(tmp_path / "absent.tar.gz", tmp_path / "out.jsonl.zst")
    archive = write_archive(tmp_path / "empty.tar.gz", {"README.md": b"# About"})
    with pytest.raises(DataError, match=r"empty\.tar\.gz: holds no recipe"):
        collect_recipes(archive, tmp_path / "out.jsonl.zst")
    assert not (tmp_path / "out.jsonl.zst").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    archive = write_archive(tmp_path / "recipes.tar.gz", {"index/t/toast.json": TOAST})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written"):
        collect_recipes(archive, tmp_path / "file" / "recipes.jsonl.zst")
