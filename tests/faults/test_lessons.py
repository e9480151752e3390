"""What went wrong in other frameworks for this job: each line of the list, against a real broker."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Literal

import pytest

from mqttapi import App, ConfigurationError, Depends, Publisher, Router
from mqttapi.transport import dialer
from tests.faults.support import AppProcess, Row, app_called, consumers, counting, publish_all, texts
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import Packet, PacketType, connack, suback
from tests.support.proxy import Direction, Proxy, ProxyConnection
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]
Before = Callable[..., Awaitable[Proxy]]
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])

HANDLES = """
@app.topic("s/<id>")
async def handle(payload: str):
    note("handled", payload)
"""


@VERSIONS
async def test_a_broker_restarted_under_a_running_app_is_subscribed_to_again(
    mosquitto: Mosquitto, fault: Row, version: str
) -> None:
    fault(f"broker restarted under a running app ({version})", "receives again; readiness shows the gap")
    app, handled = counting("restarted", settings={"protocol": version})
    async with app.running(broker=mosquitto.url):
        assert not app.readiness
        mosquitto.stop()
        await eventually(lambda: app.readiness, what="readiness shows the gap")
        mosquitto.start()
        await eventually(lambda: not app.readiness, what="ready again")
        await publish_all(mosquitto.url, "s/1", texts(5))
        await eventually(lambda: len(handled) == 5)
    fault.settle(texts(5), handled)


async def test_a_broker_that_stays_away_is_tried_for_ever(
    fake_broker: FakeBroker, fault: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pauses shortened, as the real ones add up to minutes: what counts is that the attempts never end."""
    fault("broker away for long", "still trying, readiness says so, recovers")
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.02)
    app, handled = counting("away")
    async with app.running(broker=fake_broker.url):
        consumers = await fake_broker.subscribed()
        fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(0x88, version=c.version))
        consumers.reset()

        def attempts() -> int:
            return sum(not each.client_id.endswith("-pub") for each in fake_broker.connections if each.received)

        await eventually(lambda: attempts() > 20, what="20 attempts")
        assert app.readiness
        fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(version=c.version))
        connection = await fake_broker.subscribed(2)
        connection.publish("s/1", b"x", qos=1, packet_id=1)
        await connection.wait_for(PacketType.PUBACK)
        await eventually(lambda: not app.readiness)
    fault.settle(["x"], handled, seen=f"{attempts() - 2} refusals, then handled")


async def test_a_kill_while_a_qos_1_handler_runs_loses_nothing(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 1; `kill -9` while a QoS 1 handler runs", "redelivered to the restarted app")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str, context: Context):
            note("started", payload, context.message.dup)
            if not is_open("go"):
                await asyncio.Event().wait()
            note("handled", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "s/2", "s/3"], texts(3))
    await app.notes_of("started", 3)
    await app.kill()
    app.open("go")
    await app.start()
    handled = await app.notes_of("handled", 3)
    starts = app.noted("started")
    assert starts == {f"{payload} {dup}": 1 for payload in texts(3) for dup in (False, True)}
    fault.settle(texts(3), handled)


