"""Tables on the terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
from typing import TYPE_CHECKING

from mqttapi.cli.tables import print_table

if TYPE_CHECKING:
    import pytest

ROWS = [("a", "short"), ("long one", "x"), ("b", "")]


def test_no_line_ends_with_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "a wide column"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name      a wide column", "a         short", "long one  x", "b"]


def test_neither_does_one_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the head is bold, and its spaces are within the codes for that."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print_table(("name", "n"), [("a", "short")])
        terminal.flush()
        said = os.read(ours, 10_000).decode()
    os.close(ours)
    head, row = said.splitlines()
    assert "\x1b[1m" in head
    assert re.sub(r"\x1b\[[0-9;]*m", "", head) == "name  n"
    assert row == "a     short"
