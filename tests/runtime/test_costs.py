"""What a message costs, counted rather than timed: calls of Python functions, callbacks of the loop, writes.

A change that makes a message dearer fails here on any machine, however busy. One that is worth it changes the numbers.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
from pydantic import BaseModel

from mqttapi import App, Context
from mqttapi.middleware import Endpoint
from mqttapi.runtime.intake import Intake
from mqttapi.runtime.links import subscription_id
from mqttapi.testing import TestClient
from mqttapi.transport.packets import Splitter
from tests.support.packets import publish

BATCH = 500
PAYLOAD = b'{"temperature": 21.5, "unit": "C"}'


class Reading(BaseModel):
    temperature: float
    unit: str


def typed_pipeline() -> App:
    """One parameter, a model, one middleware."""
    app = App("costs")

    @app.middleware
    async def through(context: Context, call_next: Endpoint) -> object:
        return await call_next(context)

    @app.topic("sensors/<device_id>/data", qos=1)
    async def ingest(device_id: str, reading: Reading) -> None: ...

    return app


class Port:
    """Takes one write, once it is told to."""

    written: asyncio.Future[bytes] | None = None

    def write(self, data: bytes) -> None:
        if self.written is not None:
            self.written.set_result(data)

    def pause(self) -> None:
        raise AssertionError("there is room")

    def resume(self) -> None:
        raise AssertionError("it was not paused")


class Pipeline:
    """From bytes to acknowledgements, in process."""

    def __init__(self, app: App, client: TestClient) -> None:
        service = client._running()
        self.port = Port()
        self.intake = Intake(
            app, service.dispatcher, service.workers, self.port, max_in_flight=10_000, max_bytes=1 << 30
        )
        self.intake.connected(session_present=False, mqtt5=True)
        self.done = service.runners[0].counts
        self._splitter = Splitter(
            mqtt5=True, on_publish=self.intake.receive, on_refused=print, on_ack=print, on_other=print
        )

    def feed(self, data: bytes) -> None:
        """What a read has brought."""
        self.intake.batch_begin()
        self._splitter.feed(data)
        self.intake.batch_end()

    async def take(self, data: bytes, count: int) -> None:
        """The same, until it is acknowledged."""
        wanted = self.done["done"] + count
        self.feed(data)
        while self.done["done"] < wanted or self.intake.ledger.held:
            await asyncio.sleep(0)


def packets(qos: int, count: int) -> bytes:
    ids = [subscription_id("sensors/+/data")]
    return b"".join(
        publish(f"sensors/{n}/data", PAYLOAD, qos=qos, packet_id=n + 1 if qos else 0, subscription_ids=ids)
        for n in range(count)
    )


@pytest.mark.parametrize(("qos", "most"), [(0, 14), (1, 17)])
async def test_calls_per_message(qos: int, most: int) -> None:
    app, calls = typed_pipeline(), Counter[str]()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    async with TestClient(app) as client:
        pipeline, data = Pipeline(app, client), packets(qos, BATCH)
        for _ in range(3):  # the caches take in what has come twice
            await pipeline.take(data, BATCH)
        sys.setprofile(count)
        try:
            await pipeline.take(data, BATCH)
        finally:
            sys.setprofile(None)
    each = {name: calls[name] // BATCH for name in calls if calls[name] >= BATCH}
    assert sum(each.values()) <= most, each


async def test_a_batch_is_three_callbacks_and_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker wakes up, one notices handlers that wait, one acknowledges. This test is a fourth one."""
    app, callbacks = typed_pipeline(), list[str]()
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon

    def count(callback: Any, *args: Any, **kwargs: Any) -> asyncio.Handle:
        callbacks.append(str(callback))
        return call_soon(callback, *args, **kwargs)

    async with TestClient(app) as client:
        pipeline, data = Pipeline(app, client), packets(1, 20)
        await pipeline.take(data, 20)
        pipeline.port.written = loop.create_future()
        monkeypatch.setattr(loop, "call_soon", count)
        pipeline.feed(data)
        await pipeline.port.written
        monkeypatch.undo()
    assert len(pipeline.port.written.result()) == 20 * 4
    assert len(callbacks) == 3 + 1, callbacks