async def test_messages_that_wait_when_the_app_starts_are_handled(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("5 queued messages wait when the app starts, and its lifespan is slow", "all handled")
    app = launch(
        mosquitto.url,
        """
        import contextlib

        @contextlib.asynccontextmanager
        async def lifespan(app):
            await opened("lifespan")
            yield

        app = App("faults", lifespan=lifespan)
        """
        + HANDLES.replace("\n", "\n        "),
    )
    app.open("lifespan")
    await app.start()
    await app.kill()
    (app.gates / "lifespan").unlink()
    await publish_all(mosquitto.url, "s/1", texts(5))
    app.launch()
    app.open("lifespan")
    fault.settle(texts(5), await app.notes_of("handled", 5))


async def test_messages_published_after_a_graceful_stop_wait_for_the_next_start(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("graceful stop, 5 messages published, start again", "5 of 5")
    app = launch(mosquitto.url, HANDLES)
    await app.start()
    assert await app.stop() == 0
    await publish_all(mosquitto.url, "s/1", texts(5))
    await app.start()
    handled = await app.notes_of("handled", 5)
    assert await app.stop() == 0
    fault.settle(texts(5), handled)


async def test_a_session_that_is_to_last_says_for_how_long(fake_broker: FakeBroker, fault: Row) -> None:
    fault("MQTT 5, `clean_start=False`", "Session Expiry is set")
    app, _ = counting("expiry")
    async with app.running(broker=fake_broker.url):
        connect = (await fake_broker.subscribed()).received[0].connect
    assert not connect.clean_start
    assert connect.session_expiry_interval == 86_400
    fault.saw(f"Session Expiry Interval {connect.session_expiry_interval} s")


@VERSIONS
async def test_a_general_and_a_narrow_route_run_once_each(mosquitto: Mosquitto, fault: Row, version: str) -> None:
    fault(f"`s/#` and `s/<id>/t` both routed ({version})", "each once")
    handled: Counter[str] = Counter()
    app = app_called("overlap", protocol=version)

    @app.topic("s/#")
    async def everything(payload: str) -> None:
        handled[f"s/# {payload}"] += 1

    @app.topic("s/<id>/t")
    async def narrow(id: str, payload: str) -> None:
        handled[f"s/<id>/t {payload}"] += 1

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, ["s/1/t", "s/2/t"], texts(20))
        await publish_all(mosquitto.url, "s/end", ["end"])
        await eventually(lambda: len(handled) == 41, what=lambda: str(handled))
    wanted = [f"{route} {payload}" for route in ("s/#", "s/<id>/t") for payload in texts(20)]
    fault.settle([*wanted, "s/# end"], handled)


@VERSIONS
async def test_two_routes_on_one_filter_and_three_ways_to_subscribe_to_it(
    mosquitto: Mosquitto, fault: Row, version: str
) -> None:
    fault(f"two routes on one filter, plain, in group a and in group b ({version})", "each gets its own")
    handled: Counter[str] = Counter()
    app = app_called("same", protocol=version)

    def route(name: str, shared: str | bool) -> None:
        @app.topic("s/<id>", name=name, shared=shared)
        async def handle(payload: str) -> None:
            handled[f"{name} {payload}"] += 1

    kinds: dict[str, str | bool] = {"plain": False, "plain too": False, "a": "a", "a too": "a", "b": "b"}
    for name, shared in kinds.items():
        route(name, shared)
    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, "s/1", texts(10))
        await eventually(lambda: len(handled) == 50, what=lambda: str(handled))
        await publish_all(mosquitto.url, "s/1", ["end"])
        await eventually(lambda: len(handled) == 55, what=lambda: str(handled))
    fault.settle([f"{name} {payload}" for name in kinds for payload in (*texts(10), "end")], handled)


async def test_a_shared_subscription_to_everything_matches(mosquitto: Mosquitto, fault: Row) -> None:
    fault("`$share/g/#`", "matched")
    app, handled = counting("all", "#", shared="g")
    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, ["a", "a/b", "/"], texts(9))
        await eventually(lambda: len(handled) == 9)
    fault.settle(texts(9), handled)


async def test_a_handler_publishes_and_waits_while_5000_messages_arrive(
    forgetful_mosquitto: Mosquitto, fault: Row
) -> None:
    fault("handler awaits `publish(qos=1)` while 5,000 messages arrive", "all handled")
    handled: Counter[str] = Counter()
    app = app_called("relay")

    @app.topic("s/<id>")
    async def relay(publisher: Publisher, payload: str) -> None:
        await publisher.publish("out", payload)
        handled[payload] += 1

    async with app.running(broker=forgetful_mosquitto.url):
        await publish_all(forgetful_mosquitto.url, [f"s/{number}" for number in range(50)], texts(5000))
        await eventually(lambda: len(handled) == 5000, within=40, what=lambda: f"5000 handled, not {len(handled)}")
    fault.settle(texts(5000), handled)


async def test_25_failures_in_a_row_do_not_stop_the_flow(mosquitto: Mosquitto, fault: Row) -> None:
    fault("row 6; handler raises for 25 messages in a row, the broker's window is 20", "policy applies, flow goes on")
    good: Counter[str] = Counter()
    app = app_called("failing")

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        if payload == "bad":
            raise ValueError(payload)
        good[payload] += 1

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, "s/1", ["bad"] * 25 + texts(5))
        await eventually(lambda: len(good) == 5)
    fault.settle(texts(5), good, seen="25 failed and acknowledged, 5 behind them handled")


async def test_a_handler_that_returns_nothing_is_acknowledged(mosquitto: Mosquitto, proxy: Before, fault: Row) -> None:
    fault("handler returns None for 50 messages", "50 acknowledged")
    between = await proxy(mosquitto.port)
    app, handled = counting("none")
    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, "s/1", texts(50))
        acknowledged = await between.wait_for(Direction.TO_BROKER, PacketType.PUBACK, 50)
    assert len(acknowledged) == 50
    fault.settle(texts(50), handled)


