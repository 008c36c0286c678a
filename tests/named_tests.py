"""Tests by name: a fault whose test stands elsewhere must not lose it."""

import ast
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).parent


def missing_tests(names: Iterable[str]) -> list[str]:
    """Those of the names, each `folder/file.py::test`, for which there is no test."""
    missing = []
    for name in names:
        path, _, test = name.partition("::")
        found = ast.walk(ast.parse((TESTS / path).read_text()))
        if test not in {node.name for node in found if isinstance(node, ast.FunctionDef)}:
            missing.append(name)
    return missing
