"""What is dropped, and what never is: messages of QoS 0 that come faster than a route handles them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from mqttapi import App
from mqttapi.message import NO_PROPERTIES, HeavyProperties, Properties
from mqttapi.runtime.dispatcher import Dispatcher
from mqttapi.runtime.intake import Intake
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.links import subscription_id, subscriptions
from mqttapi.runtime.outcome import DONE, Outcome
from mqttapi.runtime.overflow import Queue
from mqttapi.runtime.runs import Run, Runner
from tests.runtime.routes import add


class Bench:
    """An intake with a port that is a list: what is given is parsed as long as nobody pauses."""

    def __init__(self, app: App, *, limit: int = 3, max_bytes: int = 1_000, **bounds: Any) -> None:
        self.handled: list[str] = []
        self.gate = asyncio.Event()
        self.quick = False
        self.written = bytearray()
        self.pauses = 0
        self._stopped = False
        self._wire: list[tuple[str, bytes, int]] = []
        self._ids = 0
        self.runners = [
            Runner(
                route,
                self._handle,
                index,
                queue=None
                if route.overflow == "block"
                else Queue(route.name, route.overflow, limit=limit, max_bytes=max_bytes),
            )
            for index, route in enumerate(app.routes)
        ]
        self._app = app
        self._bounds = {"max_in_flight": 1_000, "max_bytes": 1_000_000, **bounds}

    async def _handle(self, context: Any) -> None:
        if not self.quick:
            await self.gate.wait()
        self.handled.append(context.message.payload.decode())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        async def finish(run: Run, result: object) -> Outcome:
            return DONE

        async def fail(run: Run, error: BaseException) -> Outcome:
            return Outcome("failed", type(error).__name__, error)

        self.workers = Workers(
            finish=finish, fail=fail, fatal=lambda _: None, context=contextvars.copy_context(), name="test"
        )
        self.intake = Intake(
            self._app, Dispatcher(subscriptions(self.runners, "g")), self.workers, self, **cast("Any", self._bounds)
        )
        self.intake.connected(session_present=False, mqtt5=True)
        try:
            yield self
        finally:
            await self.workers.stop()

    def give(self, *payloads: str, topic: str = "a", qos: int = 0) -> None:
        """One read."""
        self._wire += [(topic, payload.encode(), qos) for payload in payloads]
        self._walk()

    async def settle(self) -> None:
        """Until nothing is ready and nothing is to be parsed."""
        for _ in range(200):
            await asyncio.sleep(0)

    def _walk(self) -> None:
        self.intake.batch_begin()
        while self._wire and not self._stopped:
            topic, payload, qos = self._wire.pop(0)
            self._ids += 1
            ids = tuple(subscription_id(full) for runner in self.runners for full in runner.route.filters("g"))
            properties = Properties(subscription_ids=ids[:1]) if len(ids) == 1 else NO_PROPERTIES
            self.intake.receive(topic, payload, qos, False, False, self._ids if qos else 0, properties)
        self.intake.batch_end()

    # as a port

    def write(self, data: bytes) -> None:
        self.written += data

    def pause(self) -> None:
        self.pauses += 1
        self._stopped = True

    def resume(self) -> None:
        self._stopped = False
        self._walk()


def app_with(template: str = "<t>", **options: Any) -> App:
    app = App()
    add(app, template, **{"qos": 0, **options})
    return app


def counted(bench: Bench) -> int:
    return bench.runners[0].counts["overflowed"]


async def test_the_oldest_that_waits_is_dropped_never_one_that_runs() -> None:
    async with Bench(app_with(overflow="drop_oldest")).running() as bench:
        bench.give("0")
        await bench.settle()
        bench.give(*"12345")
        await bench.settle()
        assert counted(bench) == 3
        bench.gate.set()
        await bench.workers.drain()
        assert bench.handled == ["0", "4", "5"]


async def test_the_newest_is_dropped() -> None:
    async with Bench(app_with(overflow="drop_newest")).running() as bench:
        bench.give(*"012345")
        await bench.settle()
        bench.gate.set()
        await bench.workers.drain()
        assert (bench.handled, counted(bench)) == (["0", "1", "2"], 3)


async def test_the_latest_of_each_key_stays() -> None:
    async with Bench(app_with(overflow="latest"), limit=100).running() as bench:
        for number in range(5):
            bench.give(f"a{number}", topic="a")
            bench.give(f"b{number}", topic="b")
            await bench.settle()
        bench.gate.set()
        await bench.workers.drain()
        assert (sorted(bench.handled), counted(bench)) == (["a0", "a4", "b0", "b4"], 6)
        assert bench.handled.index("a0") < bench.handled.index("a4")


async def test_of_what_waits_for_room_in_the_route_only_the_latest_of_each_key_stays() -> None:
    async with Bench(app_with(overflow="latest", concurrency=1), limit=100).running() as bench:
        bench.give("busy", topic="other")
        await bench.settle()
        for number in range(4):
            bench.give(f"a{number}", topic="a")
            await bench.settle()
        bench.gate.set()
        await bench.workers.drain()
        assert (bench.handled, counted(bench)) == (["busy", "a3"], 3)


async def test_where_all_run_and_none_waits_the_newest_has_to_go() -> None:
    async with Bench(app_with(overflow="drop_oldest")).running() as bench:
        for topic in "abcdef":
            bench.give(topic, topic=topic)
            await bench.settle()
        bench.gate.set()
        await bench.workers.drain()
        assert (sorted(bench.handled), counted(bench)) == (["a", "b", "c"], 3)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest"])
async def test_nothing_is_dropped_in_one_read_while_handlers_are_quick(overflow: str) -> None:
    """The queue is a bound on what waits for handlers, not on what one read may bring."""
    async with Bench(app_with(overflow=overflow, ordered_by=lambda message: message.payload)).running() as bench:
        bench.quick = True
        bench.give(*map(str, range(500)))
        await bench.settle()
        await bench.workers.drain()
        assert (bench.handled, counted(bench)) == ([str(number) for number in range(500)], 0)
        assert bench.pauses


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
async def test_the_oldest_that_waits_for_the_routes_limit_is_dropped(overflow: str) -> None:
    """With its lane: what waits behind it in the lane takes its place."""
    async with Bench(app_with(overflow=overflow, concurrency=1)).running() as bench:
        bench.give("a0", topic="a")
        await bench.settle()
        bench.give("b0", topic="b")
        bench.give("b1", topic="b")
        bench.give("c0", topic="c")
        await bench.settle()
        assert counted(bench) == 1
        bench.gate.set()
        await bench.workers.drain()
        assert bench.handled == ["a0", "b1", "c0"]
        bench.give("b2", topic="b")
        await bench.workers.drain()
        assert bench.handled[3:] == ["b2"]


async def test_bytes_are_bounded_too() -> None:
    async with Bench(app_with(overflow="drop_oldest"), limit=100, max_bytes=50).running() as bench:
        queue = bench.runners[0].queue
        assert queue is not None
        bench.give("first")
        await bench.settle()
        for number in range(10):
            bench.give(f"{number}" * 20)
            assert queue.held_bytes < 50 + 20
        bench.gate.set()
        await bench.workers.drain()
        assert bench.handled[-1] == "9" * 20
        assert (queue.held, queue.held_bytes) == (0, 0)


async def test_qos_1_is_never_dropped() -> None:
    async with Bench(app_with(overflow="drop_oldest", qos=1)).running() as bench:
        bench.give("0")
        await bench.settle()
        bench.give(*"abcdefgh", qos=1)
        bench.give(*"123456")
        bench.give("z", qos=1)
        await bench.settle()
        bench.gate.set()
        await bench.workers.drain()
        await bench.settle()
        assert set("abcdefghz") < set(bench.handled)
        assert [payload for payload in bench.handled if payload.isdigit()] == ["0", "5", "6"]
        assert bench.written.count(b"\x40\x02") == 9


async def test_a_route_that_drops_does_not_stop_the_link_but_one_that_blocks_does() -> None:
    app = app_with("shed/#", overflow="drop_newest")
    add(app, "block/#", qos=0)
    async with Bench(app, max_in_flight=5).running() as bench:
        for number in range(20):
            bench.give(f"s{number}", topic="shed/x")
            await bench.settle()
        assert bench.pauses == 0
        for number in range(20):
            bench.give(f"b{number}", topic="block/x")
            await bench.settle()
        assert bench.pauses == 1
        bench.gate.set()
        await bench.settle()
        await bench.workers.drain()
        assert [each for each in bench.handled if each[0] == "b"] == [f"b{number}" for number in range(20)]
        assert len(bench.handled) == 23


async def test_what_is_dropped_is_told_once_a_period(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mqttapi.runtime.overflow.PERIOD", 0.01)
    async with Bench(app_with("t/<x>", overflow="drop_newest")).running() as bench:
        with caplog.at_level(logging.WARNING):
            bench.give(*"0123456789", topic="t/1")
            await bench.settle()
            while not caplog.messages:
                await asyncio.sleep(0.001)
        assert caplog.messages == [
            "t/<x> dropped 7 messages of QoS 0 within 0.01 s: it holds 3, and overflow='drop_newest'"
        ]
        assert bench.runners[0].queue is not None
        bench.runners[0].queue.summarise()
        assert len(caplog.messages) == 1


# ack="received"


async def test_what_is_acknowledged_as_it_comes_waits_for_no_handler_and_is_bounded_all_the_same() -> None:
    async with Bench(app_with(ack="received", qos=1, ordered_by=None), max_in_flight=4).running() as bench:
        bench.give(*"0123456789", qos=1)
        await bench.settle()
        assert bench.written == b"".join(b"\x40\x02\x00" + bytes([number]) for number in (1, 2, 3))
        assert bench.intake.paused
        bench.gate.set()
        await bench.settle()
        await bench.workers.drain()
        await bench.settle()
        assert sorted(bench.handled) == list("0123456789")
        assert bench.written.count(b"\x40\x02") == 10


async def test_a_route_that_waits_holds_the_acknowledgement_of_one_that_does_not() -> None:
    app = app_with("a", ack="received", qos=1)
    add(app, "+", qos=1)
    async with Bench(app).running() as bench:
        bench.give("x", qos=1)
        await bench.settle()
        assert not bench.written
        bench.gate.set()
        await bench.workers.drain()
        await bench.settle()
        assert bench.written == b"\x40\x02\x00\x01"


@pytest.mark.parametrize("qos", [0, 1])
async def test_user_properties_and_topics_count_as_bytes_that_are_held(qos: int) -> None:
    async with Bench(app_with(qos=qos), max_bytes=1_000_000).running() as bench:
        heavy = HeavyProperties.of(Properties(user_properties=(("name", "v" * 400_000),)))
        for number in range(3):
            assert bench.pauses == 0
            bench.intake.receive(f"t{number}", b"", qos, False, False, number + 1 if qos else 0, heavy)
        assert bench.pauses == 1
        bench.intake.batch_end()
        bench.gate.set()
        await bench.workers.drain()
        await bench.settle()
        assert (bench.intake.ledger.held_bytes, bench.intake._light_bytes) == (0, 0)


async def test_of_what_is_refused_ten_are_logged_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with Bench(app_with()).running() as bench:
        for _ in range(500):
            bench.intake.refuse("a/+", 0, 0, "it has a wildcard")
        assert len(caplog.messages) == 10
        assert bench.intake.refused == 500
