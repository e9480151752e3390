"""Whoever blocks the event loop is named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest

from mqttapi import App
from mqttapi.runtime.watchdog import Watchdog
from mqttapi.testing import TestClient
from tests.support.waiting import eventually


class Lines(logging.Handler):
    """What was logged, also while the loop is blocked."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.came.set()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr("mqttapi.runtime.watchdog.PERIOD", 0.05)
    handler = Lines()
    logger = logging.getLogger("mqttapi.watchdog")
    monkeypatch.setattr(logger, "handlers", [handler])
    return handler


@pytest.mark.parametrize("waits_before", [False, True])
async def test_a_handler_that_blocks_the_loop_is_named_once_with_its_stack(lines: Lines, waits_before: bool) -> None:
    app = App("t")

    @app.topic("t/<id>", name="slow")
    async def handler() -> None:
        if waits_before:
            await asyncio.sleep(0)
        blocking(lines.came.wait)

    async with TestClient(app) as client:
        watchdog = Watchdog("watchdog")
        watchdog.start()
        await client.publish("t/1")
        watchdog.stop()
    (record,) = lines.records
    text = record.getMessage()
    assert text.startswith("slow (test_watchdog.py:")
    assert ", on t/1) blocks the event loop for more than a second" in text
    assert record.stack_info is not None
    assert "in blocking" in record.stack_info
    assert "in _work" not in record.stack_info


def blocking(wait: Callable[[float], object]) -> None:
    wait(20)
    time.sleep(0.2)  # several periods: still one incident


async def test_each_incident_is_one(lines: Lines) -> None:
    watchdog = Watchdog("watchdog")
    watchdog.start()
    for _ in range(2):
        lines.came.clear()
        lines.came.wait(20)
        turns = 0
        while turns < 3:  # the watchdog notices that the loop goes on
            turns += watchdog._answered
            await asyncio.sleep(0.01)
    watchdog.stop()
    assert [record.getMessage().partition(" blocks")[0] for record in lines.records] == [
        "something that is no handler"
    ] * 2


class Counting(Watchdog):
    answers = 0

    def _answer(self) -> None:
        super()._answer()
        self.answers += 1


async def test_a_loop_that_turns_is_left_alone_and_the_thread_ends_with_it(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqttapi.runtime.watchdog.PERIOD", 0.25)
    watchdog = Counting("a watchdog of its own")
    watchdog.start()
    await eventually(lambda: watchdog.answers == 3)
    watchdog.stop()
    assert lines.records == []
    assert "a watchdog of its own" not in [thread.name for thread in threading.enumerate()]
