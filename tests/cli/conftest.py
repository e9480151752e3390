from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqttapi.cli import main
from tests.support.command_line import CommandLine, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CommandLine", "InProcess", "Running"]


class InProcess:
    """`mqttapi` without a process of its own, for tables of errors that need no more."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def __call__(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Exit code, stdout, and the lines of stderr, the directory written as `DIR`."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err.replace(str(self.directory), "DIR").splitlines()


@pytest.fixture
def in_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcess]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "MQTT" not in name})
    known = set(sys.modules)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield InProcess(tmp_path, capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in {"main", "other", "helper", "app"}:
            del sys.modules[name]
    importlib.invalidate_caches()
