"""A process in quarantine, with brokers that send again what the process before it had in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqttapi import App, ConfigurationError, Context, PoisonMessage
from mqttapi.config import Settings
from mqttapi.message import Message
from mqttapi.reporting import readiness, stats
from mqttapi.runtime.quarantine import Quarantine, key_of, read_note
from mqttapi.service import Service
from mqttapi.workers.quarantine import SlotQuarantine
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import Packet, PacketType, connack, suback
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
Before = Callable[..., Awaitable[Proxy]]


class Observed:
    """An app that notes what it is given; `stuck` ones wait until they are let go."""

    def __init__(self, directory: Path, name: str = "q", *, version: str = "5", window: int = 20) -> None:
        settings = Settings(instance="test", grace=5.0, state_dir=directory, protocol=version, max_in_flight=window)
        self.app = App(name, settings=settings)
        self.began: list[str] = []
        self.running: set[str] = set()
        self.company: set[frozenset[str]] = set()
        self.gates: dict[str, asyncio.Event] = {}

    async def handle(self, payload: str) -> None:
        self.began.append(payload)
        self.running.add(payload)
        self.company.add(frozenset(self.running))
        if payload in self.gates:
            await self.gates[payload].wait()
        await asyncio.sleep(0)
        self.running.remove(payload)

    def stuck(self, *payloads: str) -> None:
        self.gates.update({payload: asyncio.Event() for payload in payloads})

    def let(self, *payloads: str) -> None:
        for payload in payloads:
            self.gates[payload].set()


@pytest.fixture
def slot() -> Iterator[SlotQuarantine]:
    slot = SlotQuarantine()
    yield slot
    slot.close()


@asynccontextmanager
async def after_a_death(app: App, slot: SlotQuarantine, url: str, *condemned: bytes) -> AsyncIterator[Service]:
    """The app as the process that follows one that died."""
    service = Service(app, quarantine=Quarantine(slot.fd, condemned))
    async with service.connected(url):
        yield service


def key(topic: str, payload: bytes, route: str, qos: int = 1) -> bytes:
    target = SimpleNamespace(runner=SimpleNamespace(route=SimpleNamespace(name=route)))
    return key_of(Message(topic, payload, qos), [cast("Any", target)])


async def leave_unacknowledged(broker: Mosquitto, client_id: str, filter: str, topics: list[str], qos: int = 1) -> None:
    """What a process leaves that is killed while its handlers run: payloads 0, 1, …; and then one it has not seen."""
    async with client(broker.url, client_id=client_id, clean=False, expiry=600, acknowledge=False) as killed:
        await killed.subscribe(filter, qos=qos)
        async with client(broker.url) as publisher:
            for number, topic in enumerate(topics):
                await publisher.publish(topic, str(number), qos=qos)
            await killed.wait_for(len(topics))
        killed.abort()
        await eventually(lambda: killed.closed)
    async with client(broker.url) as publisher:
        await publisher.publish(topics[0], "new", qos=qos)
        await publisher.publish(topics[0], "newer", qos=qos)


# -- a real broker --------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_in_flight_runs_alone_and_what_was_not_does_not(
    mosquitto: Mosquitto, slot: SlotQuarantine, tmp_path: Path, version: str, qos: int
) -> None:
    observed = Observed(tmp_path, version=version)
    observed.app.topic("s/<id>", qos=qos, ordered_by=None)(observed.handle)  # type: ignore[arg-type]  # 1 or 2
    await leave_unacknowledged(mosquitto, "q-test-0", "s/+", ["s/1", "s/2", "s/3", "s/4"], qos)
    observed.stuck("new", "newer")
    async with after_a_death(observed.app, slot, mosquitto.url):
        await eventually(lambda: len(observed.began) == 6, what=lambda: str(observed.began))
        await eventually(lambda: read_note(slot.fd).over)
        observed.let("new", "newer")
        await eventually(lambda: not observed.running)
    assert observed.began == ["0", "1", "2", "3", "new", "newer"]
    assert observed.company == {frozenset(each) for each in ("0", "1", "2", "3", ("new",), ("new", "newer"))}


@pytest.mark.parametrize("isolated", [True, False], ids=["now as before", "before, but no more"])
async def test_links_of_their_own_wait_for_each_other(
    mosquitto: Mosquitto, slot: SlotQuarantine, tmp_path: Path, isolated: bool
) -> None:
    """Found by what is left in their sessions, which are those of a run before: of the same app, or of a former version."""
    before = Observed(tmp_path)
    before.app.topic("s/<id>")(before.handle)
    before.app.topic("lonely/<id>", isolate=True)(before.handle)
    service = Service(before.app)
    async with service.connected(mosquitto.url):
        assert service.consumer is not None
        names = [link.options.client_id for link in service.consumer.links]
    assert len(names) == 2
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>")(observed.handle)
    observed.app.topic("lonely/<id>", isolate=isolated)(observed.handle)
    await leave_unacknowledged(mosquitto, names[0], "s/+", ["s/1", "s/2"])
    async with client(mosquitto.url, client_id=names[1], clean=False, expiry=600, acknowledge=False) as killed:
        async with client(mosquitto.url) as publisher:
            await publisher.publish("lonely/1", "lonely")
        await killed.wait_for(1)
        killed.abort()
    async with after_a_death(observed.app, slot, mosquitto.url):
        await eventually(lambda: len(observed.began) == 5, what=lambda: str(observed.began))
        await eventually(lambda: read_note(slot.fd).over)
    assert not any(len(each) > 1 and each & {"0", "1", "lonely"} for each in observed.company)


@VERSIONS
async def test_a_condemned_message_is_put_aside_without_a_run(
    mosquitto: Mosquitto, slot: SlotQuarantine, tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    observed = Observed(tmp_path, version=version)
    observed.app.topic("s/<id>", name="r", dead_letter="dead/<id>")(observed.handle)
    observed.app.topic("s/1", name="no letter")(observed.handle)
    seen: list[object] = []

    @observed.app.exception_handler(Exception)
    async def on_error(context: Context, error: Exception) -> None:
        seen.append(error)

    await leave_unacknowledged(mosquitto, "q-test-0", "s/+", ["s/1", "s/2", "s/3"])
    poison = key("s/2", b"1", "r")
    async with client(mosquitto.url) as reader:
        await reader.subscribe("dead/#", qos=1)
        async with after_a_death(observed.app, slot, mosquitto.url, poison) as service:
            letter = await reader.message()
            await eventually(lambda: read_note(slot.fd).over)
            await eventually(lambda: stats(service).unacknowledged == 0)
            counted = stats(service).routes["r"]
    assert letter.topic == "dead/2"
    assert "1" not in observed.began
    assert seen == []
    assert (counted.failed, counted.dead_lettered) == (1, 1)
    if version == "5":
        about = dict(letter.publish.user_properties)
        assert letter.payload == b"1"
        assert (about["mqttapi-error"], about["mqttapi-attempts"]) == ("PoisonMessage", "3")
        assert about["mqttapi-reason"].startswith("killed its process 3 times, each time as the only message in flight")
    (record,) = [each for each in caplog.records if each.name == "mqttapi.handlers"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "r failed on s/2: was not run: it has killed its process 3 times (dead letter on dead/2)"
    )


async def test_a_condemned_message_without_dead_letter_is_logged_and_acknowledged(
    mosquitto: Mosquitto, slot: SlotQuarantine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>", name="r")(observed.handle)
    await leave_unacknowledged(mosquitto, "q-test-0", "s/+", ["s/1", "s/2", "s/3"])
    async with after_a_death(observed.app, slot, mosquitto.url, key("s/2", b"1", "r")) as service:
        await eventually(lambda: read_note(slot.fd).over)
        await eventually(lambda: stats(service).unacknowledged == 0)
        counted = stats(service).routes["r"]
    assert (counted.done, counted.failed) == (4, 1)
    assert "r failed on s/2: was not run: it has killed its process 3 times" in caplog.text
    async with client(mosquitto.url, client_id="q-test-0", clean=False) as next_one:
        await next_one.ping()
        assert next_one.messages == []


async def test_it_goes_on_after_the_connection_was_lost(
    mosquitto: Mosquitto, proxy: Before, slot: SlotQuarantine, tmp_path: Path
) -> None:
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>", ordered_by=None)(observed.handle)
    await leave_unacknowledged(mosquitto, "q-test-0", "s/+", ["s/1", "s/2", "s/3"])
    between = await proxy(mosquitto.port)
    observed.stuck("1")
    async with after_a_death(observed.app, slot, between.url):
        await eventually(lambda: observed.began == ["0", "1"])
        between.reset()
        await between.wait_for(Direction.TO_BROKER, PacketType.SUBSCRIBE, 2)
        assert observed.began == ["0", "1"]
        observed.let("1")
        await eventually(lambda: read_note(slot.fd).over)
        await eventually(lambda: not observed.running)
    assert sorted(observed.began) == ["0", "1", "2", "new", "newer"]
    assert {frozenset("0"), frozenset("1"), frozenset("2")} <= observed.company


# -- a broker that does what it is told -----------------------------------------------------------------------------


def resumes(connection: Connection, packet: Packet) -> bytes:
    return connack(session_present=not packet.connect.clean_start, version=connection.version)


def sends(connection: Connection, *payloads: str, dup: bool = False, first_id: int = 1, qos: int = 1) -> None:
    for packet_id, payload in enumerate(payloads, first_id):
        connection.publish(f"s/{payload}", payload.encode(), qos=qos, packet_id=packet_id if qos else 0, dup=dup)


async def test_the_link_is_subscribed_while_a_message_runs_alone(
    fake_broker: FakeBroker, slot: SlotQuarantine, tmp_path: Path
) -> None:
    """What waits has been read: so keepalive, SUBACK and everything else behind it is."""
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>")(observed.handle)

    def first_the_backlog(connection: Connection, packet: Packet) -> bytes:
        sends(connection, "1", "2", dup=True)
        return suback(packet.packet_id, [1])

    fake_broker.reply(PacketType.CONNECT, resumes)
    fake_broker.reply(PacketType.SUBSCRIBE, first_the_backlog)
    observed.stuck("1", "2")
    async with after_a_death(observed.app, slot, fake_broker.url) as service:
        await eventually(lambda: not readiness(service))
        await eventually(lambda: observed.began == ["1"])
        assert service.quarantine is not None
        assert service.quarantine.active
        observed.let("1", "2")


async def test_a_broker_that_never_flags_gets_a_window_of_them(
    fake_broker: FakeBroker, slot: SlotQuarantine, tmp_path: Path
) -> None:
    observed = Observed(tmp_path, window=3)
    observed.app.topic("s/<id>", ordered_by=None)(observed.handle)
    fake_broker.reply(PacketType.CONNECT, resumes)
    async with after_a_death(observed.app, slot, fake_broker.url):
        connection = await fake_broker.subscribed()
        observed.stuck(*"4")
        sends(connection, *"12345")
        await eventually(lambda: len(observed.began) == 5)
        observed.let("4")
        await eventually(lambda: not observed.running)
        assert read_note(slot.fd).over
    assert observed.began == [*"12345"]
    assert observed.company == {frozenset(each) for each in ("1", "2", "3", "4", "45")}


async def test_a_broker_that_has_nothing_ends_it_by_its_silence(
    fake_broker: FakeBroker, slot: SlotQuarantine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mqttapi.quarantine")
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>")(observed.handle)
    fake_broker.reply(PacketType.CONNECT, resumes)
    async with after_a_death(observed.app, slot, fake_broker.url):
        sends(await fake_broker.subscribed(), "1")
        await eventually(lambda: read_note(slot.fd).over)
    assert (
        "the quarantine is over: of the messages that the process before this one may have died of, 1 ran alone, 0 did "
        "not run"
    ) in caplog.messages


async def test_the_end_of_the_app_goes_on_one_by_one(
    fake_broker: FakeBroker, slot: SlotQuarantine, tmp_path: Path
) -> None:
    observed = Observed(tmp_path)
    observed.app.topic("s/<id>", ordered_by=None)(observed.handle)
    fake_broker.reply(PacketType.CONNECT, resumes)
    observed.stuck("1")
    async with after_a_death(observed.app, slot, fake_broker.url) as service:
        connection = await fake_broker.subscribed()
        sends(connection, *"123", dup=True)
        sends(connection, "0", qos=0)
        await eventually(lambda: stats(service).received == 4)
        asyncio.get_running_loop().call_later(0.05, observed.let, "1")
    assert observed.began == [*"1230"]
    assert observed.company == {frozenset(each) for each in "1230"}
    assert len(connection.packets(PacketType.PUBACK)) == 3


async def test_what_is_not_done_within_the_grace_comes_again_unacknowledged(
    fake_broker: FakeBroker, slot: SlotQuarantine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observed = Observed(tmp_path)
    observed.app.settings = Settings(instance="test", grace=0.5, state_dir=tmp_path)
    observed.app.topic("s/<id>", ordered_by=None)(observed.handle)
    fake_broker.reply(PacketType.CONNECT, resumes)
    observed.stuck("2")
    async with after_a_death(observed.app, slot, fake_broker.url):
        connection = await fake_broker.subscribed()
        sends(connection, *"1234", dup=True)
        await eventually(lambda: observed.began == [*"12"])
    assert len(connection.packets(PacketType.PUBACK)) == 1
    assert "messages not done: 3 (cancelled" in caplog.text
    assert observed.began == [*"12"]


def test_no_exception_handler_can_be_registered_for_it() -> None:
    app = App("q")

    async def handler(context: Context, error: PoisonMessage) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        app.exception_handler(PoisonMessage)(handler)
    assert str(raised.value) == (
        "exception_handler(PoisonMessage): a message that has killed its process is given to no code of the app, so no "
        "exception handler sees it. Read it from the route's dead_letter"
    )
