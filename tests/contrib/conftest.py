from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import CommandLine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mqttapi(tmp_path: Path) -> Iterator[CommandLine]:
    """The real command line; what it started ends with the test."""
    line = CommandLine(tmp_path)
    yield line
    for command in line.running:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
