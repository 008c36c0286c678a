"""A command in this process: what it prints when it works and when it is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiments.recipes.__main__ import main

TINY = ["--embed-dim", "16", "--num-layers", "1", "--num-heads", "2", "--no-progress"]
NEWS = ("data: ", "step ")
Main = Callable[[Sequence[str]], int]


def headline(
    capsys: pytest.CaptureFixture[str], *arguments: object, main: Main = main
) -> dict[str, object]:
    """The JSON object that a command prints last."""
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, main: Main = main) -> str:
    """The one line that a refused command prints, beside news of its progress."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith(NEWS)]
    assert len(lines) == 1, lines
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, to see that nothing was lost and nothing left behind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
