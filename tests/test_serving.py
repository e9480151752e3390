"""An app against a real broker: what is promised about messages, sessions and connections, on MQTT 5 and 3.1.1."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from mqttapi import App, ConfigurationError, ConnectionRefused, Context, Publisher, Session
from mqttapi.config import Settings
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType, suback
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])


class Reading(BaseModel):
    number: int


def settings(version: str = "5", **values: Any) -> Settings:
    return Settings(protocol=version, instance="test", grace=5.0, **values)


def counting(name: str, version: str = "5", template: str = "s/<id>", **options: Any) -> tuple[App, Counter[str]]:
    """An app that counts the payloads it has handled."""
    app = App(name, settings=settings(version))
    handled: Counter[str] = Counter()

    @app.topic(template, **options)
    async def count(payload: str) -> None:
        handled[payload] += 1

    return app, handled


async def publish(broker: Mosquitto, topic: str, *payloads: str, qos: int = 1) -> None:
    async with client(broker.url) as publisher:
        for payload in payloads:
            await publisher.publish(topic, payload.encode(), qos=qos)


@VERSIONS
async def test_what_was_published_is_handled_once(mosquitto: Mosquitto, version: str) -> None:
    app, handled = counting("once", version)
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", *"abc")
        await eventually(lambda: len(handled) == 3)
    assert handled == {"a": 1, "b": 1, "c": 1}


@VERSIONS
async def test_what_comes_while_the_app_is_away_is_handled_when_it_is_back(mosquitto: Mosquitto, version: str) -> None:
    """Stopping does not unsubscribe, and a session outlives its connection."""
    app, handled = counting("away", version)
    async with app.running(broker=mosquitto.url):
        pass
    await publish(mosquitto, "s/1", *"abcde")
    async with app.running(broker=mosquitto.url):
        await eventually(lambda: len(handled) == 5)
    assert set(handled.values()) == {1}


async def test_a_transient_session_gets_nothing_from_before(mosquitto: Mosquitto) -> None:
    app, handled = counting("transient")
    app.session = Session.transient()
    async with app.running(broker=mosquitto.url):
        pass
    await publish(mosquitto, "s/1", "before")
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "after")
        await eventually(lambda: handled["after"] == 1)
    assert handled["before"] == 0


@VERSIONS
async def test_a_message_is_acknowledged_only_after_its_handler(
    mosquitto: Mosquitto, proxy: Callable[..., Awaitable[Proxy]], version: str
) -> None:
    """While the handler of one message waits another one is handled, yet neither is acknowledged: order is kept."""
    between = await proxy(mosquitto.port)
    gate, quick = asyncio.Event(), asyncio.Event()
    app = App("late", settings=settings(version))

    @app.topic("slow")
    async def slow() -> None:
        await gate.wait()

    @app.topic("quick")
    async def fast() -> None:
        quick.set()

    async with app.running(broker=between.url):
        await publish(mosquitto, "slow", "x")
        await publish(mosquitto, "quick", "x")
        await quick.wait()
        assert between.packets(Direction.TO_BROKER, PacketType.PUBACK) == []
        gate.set()
        await between.wait_for(Direction.TO_BROKER, PacketType.PUBACK, 2)


async def test_graceful_stop_finishes_what_was_accepted(mosquitto: Mosquitto) -> None:
    entered = asyncio.Event()
    done: list[str] = []
    app = App("drain", settings=settings())

    @app.topic("s/<id>")
    async def slow(payload: str) -> None:
        entered.set()
        await asyncio.sleep(0.05)
        done.append(payload)

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "x")
        await entered.wait()
    assert done == ["x"]
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "y")
        await eventually(lambda: "y" in done)
    assert done == ["x", "y"]


@VERSIONS
async def test_overlapping_routes_run_once_each(mosquitto: Mosquitto, version: str) -> None:
    handled: Counter[str] = Counter()
    app = App("overlap", settings=settings(version))

    @app.topic("s/#")
    async def everything() -> None:
        handled["s/#"] += 1

    @app.topic("s/<id>/t")
    async def one() -> None:
        handled["s/<id>/t"] += 1

    @app.topic("s/<id>/t", shared=True)
    async def group() -> None:
        handled["shared"] += 1

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1/t", "x")
        await publish(mosquitto, "s/end", "x")
        await eventually(lambda: handled.total() >= 4)
    assert handled == {"s/#": 2, "s/<id>/t": 1, "shared": 1}


async def test_the_first_route_alone_runs_where_the_app_says_so(mosquitto: Mosquitto) -> None:
    handled: Counter[str] = Counter()
    app = App("first", settings=settings(), dispatch="first")

    @app.topic("s/<id>/t")
    async def one() -> None:
        handled["one"] += 1

    @app.topic("s/#")
    async def rest() -> None:
        handled["rest"] += 1

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1/t", "x")
        await publish(mosquitto, "s/end", "x")
        await eventually(lambda: handled["rest"] >= 1)
    assert handled == {"one": 1, "rest": 1}


@VERSIONS
async def test_a_restarted_broker_is_subscribed_to_again(mosquitto: Mosquitto, version: str) -> None:
    app, handled = counting("restart", version, shared=True)
    async with app.running(broker=mosquitto.url):
        mosquitto.restart()

        async def handled_after_another_publish() -> bool:
            await publish(mosquitto, "s/1", "x")
            return bool(handled)

        await eventually(handled_after_another_publish, what="a message after the restart")


async def test_a_handler_may_publish_while_messages_pour_in(mosquitto: Mosquitto) -> None:
    """`await publish(qos=1)` in a handler works at any load: publishing has its own connection."""
    relayed: Counter[str] = Counter()
    app = App("busy", settings=settings(max_in_flight=20))

    @app.topic("s/<id>")
    async def relay(publisher: Publisher, payload: str) -> None:
        await publisher.publish("out", payload)
        relayed[payload] += 1

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", *map(str, range(1000)))
        await eventually(lambda: len(relayed) == 1000, within=30)
    assert set(relayed.values()) == {1}


@pytest.mark.parametrize(
    "payload", [b"\xff\xfe", b"", b"not json", b"[" * 100_000, b'{"number": "x"}', b'{"number": ' + b"9" * 5000 + b"}"]
)
async def test_a_bad_payload_is_rejected_and_the_next_one_handled(mosquitto: Mosquitto, payload: bytes) -> None:
    good: list[int] = []
    app = App("bad", settings=settings())

    @app.topic("s/<id>")
    async def take(reading: Reading) -> None:
        good.append(reading.number)

    async with app.running(broker=mosquitto.url), client(mosquitto.url) as publisher:
        await publisher.publish("s/1", payload, qos=1)
        await publisher.publish("s/1", b'{"number": 1}', qos=1)
        await eventually(lambda: good == [1])


async def test_25_failures_in_a_row_do_not_stop_the_flow(mosquitto: Mosquitto) -> None:
    good: list[str] = []
    app = App("failing", settings=settings())

    @app.topic("s/<id>")
    async def take(payload: str) -> None:
        if payload == "bad":
            raise ValueError(payload)
        good.append(payload)

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", *["bad"] * 25, "good")
        await eventually(lambda: good == ["good"])


async def run_in(app: App, broker: str) -> None:
    async with app.running(broker=broker):
        pytest.fail("started")


@pytest.mark.parametrize(
    ("start", "source"), [(run_in, "running(broker=)"), (App.serve, "serve(broker=)"), (App.run, "run(broker=)")]
)
def test_a_wrong_broker_is_named_by_where_it_was_given(start: Any, source: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        started = start(App("wrong"), broker="mqtt://h:99999")
        asyncio.run(started)
    assert str(caught.value) == f"port must be 1-65535, got '99999' ({source})"


async def test_a_refused_subscription_names_the_route(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.SUBSCRIBE, lambda connection, packet: suback(packet.packet_id, [0x87]))
    app, _ = counting("refused")
    with pytest.raises(ConnectionRefused, match=r"refuses the subscription 's/\+' of .*count: .*0x87"):
        async with app.running(broker=fake_broker.url):
            pass


async def test_middleware_of_app_router_and_route_runs_in_that_order(mosquitto: Mosquitto) -> None:
    seen: list[str] = []

    def noting(name: str) -> Any:
        async def middleware(context: Context, call_next: Any) -> Any:
            seen.append(name)
            return await call_next(context)

        return middleware

    app = App("order", settings=settings(), middleware=[noting("app")])

    @app.topic("s/<id>", middleware=[noting("route")])
    async def take() -> None:
        seen.append("handler")

    app.add_middleware(noting("app 2"))
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "x")
        await eventually(lambda: "handler" in seen)
    assert seen == ["app", "app 2", "route", "handler"]


@asynccontextmanager
async def _lifespan(app: App) -> AsyncIterator[None]:
    app.state.log = ["open"]
    yield
    app.state.log.append("closed")


async def test_the_lifespan_is_around_the_run(mosquitto: Mosquitto) -> None:
    app = App("life", settings=settings(), lifespan=_lifespan)

    @app.topic("s/<id>")
    async def take() -> None: ...

    async with app.running(broker=mosquitto.url):
        assert app.state.log == ["open"]
    assert app.state.log == ["open", "closed"]


async def test_a_time_out_that_is_never_reached_is_told_at_the_start(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("cut", settings=settings())

    @app.topic("a", name="slow", timeout=300)
    @app.topic("b", name="quick", timeout=30)
    async def handler() -> None: ...

    async with app.running(broker=mosquitto.url):
        told = [text for text in caplog.messages if "timeout" in text]
    assert told == [
        "timeout= of 'slow' is never reached: a message is held for 60 s at most. Raise MQTTAPI_MAX_HOLD, or make it 60 or less"
    ]
