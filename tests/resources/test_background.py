"""Work on the database beside the handlers, when the app ends."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from mqttapi.config import Settings
from mqttapi.resources import background
from mqttapi.resources.background import whole
from mqttapi.resources.sql import open_database
from mqttapi.resources.tables import create_tables, forget
from tests.support.waiting import eventually


async def test_what_is_cancelled_while_it_connects_leaves_the_driver_no_loose_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the driver's thread answers to a loop that may have ended, and fails with a traceback."""
    engine = open_database(Settings(database_url=f"sqlite:///{tmp_path / 'app.db'}"))
    await create_tables(engine)
    await engine.dispose()
    connect: Any = sqlite3.connect
    connecting, gate = threading.Event(), threading.Event()

    def slowly(*args: Any, **options: Any) -> Any:
        connecting.set()
        gate.wait()
        return connect(*args, **options)

    monkeypatch.setattr(sqlite3, "connect", slowly)
    cleaning = asyncio.create_task(forget(engine, {"route": 1.0}))
    await eventually(connecting.is_set)
    cleaning.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not cleaning.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    await engine.dispose()
    await eventually(lambda: not any("_connection_worker_thread" in each.name for each in threading.enumerate()))


async def test_what_never_ends_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "TO_THE_END", 0.05)
    ended = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(whole(hangs()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: ended)


async def test_what_fails_after_it_was_cancelled_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()

    async def fails() -> None:
        await gate.wait()
        raise OSError("gone")

    task = asyncio.create_task(whole(fails()))
    await asyncio.sleep(0)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()
    assert caplog.messages == []
