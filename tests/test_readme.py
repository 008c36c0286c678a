"""What the documents show works: their Python runs, and their command lines are understood."""

import argparse
import ast
import dataclasses
import importlib.util
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro

from experiments.recipes.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
FOLDERS = ("experiments", "benchmarks", "kernels", "recipe_jax", "tests")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# On a line of its own, or within backticks.
COMMAND = re.compile(r"(?:^\s*|`)python -m ((?:experiments|benchmarks)\.[^`\n]+)", re.MULTILINE)
SHORT = re.compile(rf"`((?:{'|'.join(COMMANDS)}) --[^`]+)`")
MAKE = re.compile(r"(?:^|`)make (\w+)", re.MULTILINE)
PLACEHOLDER = re.compile(r"\b(NAME|COMMAND)\b")  # stands for any experiment, any command


class Understood(Exception):
    """Raised in place of the work, once the flags were read."""


class Shown(NamedTuple):
    """Something that a file shows to be run, and where."""

    text: str
    path: Path
    line: int

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> Iterator[tuple[Path, str]]:
    """Markdown, and what the modules that can be run say of themselves."""
    for folder in (ROOT.glob("*.md"), *((ROOT / name).rglob("*.md") for name in FOLDERS)):
        yield from ((path, path.read_text()) for path in folder)
    for name in ("experiments", "benchmarks"):
        for path in (ROOT / name).rglob("*.py"):
            yield path, ast.get_docstring(ast.parse(path.read_text())) or ""


def shown(pattern: re.Pattern[str]) -> list[Shown]:
    return [
        Shown(found[1].strip(), path, text[: found.start(1)].count("\n") + 1)
        for path, text in documents()
        for found in pattern.finditer(text.replace("\\\n", " "))
    ]


def cases(pattern: re.Pattern[str]) -> pytest.MarkDecorator:
    rows = [row for row in shown(pattern) if not PLACEHOLDER.search(row.text)]
    return pytest.mark.parametrize("case", rows, ids=[f"{row.place} {row.text}" for row in rows])


def read_flags(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the command as `python -m` does, up to where it has read its flags."""

    def stopping(parse):
        def parse_and_stop(*args, **options):
            parse(*args, **options)
            raise Understood

        return parse_and_stop

    monkeypatch.setattr(tyro, "cli", stopping(tyro.cli))
    # What machines without tyro are to run reads its flags with the standard library.
    parser = argparse.ArgumentParser
    monkeypatch.setattr(parser, "parse_args", stopping(parser.parse_args))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Understood), warnings.catch_warnings():
        # Another test may have imported the module already; that is what runpy warns of.
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("case", shown(PYTHON), ids=lambda case: case.place)
def test_a_block_of_python_runs(case: Shown):
    exec(compile(case.text, case.place, "exec"), {"__name__": "__readme__"})


@cases(COMMAND)
def test_a_command_line_is_understood(case: Shown, monkeypatch: pytest.MonkeyPatch):
    module, *arguments = shlex.split(case.text)
    if arguments in ([], ["prepare"]):
        # Named in passing, not shown to be run.
        assert importlib.util.find_spec(module)
        return
    read_flags(module, arguments, monkeypatch)


@cases(SHORT)
def test_a_command_told_in_short_has_these_flags(case: Shown, monkeypatch: pytest.MonkeyPatch):
    """Within a sentence or a table what goes without saying is left out."""
    name, *arguments = shlex.split(case.text)
    flags = importlib.import_module(f"experiments.recipes.{name}").Flags
    for field in dataclasses.fields(flags):
        flag = f"--{field.name.replace('_', '-')}"
        if field.default is dataclasses.MISSING and flag not in arguments:
            arguments += [flag, "X"]
    read_flags("experiments.recipes", [name, *arguments], monkeypatch)


@cases(MAKE)
def test_a_target_of_make_exists(case: Shown):
    assert re.search(rf"^{case.text}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_what_the_readme_shows_is_found():
    """Else the tests above would pass on nothing."""
    readme = ROOT / "README.md"
    assert [row.path for row in shown(PYTHON)].count(readme) >= 1
    assert [row.path for row in shown(COMMAND)].count(readme) >= 7
    assert [row.path for row in shown(MAKE)].count(readme) >= 2
    assert any(row.path == ROOT / "experiments" / "README.md" for row in shown(SHORT))


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--pantri", "tomato"],
        ["train", "--model", "generators"],
        ["train", "--steps", "many"],
        ["bake"],
        ["evaluate"],
    ],
)
def test_a_wrong_command_line_is_seen(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        read_flags("experiments.recipes", arguments, monkeypatch)
    assert stopped.value.code == 2
