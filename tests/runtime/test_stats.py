"""What an app counts, per route and as a whole."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mqttapi import App, Drop, Reject, Retry
from mqttapi.runtime.stats import RouteStats, Stats
from mqttapi.testing import TestClient
from tests.support.waiting import eventually


async def test_each_way_to_end_is_counted_per_route() -> None:
    app = App("t", dead_letter="dead/<topic>")

    @app.topic("t/<id>", name="r", retry=Retry(attempts=3, delay=0))
    async def handler(payload: str) -> None:
        match payload:
            case "drop":
                raise Drop
            case "reject":
                raise Reject("no")
            case "fail":
                raise ValueError

    @app.topic("#", name="all")
    async def everything() -> None: ...

    async with TestClient(app, raise_exceptions=False) as client:
        for number, payload in enumerate(("ok", "ok", "drop", "reject", "fail")):
            await client.publish(f"t/{number}", payload)
        stats = app.stats
    assert stats.routes == {
        "r": RouteStats(done=2, dropped=1, rejected=1, failed=1, retried=2, dead_lettered=2),
        "all": RouteStats(done=5),
    }
    assert stats.in_flight == 0


@pytest.mark.parametrize("order", ["topic", "id", None])
@pytest.mark.parametrize("concurrency", [None, 2])
async def test_what_runs_and_what_waits_for_its_turn_is_in_flight(order: str | None, concurrency: int | None) -> None:
    gate = asyncio.Event()
    app = App("t")

    @app.topic("t/<id>", name="r", ordered_by=order, concurrency=concurrency)
    async def handler() -> None:
        await gate.wait()

    async with TestClient(app) as client:
        tasks = [asyncio.create_task(client.publish(f"t/{number % 3}")) for number in range(9)]
        await eventually(lambda: app.stats.in_flight == 9)
        assert app.stats.routes["r"].in_flight == 9
        gate.set()
        await asyncio.gather(*tasks)
        assert app.stats.routes["r"] == RouteStats(done=9)


async def test_a_snapshot_does_not_change() -> None:
    app = App("t")

    @app.topic("t", name="r")
    async def handler() -> None: ...

    async with TestClient(app) as client:
        before = app.stats
        await client.publish("t")
    assert before.routes["r"].done == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.received = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        before.routes["r"] = RouteStats()  # type: ignore[index]


def test_an_app_that_does_not_run_has_counted_nothing_and_is_not_ready() -> None:
    assert App("t").stats == Stats()
    assert App("t").readiness == ("the app is not running",)
