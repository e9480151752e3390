"""The outbox: what is committed is sent, at least once and in order; what was rolled back never is."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from mqttapi import (
    App,
    ConfigurationError,
    InvalidTopic,
    NotConnected,
    Publish,
    Publisher,
    PublishQueueFull,
    PublishRefused,
    PublishResult,
)
from mqttapi.config import Settings
from mqttapi.resources.outbox import Outbox
from mqttapi.resources.relay import LEASE, Relay
from mqttapi.resources.sql import Session, open_database
from mqttapi.resources.tables import LEASES, OUTBOX, create_tables, publish_of, row_of
from mqttapi.testing import TestClient
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client as connect
from tests.support.packets import Packet, PacketType, ack
from tests.support.waiting import eventually


class Wire:
    """Where messages go: it takes, refuses, or keeps them waiting."""

    has_properties = True

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.refused: set[str] = set()
        self.held = False
        self.futures: list[tuple[Publish, asyncio.Future[PublishResult]]] = []
        self.full = 0

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        if self.full:
            self.full -= 1
            raise PublishQueueFull("full")
        future: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()
        self.futures.append((publish, future))
        if not self.held:
            self.settle(publish, future)
        return future

    def settle(self, publish: Publish, future: asyncio.Future[PublishResult]) -> None:
        if publish.topic in self.refused:
            future.set_exception(PublishRefused("not authorized", reason_code=0x87))
        else:
            self.sent.append(publish.payload.decode())
            future.set_result(PublishResult(publish.topic, 1))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_database(Settings(database_url=f"sqlite:///{tmp_path}/app.db"))
    await create_tables(engine)
    yield engine
    await engine.dispose()


async def add(engine: AsyncEngine, *payloads: str, topic: str = "t") -> None:
    async with engine.begin() as connection:
        for payload in payloads:
            await connection.execute(insert(OUTBOX).values(row_of(Publish(topic, payload))))


async def waiting(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        rows = await connection.execute(select(OUTBOX.c.payload).order_by(OUTBOX.c.id))
        return [payload.decode() for payload in rows.scalars()]


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- in a handler ---------------------------------------------------------------------------------------------------


def publishing(file: Path) -> App:
    app = App("outbox", settings=Settings(database_url=f"sqlite:///{file}", instance="test"))

    @app.topic("s/<id>")
    async def send(id: str, payload: str, outbox: Outbox) -> None:
        await outbox.publish("out/<id>", payload, params={"id": id})
        if payload == "bad":
            raise ValueError

    return app


async def test_what_is_committed_is_sent_and_what_was_rolled_back_is_not(tmp_path: Path) -> None:
    app = publishing(tmp_path / "app.db")
    async with TestClient(app, raise_exceptions=False) as client:
        for payload in ("a", "bad", "b"):
            await client.publish("s/1", payload)
        assert [(each.topic, each.payload) for each in client.published] == [("out/1", b"a"), ("out/1", b"b")]


async def test_it_is_in_the_transaction_of_the_session(tmp_path: Path) -> None:
    app = App("outbox", settings=Settings(database_url=f"sqlite:///{tmp_path}/app.db", instance="test"))
    counts: list[object] = []

    @app.topic("s/<id>")
    async def send(session: Session, outbox: Outbox) -> None:
        await outbox.publish("out", "x")
        counts.append((await session.execute(text("SELECT count(*) FROM mqttapi_outbox"))).scalar())
        await session.rollback()

    async with TestClient(app) as client:
        await client.publish("s/1")
        assert client.published == []
    assert counts == [1]


async def test_a_wrong_topic_is_refused_in_the_handler(tmp_path: Path) -> None:
    app = App("outbox", settings=Settings(database_url=f"sqlite:///{tmp_path}/app.db", instance="test"))

    @app.topic("s/<id>")
    async def send(outbox: Outbox) -> None:
        await outbox.publish("out/<id>", params={"id": "a/b"})

    async with TestClient(app) as client:
        with pytest.raises(InvalidTopic):
            await client.publish("s/1")


@pytest.mark.parametrize(
    ("topic", "options", "said"),
    [
        ("$SYS/x", {}, "topics that begin with '$' belong to the broker"),
        ("out", {"expires": 5}, "publish to 'out': unknown option 'expires'. Did you mean 'expiry'?"),
    ],
)
async def test_what_could_never_be_sent_fails_the_handler_and_is_not_kept(
    topic: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    app = App("outbox", settings=Settings(database_url=f"sqlite:///{tmp_path}/app.db", instance="test"))

    @app.topic("s/<id>")
    async def send(outbox: Outbox) -> None:
        await outbox.publish(topic, "x", **options)

    async with TestClient(app) as client:
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            await client.publish("s/1")
        assert await waiting(app.opened(AsyncEngine)) == []


@given(
    topic=st.sampled_from(["a", "a/b", "ü"]),
    payload=st.binary(max_size=20),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    expiry=st.none() | st.integers(1000, 2**32 - 1),
    content_type=st.none() | st.just("application/json"),
    user_properties=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=3),
    response_topic=st.none() | st.just("answers"),
    correlation_data=st.none() | st.binary(max_size=20),
    payload_format_indicator=st.sampled_from([0, 1]),
)
def test_a_message_leaves_the_table_as_it_came(**fields: Any) -> None:
    class Row:
        def __init__(self, values: dict[str, Any]) -> None:
            self.__dict__.update(values)

    publish = Publish(**fields)
    back = publish_of(Row(row_of(publish)))  # type: ignore[arg-type]  # all that it needs of a row
    assert back is not None
    if publish.expiry is not None:
        assert back.expiry is not None
        assert publish.expiry - 60 < back.expiry <= publish.expiry
    names = [name for name in fields if name != "expiry"]
    assert [getattr(back, name) for name in names] == [
        tuple(fields[name]) if name == "user_properties" else fields[name] for name in names
    ]


# -- the relay ------------------------------------------------------------------------------------------------------


async def test_rows_are_sent_in_the_order_of_their_transactions(engine: AsyncEngine) -> None:
    wire = Wire()
    payloads = [str(number) for number in range(500)]
    for start in range(0, 500, 50):
        await add(engine, *payloads[start : start + 50])
    await Relay(engine, Publisher(wire)).flush()
    assert wire.sent == payloads
    assert await waiting(engine) == []


async def test_a_row_stays_until_its_message_is_confirmed(engine: AsyncEngine) -> None:
    wire = Wire()
    wire.held = True
    await add(engine, "a", "b")
    async with running(Relay(engine, Publisher(wire))):
        await eventually(lambda: len(wire.futures) == 2)
        assert await waiting(engine) == ["a", "b"]
        for each in wire.futures:
            wire.settle(*each)
        await eventually(lambda: _empty(engine))


async def test_what_was_not_confirmed_when_it_stopped_is_sent_by_the_next_one(engine: AsyncEngine) -> None:
    wire = Wire()
    wire.held = True
    await add(engine, "a", "b")
    async with running(Relay(engine, Publisher(wire))):
        await eventually(lambda: len(wire.futures) == 2)
    assert all(future.cancelled() for _, future in wire.futures)
    wire.held = False
    await _lease_runs_out(engine)
    await Relay(engine, Publisher(wire)).flush()
    assert wire.sent == ["a", "b"]


async def test_a_row_refused_n_times_is_marked_and_the_rest_goes_on(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire()
    wire.refused = {"forbidden"}
    await add(engine, "1")
    await add(engine, "never", topic="forbidden")
    await add(engine, "2")
    relay = Relay(engine, Publisher(wire), attempts=3, pause=0.001)

    async def given_up() -> bool:
        await relay.flush()
        async with engine.connect() as connection:
            row = (await connection.execute(select(OUTBOX))).one()
        return bool(row.failed and row.attempts == 3 and row.error == "not authorized")

    await eventually(given_up)
    assert wire.sent == ["1", "2"]
    assert len([publish for publish, _ in wire.futures if publish.topic == "forbidden"]) == 3
    assert "gives up on message 2 to forbidden, refused 3 times: not authorized" in caplog.text


async def test_a_row_that_cannot_be_read_does_not_stop_the_others(engine: AsyncEngine) -> None:
    wire = Wire()
    await add(engine, "1", "broken", "2")
    async with engine.begin() as connection:
        await connection.execute(update(OUTBOX).where(OUTBOX.c.id == 2).values(properties="no json"))
    await Relay(engine, Publisher(wire), attempts=1).flush()
    assert wire.sent == ["1", "2"]
    assert await waiting(engine) == ["broken"]


async def test_a_message_that_has_expired_in_the_outbox_is_not_sent(engine: AsyncEngine) -> None:
    wire = Wire()
    row = row_of(Publish("t", "late", expiry=10))
    async with engine.begin() as connection:
        await connection.execute(insert(OUTBOX).values({**row, "created_at": time.time() - 11}))
    await Relay(engine, Publisher(wire)).flush()
    assert (wire.sent, await waiting(engine)) == ([], [])


async def test_a_full_queue_is_waited_for_and_counts_as_no_refusal(engine: AsyncEngine) -> None:
    wire = Wire()
    wire.full = 3
    await add(engine, "a", "b")
    await Relay(engine, Publisher(wire), attempts=1, pause=0.001).flush()
    assert wire.sent == ["a", "b"]


async def test_of_several_relays_one_sends_at_a_time(engine: AsyncEngine) -> None:
    wire = Wire()
    relays = [Relay(engine, Publisher(wire)) for _ in range(4)]
    payloads = [str(number) for number in range(200)]
    async with running(relays[0]), running(relays[1]), running(relays[2]), running(relays[3]):
        for number, payload in enumerate(payloads):
            await add(engine, payload)
            relays[number % 4].wake()
        await eventually(lambda: len(wire.sent) >= 200)
        await eventually(lambda: _empty(engine))
    assert wire.sent == payloads


async def test_while_another_worker_holds_the_lease_nothing_is_sent(engine: AsyncEngine) -> None:
    wire = Wire()
    await add(engine, "a")
    async with engine.begin() as connection:
        await connection.execute(update(LEASES).values(holder="other", expires_at=time.time() + LEASE))
    relay = Relay(engine, Publisher(wire))
    await relay.flush()
    assert wire.sent == []
    await _lease_runs_out(engine)
    await relay.flush()
    assert wire.sent == ["a"]


async def test_a_lease_from_a_clock_that_was_ahead_does_not_hold(engine: AsyncEngine) -> None:
    wire = Wire()
    await add(engine, "a")
    async with engine.begin() as connection:
        await connection.execute(update(LEASES).values(holder="other", expires_at=time.time() + 7200))
    await Relay(engine, Publisher(wire)).flush()
    assert wire.sent == ["a"]


async def test_an_outbox_at_rest_writes_nothing(engine: AsyncEngine) -> None:
    relay = Relay(engine, Publisher(Wire()))
    async with engine.connect() as other:
        await other.execute(text("SELECT 1"))  # BEGIN IMMEDIATE: a writer would wait
        await asyncio.wait_for(relay.flush(), 5)


async def test_without_a_connection_rows_wait(engine: AsyncEngine) -> None:
    publisher = Publisher()
    await add(engine, "a")
    relay = Relay(engine, publisher, pause=0.001)
    flushing = asyncio.create_task(relay.flush())
    with pytest.raises(NotConnected):
        await publisher.publish("x")
    wire = Wire()
    publisher.outgoing = wire
    await flushing
    assert wire.sent == ["a"]


async def test_it_outlives_a_database_that_fails(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    relay = Relay(engine, Publisher(wire))
    await add(engine, "a")
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE mqttapi_leases RENAME TO away"))
    async with running(relay):
        await eventually(lambda: "the outbox waits for the database" in caplog.text)
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE away RENAME TO mqttapi_leases"))
        await eventually(lambda: wire.sent == ["a"])


async def test_tables_are_created_once_though_many_create_them(tmp_path: Path) -> None:
    engines = [open_database(Settings(database_url=f"sqlite:///{tmp_path}/new.db")) for _ in range(5)]
    await asyncio.gather(*(create_tables(engine) for engine in engines))
    for engine in engines:
        await engine.dispose()


async def _empty(engine: AsyncEngine) -> bool:
    return await waiting(engine) == []


async def _lease_runs_out(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(update(LEASES).values(expires_at=time.time() - 1))


# -- with a broker --------------------------------------------------------------------------------------------------


async def test_what_a_broker_refuses_waits_and_the_rest_arrives(fake_broker: FakeBroker, tmp_path: Path) -> None:
    app = App("outbox", settings=Settings(database_url=f"sqlite:///{tmp_path}/app.db", instance="test", grace=5.0))

    @app.topic("s/<id>")
    async def send(payload: str, outbox: Outbox) -> None:
        await outbox.publish("forbidden", payload)
        await outbox.publish("out/1", payload)

    def answer(connection: Connection, packet: Packet) -> bytes:
        return ack(PacketType.PUBACK, packet.packet_id, 0x87 if packet.topic == "forbidden" else 0)

    fake_broker.reply(PacketType.PUBLISH, answer)
    async with app.running(broker=fake_broker.url):
        link = await fake_broker.subscribed()
        for number in range(3):
            link.publish("s/1", b"%d" % number, qos=1, packet_id=number + 1)

        def arrived() -> list[bytes]:
            return [packet.payload for packet in fake_broker.packets(PacketType.PUBLISH) if packet.topic == "out/1"]

        await eventually(lambda: len(arrived()) == 3)
        assert arrived() == [b"0", b"1", b"2"]
        engine = app.opened(AsyncEngine)

        async def refused() -> list[str]:
            async with engine.connect() as connection:
                return list((await connection.execute(select(OUTBOX.c.error))).scalars())

        reason = "publish to 'forbidden': the broker refuses it: Not authorized (0x87)"

        async def all_refused() -> bool:
            return await refused() == [reason] * 3

        await eventually(all_refused)


async def test_the_outbox_is_emptied_before_the_app_has_stopped(mosquitto: Mosquitto, tmp_path: Path) -> None:
    app = publishing(tmp_path / "app.db")
    async with connect(mosquitto.url) as client:
        await client.subscribe("out/#")
        async with app.running(broker=mosquitto.url):
            for number in range(50):
                await client.publish("s/1", str(number))
            await eventually(lambda: sum(route.done for route in app.stats.routes.values()) == 50)
        await client.wait_for(50)
    assert [packet.payload for packet in client.messages] == [b"%d" % number for number in range(50)]