async def test_a_handler_that_runs_longer_than_the_keepalive_stays_connected(
    mosquitto: Mosquitto, proxy: Before, fault: Row
) -> None:
    fault("handler runs for 1.5 × keepalive", "stays connected")
    between = await proxy(mosquitto.port)
    app = app_called("slow", keepalive=1)
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, "s/1", ["x"])
        # A ping goes out in each half of a keepalive, on either connection.
        await between.wait_for(Direction.TO_BROKER, PacketType.PINGREQ, 8)
        gate.set()
        await between.wait_for(Direction.TO_BROKER, PacketType.PUBACK)
        assert len(between.connections) == 2
    fault.settle(["x"], handled)


BOMBS = {
    "not UTF-8": b"\xff\xfe",
    "an overlong slash": b'"\xc0\xaf"',
    "empty": b"",
    "not JSON": b"hello",
    "10 levels deep": b'{"number":' * 10 + b"1" + b"}" * 10,
    "100,000 levels deep": b"[" * 100_000,
    "a million digits": b'{"number": ' + b"9" * 1_000_000 + b"}",
    "infinity": b'{"number": Infinity}',
    "a lone surrogate": b'{"number": "\\ud800"}',
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\x00" * 1000,
}


async def test_payload_bombs_are_rejected_and_the_next_message_handled(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault(f"row 24; payload bombs: {', '.join(BOMBS)}", "rejected, next message handled, memory bounded")
    app = launch(
        mosquitto.url,
        """
        from pydantic import BaseModel

        class Reading(BaseModel):
            number: int

        @app.topic("s/<id>")
        async def handle(reading: Reading):
            note("handled", reading.number)
        """,
    )
    await app.start()
    before = app.memory()
    for number, bomb in enumerate(BOMBS.values()):
        await publish_all(mosquitto.url, "s/1", [bomb, f'{{"number": {number}}}'])
    handled = await app.notes_of("handled", len(BOMBS))
    grown = app.memory() - before
    assert app.log.count("rejected") == len(BOMBS), app.log
    assert grown < 32 * 2**20
    assert "Traceback" not in app.log
    assert await app.stop() == 0
    fault.settle(texts(len(BOMBS)), handled, seen=f"{len(BOMBS)} rejected, each next one handled, +{grown >> 20} MiB")


async def test_keys_of_a_payload_are_never_arguments(mosquitto: Mosquitto, fault: Row) -> None:
    fault('payload `{"db": "x"}` for a handler with a dependency `db`', "payload keys are never arguments")
    seen: list[object] = []
    app = app_called("keys")

    def connect() -> str:
        return "the real one"

    @app.topic("s/<id>")
    async def handle(id: str, payload: dict[str, str], db: Annotated[str, Depends(connect)]) -> None:
        seen.append((id, payload, db))

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, "s/1", [b'{"db": "x", "id": "y"}'])
        await eventually(lambda: seen)
    assert seen == [("1", {"db": "x", "id": "y"}, "the real one")]
    fault.saw("the dependency stays what it is")


async def test_an_invalid_filter_is_an_error_at_registration(fault: Row) -> None:
    fault("one route with an invalid filter", "error at registration")
    with pytest.raises(ConfigurationError, match="'a/#/b'") as error:

        @App("wrong").topic("a/#/b")
        async def handle() -> None: ...

    fault.saw(str(error.value).splitlines()[0])


@pytest.mark.parametrize(("version", "code"), [("5", 0x87), ("3.1.1", 0x80)])
async def test_a_refused_subscription_ends_the_start_and_names_the_route(
    fake_broker: FakeBroker, launch: Launch, fault: Row, version: str, code: int
) -> None:
    fault(f"SUBACK 0x{code:02X} ({version})", "startup error naming the route")

    def deny(connection: Connection, packet: Packet) -> bytes:
        codes = [code if each == "secret/+" else 1 for each in packet.filters]
        return suback(packet.packet_id, codes, version=connection.version)

    fake_broker.reply(PacketType.SUBSCRIBE, deny)
    app = launch(
        fake_broker.url,
        """
        @app.topic("allowed/<id>")
        async def fine(): ...

        @app.topic("secret/<id>", name="the secret one")
        async def denied(): ...
        """,
        MQTT_PROTOCOL=version,
    )
    app.launch()
    assert await app.ended() == 1
    assert "the secret one" in app.log
    assert f"0x{code:02X}" in app.log
    assert "Traceback" not in app.log
    fault.saw("exit 1, the log names the route")


