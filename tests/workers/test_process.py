"""One worker process, seen from the supervisor."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqttapi.workers.process import Launch, Process
from mqttapi.workers.relay import Relay


@pytest.fixture
def relay() -> Iterator[Relay]:
    relay = Relay()
    yield relay
    relay.close()


async def start(relay: Relay) -> Process:
    return await Process.start(0, Launch(), note=0, outputs=(1, 2), relay=relay)


def descriptors() -> set[Path]:
    return set(Path("/dev/fd").iterdir())


async def test_a_process_that_cannot_be_started_leaves_nothing_open(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However often that is tried: the interpreter is being upgraded, say, or there are too many processes."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    before = descriptors()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await start(relay)
    assert descriptors() == before


async def test_two_that_wait_for_the_end_of_a_process_do_not_take_the_pipes_of_the_next_one(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ends"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    finished: list[int] = []
    monkeypatch.setattr(relay, "finish", finished.append)
    process = await start(relay)
    await asyncio.gather(process.ended(relay), process.ended(relay))
    assert len(finished) == len(set(finished)) == 2
