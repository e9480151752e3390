"""The page that names who keeps each promise tells the truth about files and tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-it-works.md").read_text()


def test_every_promise_is_there() -> None:
    assert re.findall(r"^\| (D\d+) \|", PAGE, re.MULTILINE) == [f"D{number}" for number in range(1, 13)]


def test_the_files_exist() -> None:
    named = set(re.findall(r"`((?:mqttapi|tests)/[\w/]+\.py)", PAGE))
    assert named
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_the_tests_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 12
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in functions, f"{file} has no {test}"