@pytest.mark.parametrize(("policy", "wanted"), [("all", 3), ("new", 1), ("skip", 0), ("only", 3)])
async def test_a_retained_message_comes_as_the_routes_policy_says(
    mosquitto: Mosquitto, proxy: Before, fault: Row, policy: Literal["all", "new", "skip", "only"], wanted: int
) -> None:
    fault(f"retained message on every reconnect, retained={policy!r}", f"{wanted} runs over 3 connections")
    async with client(mosquitto.url) as publisher:
        await publisher.publish("s/1", b"retained", retain=True)
    between = await proxy(mosquitto.port)
    app = app_called("retained")
    handled: Counter[str] = Counter()

    @app.topic("s/<id>", retained=policy)
    async def handle(payload: str) -> None:
        handled[payload] += 1

    @app.topic("end")
    async def end(payload: str) -> None:
        handled[payload] += 1

    async with app.running(broker=between.url):
        for number in range(3):
            # One SUBSCRIBE for each of the two subscription identifiers; the retained message is behind its SUBACK.
            await between.wait_for(Direction.TO_CLIENT, PacketType.SUBACK, 2 * (number + 1))
            await publish_all(mosquitto.url, ["s/1", "end"], ["live", f"end {number}"])
            connection = consumers(between)[-1]
            await eventually(partial(_all_acknowledged, connection, f"end {number}"))
            if number < 2:
                connection.close()
    assert handled["retained"] == wanted
    assert handled["live"] == (0 if policy == "only" else 3)
    fault.saw(f"{wanted} runs")


def _all_acknowledged(connection: ProxyConnection, last: str) -> bool:
    """Whether `last` has come, and all that has come is acknowledged."""
    came = [p for p in connection.packets[Direction.TO_CLIENT] if p.kind is PacketType.PUBLISH and p.qos]
    sent = [p for p in connection.packets[Direction.TO_BROKER] if p.kind is PacketType.PUBACK]
    return len(came) == len(sent) and any(packet.payload.decode() == last for packet in came)


async def test_correlation_data_comes_back_byte_for_byte(mosquitto: Mosquitto, fault: Row) -> None:
    fault("16 bytes that are no text as correlation data", "byte for byte")
    data = bytes(range(0xF0, 0x100))
    app = app_called("correlation")

    @app.topic("ask/<id>")
    async def answer() -> str:
        return "pong"

    async with app.running(broker=mosquitto.url), client(mosquitto.url) as asker:
        await asker.subscribe("answers")
        await asker.publish("ask/1", b"ping", response_topic="answers", correlation_data=data)
        reply = (await asker.message()).publish
    assert (reply.payload, reply.correlation_data) == (b"pong", data)
    fault.saw("byte for byte")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_what_was_accepted(
    mosquitto: Mosquitto, launch: Launch, fault: Row, number: signal.Signals
) -> None:
    fault(f"row 30; {number.name} with 20 messages in handlers, more queued", "drained, exit 0, the rest comes later")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            note("started", payload)
            await opened("go")
            note("handled", payload)
        """,
        MQTTAPI_MAX_IN_FLIGHT="20",
    )
    await app.start()
    await publish_all(mosquitto.url, [f"s/{index}" for index in range(50)], texts(50))
    await app.notes_of("started", 20)
    app.send(number)
    await app.said("finishing what was accepted")
    app.open("go")
    assert await app.ended() == 0
    drained = app.noted("handled")
    assert set(drained) == set(app.noted("started"))
    await app.start()
    handled = await app.notes_of("handled", 50)
    assert await app.stop() == 0
    fault.settle(texts(50), handled, seen=f"{len(drained)} drained, exit 0, {50 - len(drained)} after the start")


async def test_a_prefix_with_a_slash_makes_no_empty_levels(mosquitto: Mosquitto, fault: Row) -> None:
    fault("router prefix `p/` + `/x`", "`p/x`")
    router, handled = Router(), Counter[str]()

    @router.topic("/x")
    async def handle(payload: str) -> None:
        handled[payload] += 1

    app = app_called("prefix")
    app.include_router(router, prefix="p/")
    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, "p/x", ["x"])
        await eventually(lambda: handled)
    fault.settle(["x"], handled)


async def test_counters_are_by_route_never_by_topic(mosquitto: Mosquitto, fault: Row) -> None:
    fault("metrics or logs labelled with the topic, 500 topics", "the route's template")
    app, handled = counting("labels")
    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(500)], texts(500))
        await eventually(lambda: len(handled) == 500)
        stats = app.stats
    assert list(stats.routes) == ["s/<id>"] or len(stats.routes) == 1
    fault.saw(f"500 topics, {len(stats.routes)} label")
