"""A worker that leaves for good: what waits for it is handled, its sessions end, and nobody loses anything."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App, Message
from mqttapi.config import Session, Settings
from mqttapi.reporting import readiness, stats
from mqttapi.runtime.fence import FENCE_PREFIX, fence_topic
from mqttapi.runtime.links import subscription_id
from mqttapi.service import Service
from mqttapi.transport import departure
from tests.faults.support import AppProcess, publish_all, texts
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType, ack, suback, unsuback
from tests.support.proxy import Direction
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.support.fake_broker import Connection, FakeBroker
    from tests.support.packets import Packet
    from tests.support.proxy import Proxy

    Before = Callable[..., Awaitable[Proxy]]
    Start = Callable[..., Awaitable["Leaver"]]

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
RESCUE = "mqttapi rescue module:app"
PROGRAM = f"""
async def main():
    from mqttapi import logs
    from mqttapi.service import Service

    logs.configure("info", "plain")
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, told.set)
    service = Service(app)
    async with service.connected(None):
        await told.wait()
        note("left", await service.leave(float(os.environ["WITHIN"]), rescue="{RESCUE}"))

if __name__ == "__main__":
    import signal
    asyncio.run(main())
"""


class Leaver(AppProcess):
    """A process that leaves for good at SIGUSR2; it has ten seconds, unless `WITHIN` says otherwise."""

    def __init__(self, directory: Path, broker: str, source: str, **environment: str) -> None:
        super().__init__(
            directory, broker, inspect.cleandoc(source) + "\n" + PROGRAM, **{"WITHIN": "10", **environment}
        )

    def launch(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "module.py"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._starts += 1

    async def leave(self) -> tuple[int, bool]:
        """Let it begin with what waits. Gives its exit code, and whether it was through with it all."""
        self.open("go")
        self.send(signal.SIGUSR2)
        code = await self.ended()
        (answer,) = self.noted("left")
        return code, answer == "True"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Awaitable[Leaver]]]:
    """`app = await start(broker.url, SOURCE)`: a process that has subscribed."""
    made: list[Leaver] = []

    async def start(broker: str, source: str, **options: str) -> Leaver:
        app = Leaver(tmp_path, broker, source, **options)
        made.append(app)
        await app.start()
        return app

    yield start
    for app in made:
        app.dispose()


async def has_session(url: str, client_id: str, version: str = "5") -> bool:
    """Whether the broker has one; looking for it ends it."""
    async with client(url, client_id=client_id, clean=False, version=5 if version == "5" else 4) as probe:
        return probe.session_present


SLOW = """
@app.topic("s/<id>", ordered_by=None, concurrency=1, qos={qos})
async def handle(payload: str) -> None:
    await opened("go")
    await asyncio.sleep(0.005)
    note("handled", payload)
"""


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_backlog_is_handled_and_the_sessions_end(start: Start, version: str, qos: int) -> None:
    """It is in the broker's queue, behind the narrowest window there is."""
    with Mosquitto(max_inflight=1) as broker:
        app = await start(broker.url, SLOW.format(qos=qos), MQTT_PROTOCOL=version, MQTTAPI_MAX_IN_FLIGHT="1")
        await publish_all(broker.url, "s/1", texts(200), qos=qos)
        assert await app.leave() == (0, True), app.log
        assert app.noted("handled") == dict.fromkeys(texts(200), 1)
        assert "WARNING" not in app.log
        assert not await has_session(broker.url, "faults-0-0", version)
        assert not await has_session(broker.url, "faults-0-0-pub", version)


async def test_a_member_of_a_group_leaves_under_load_and_nothing_is_lost(
    mosquitto: Mosquitto, start: Start, tmp_path: Path
) -> None:
    """What mosquitto holds for a member that has unsubscribed goes to no other one."""
    source = """
        @app.topic("s/<id>", shared=True, ordered_by=None, concurrency=4)
        async def handle(payload: str) -> None:
            await asyncio.sleep(0.002)
            note("handled", payload)
    """
    stays, leaves = [await start(mosquitto.url, source, instance=name) for name in ("a", "b")]
    published: list[str] = []

    async def publish() -> None:
        async with client(mosquitto.url) as publisher:
            for payload in texts(1_000):
                assert await publisher.publish("s/1", payload) == 0
                published.append(payload)

    task = asyncio.create_task(publish())
    await eventually(lambda: len(published) > 200)
    assert await leaves.leave() == (0, True), leaves.log
    await task
    handled = leaves.noted("handled")
    assert handled
    await eventually(lambda: len(stays.noted("handled") + handled) == len(published), within=20)
    assert stays.noted("handled") + handled == dict.fromkeys(published, 1)
    assert not await has_session(mosquitto.url, "faults-b-0")


async def test_every_session_of_an_app_with_several_ends(mosquitto: Mosquitto, start: Start) -> None:
    """Filters that overlap without identifiers, and an isolated route: four links."""
    source = """
        async def handle(payload: str) -> None:
            await asyncio.sleep(0.002)
            note("handled", payload)

        for number, (template, options) in enumerate(
            {"a/<x>/c": {}, "a/b/<y>": {}, "<z>/b/c": {"shared": True}, "alone/<x>": {"isolate": True}}.items()
        ):
            app.topic(template, name=str(number), ordered_by=None, concurrency=1, **options)(handle)
    """
    app = await start(mosquitto.url, source, MQTT_PROTOCOL="3.1.1")
    await app.said("connected to", times=4)
    names = sorted(set(re.findall(r"connected to \S+ as (\S+),", app.log)))
    assert [name.partition("-0-0")[2][:2] for name in names] == ["", "-i", "-l", "-l"]
    for topic in ("a/1/c", "a/b/2", "3/b/c", "alone/4"):
        await publish_all(mosquitto.url, topic, [f"{topic} {number}" for number in range(50)])
    assert await app.leave() == (0, True), app.log
    assert len(app.noted("handled")) == 200
    assert not app.noted("handled") - Counter(dict.fromkeys(app.noted("handled"), 1))
    for name in names:
        assert not await has_session(mosquitto.url, name, "3.1.1"), name


async def test_an_isolated_route_and_a_full_memory_leave_too(mosquitto: Mosquitto, start: Start) -> None:
    """Reading stops at ten messages: the answers to SUBSCRIBE and UNSUBSCRIBE wait behind them."""
    source = (
        SLOW.format(qos=1) + '@app.topic("alone", isolate=True)\nasync def alone(payload: str): await handle(payload)\n'
    )
    app = await start(mosquitto.url, source, MQTTAPI_MAX_IN_FLIGHT="10")
    await app.said("connected to", times=2)
    await publish_all(mosquitto.url, "s/1", texts(150))
    await publish_all(mosquitto.url, "alone", texts(50, 150))
    assert await app.leave() == (0, True), app.log
    assert app.noted("handled") == dict.fromkeys(texts(200), 1)
    (alone,) = set(re.findall(r"as (faults-0-0-i\w+),", app.log))
    for name in ("faults-0-0", alone):
        assert not await has_session(mosquitto.url, name), name


@pytest.mark.parametrize("how", ["reset", "restart"])
async def test_a_connection_lost_while_leaving_is_replaced_and_not_subscribed_again(
    mosquitto: Mosquitto, start: Start, proxy: Before, how: str
) -> None:
    between = await proxy(mosquitto.port)
    app = await start(between.url, SLOW.format(qos=1), WITHIN="20")
    await publish_all(mosquitto.url, "s/1", texts(300))
    app.send(signal.SIGUSR2)
    await between.wait_for(Direction.TO_BROKER, PacketType.UNSUBSCRIBE)
    app.open("go")
    await app.notes_of("handled", 20)
    if how == "reset":
        between.reset()
    else:
        await asyncio.to_thread(mosquitto.restart)
    assert await app.ended(within=30) == 0
    assert app.noted("left") == {"True": 1}, app.log
    handled = app.noted("handled")
    assert set(handled) == set(texts(300))
    assert max(handled.values()) <= 2
    assert "to end its session" in app.log
    subscribed = [packet.filters for packet in between.packets(Direction.TO_BROKER, PacketType.SUBSCRIBE)]
    assert subscribed[0] == ["s/+"]
    assert all(filters == [fence_topic("faults-0-0")] for filters in subscribed[1:])
    assert not await has_session(mosquitto.url, "faults-0-0")


async def test_what_a_former_version_subscribed_to_is_unsubscribed_too(mosquitto: Mosquitto, start: Start) -> None:
    async with client(mosquitto.url, client_id="faults-0-0", clean=False, expiry=60) as former:
        await former.subscribe("former/+", "s/old", qos=1)
    app = await start(mosquitto.url, 'app.former_filters = ["former/+"]\n' + SLOW.format(qos=1))
    assert await app.leave() == (0, True), app.log
    async with client(mosquitto.url) as publisher:
        assert await publisher.publish("former/x", b"") == 0x10


# Where there is no fence


WARNING = (
    "the session of faults-0-0 is kept, as something may wait in it ({}). To handle that, once this process has ended: "
    f"{RESCUE} faults-0-0"
)


@pytest.mark.parametrize(
    ("acl", "why"),
    [
        ("", "publish to 'mqttapi/fence/faults-0-0': the broker refuses it: Not authorized (0x87)"),
        ("topic write mqttapi/fence/#\n", "no fence came in time"),
    ],
)
async def test_where_there_is_no_fence_the_session_is_kept_and_the_rescue_is_told(
    start: Start, acl: str, why: str
) -> None:
    """The broker's access list has the topics of the app only."""
    with Mosquitto(persistence=False, acl="topic s/#\n" + acl) as broker:
        app = await start(broker.url, SLOW.format(qos=1), WITHIN="0.5", MQTTAPI_MAX_IN_FLIGHT="1")
        await publish_all(broker.url, "s/1", texts(200))
        assert await app.leave() == (0, False)
        assert app.distinct("handled") < 200
        assert WARNING.format(why) in app.log
        async with client(broker.url) as publisher:
            assert await publisher.publish("s/1", b"late") == 0x10, "it has been unsubscribed nevertheless"

        rescue = await rescue_of(app, "faults-0-0", "--timeout", "4", broker=broker.url)
        assert app.noted("handled") == dict.fromkeys(texts(200), 1), "the fence is missing, no message"
        assert rescue.returncode == 1
        assert f"the session of faults-0-0 is kept, as something may wait in it ({why})" in rescue.stderr

        (broker.directory / "acl").write_text("topic #\n")
        broker._signal(signal.SIGHUP)
        rescue = await rescue_of(app, "faults-0-0", broker=broker.url)
        assert (rescue.returncode, rescue.stdout.splitlines()[-1]) == (0, "faults-0-0: the session has ended")
        assert not await has_session(broker.url, "faults-0-0")


async def rescue_of(app: AppProcess, *arguments: str, broker: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mqttapi", "rescue", "module:app", *arguments, "--broker", broker],
        cwd=app.directory,
        env=app.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=40,
    )


# What the broker sees, packet by packet


def an_app(handled: list[str] | None = None, *templates: str, **settings: Any) -> App:
    """Its client id is `leaver-0-0`."""
    app = App("leaver", settings=Settings(**{"instance": "0", "grace": 5.0, **settings}))
    for template in templates or ("s/<id>",):

        @app.topic(template, name=template)
        async def handle(payload: str) -> None:
            if handled is not None:
                handled.append(payload)

    return app


@asynccontextmanager
async def serving(app: App, url: str) -> AsyncIterator[Service]:
    service = Service(app)
    async with service.connected(url):
        yield service


def link_of(broker: FakeBroker) -> Connection:
    """The newest connection that consumes."""
    return [each for each in broker.connections if each.client_id == "leaver-0-0"][-1]


def passes_fences(broker: FakeBroker, *, times: int = 1, first: bytes = b"") -> None:
    """Deliver each fence so often, behind what is given as the `first` payload."""

    def deliver(connection: Connection, packet: Packet) -> bytes:
        link = link_of(broker)
        if first:
            link.publish(packet.topic, first, qos=1, packet_id=800)
        for number in range(times):
            link.publish(packet.topic, packet.payload, qos=1, packet_id=900 + number)
        return ack(PacketType.PUBACK, packet.packet_id)

    broker.reply(PacketType.PUBLISH, deliver)


def said(broker: FakeBroker) -> list[str]:
    """What the links have said from their UNSUBSCRIBE on, by the types of packets."""
    names = [packet.kind.name for packet in link_of(broker).received]
    return names[names.index("UNSUBSCRIBE") :]


async def test_the_fence_is_acknowledged_behind_all_others_and_the_session_ends_last(fake_broker: FakeBroker) -> None:
    passes_fences(fake_broker)
    handled: list[str] = []
    app = an_app(handled)
    async with serving(app, fake_broker.url) as service:
        link = link_of(fake_broker)
        for number in (1, 2, 3):
            link.publish("s/1", str(number).encode(), qos=1, packet_id=number)
        assert await service.leave(5)
        answered = [packet.packet_id for packet in link.packets(PacketType.PUBACK)]
        counted = stats(service)
    assert answered == [1, 2, 3, 900]
    assert handled == ["1", "2", "3"]
    assert (counted.unmatched, counted.unknown_ids, counted.routes["s/<id>"].done) == (0, 0, 3)
    assert [each.filters for each in link.packets(PacketType.SUBSCRIBE)] == [["s/+"], [fence_topic("leaver-0-0")]]
    assert [each.filters for each in link.packets(PacketType.UNSUBSCRIBE)] == [["s/+"], [fence_topic("leaver-0-0")]]
    assert said(fake_broker) == ["UNSUBSCRIBE", *["PUBACK"] * 4, "UNSUBSCRIBE", "DISCONNECT"]
    assert link.received[-1].body == bytes.fromhex("00 05 11 00000000"), "a session expiry of 0"


async def test_an_old_fence_is_not_taken_for_the_new_one(fake_broker: FakeBroker) -> None:
    passes_fences(fake_broker, times=0, first=b"old")
    async with serving(an_app(), fake_broker.url) as service:
        assert not await service.leave(0.3)
        assert stats(service).unmatched == 0
    assert link_of(fake_broker).received[-1].body == b"", "DISCONNECT that leaves the session as it is"


async def test_a_fence_that_comes_again_is_acknowledged_each_time(fake_broker: FakeBroker) -> None:
    passes_fences(fake_broker, times=3)
    async with serving(an_app(), fake_broker.url) as service:
        assert await service.leave(5)
        answered = [packet.packet_id for packet in link_of(fake_broker).packets(PacketType.PUBACK)]
    assert answered == [900, 901, 902]


@pytest.mark.parametrize("code", [0x87, 0x00])
async def test_a_subscription_that_may_be_overtaken_is_no_fence(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Refused, or granted with QoS 0, which passes by what waits."""

    def answer(connection: Connection, packet: Packet) -> bytes:
        fence = packet.filters[0].startswith(FENCE_PREFIX)
        return suback(packet.packet_id, [code if fence else 1], version=connection.version)

    fake_broker.reply(PacketType.SUBSCRIBE, answer)
    async with serving(an_app(), fake_broker.url) as service:
        assert not await service.leave(60, rescue=RESCUE), "without waiting for the time to be over"
    assert said(fake_broker) == ["UNSUBSCRIBE", "DISCONNECT"]
    assert (
        "the session of leaver-0-0 is kept, as something may wait in it (the broker refuses the subscription "
        f"'mqttapi/fence/leaver-0-0': reason code 0x{code:02X}). To handle that, once this process has ended: "
        "mqttapi rescue module:app leaver-0-0" in caplog.messages
    )


async def test_filters_that_must_stay_subscribed_keep_the_session(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.UNSUBSCRIBE, lambda c, p: unsuback(p.packet_id, [0x87], version=c.version))
    async with serving(an_app(), fake_broker.url) as service:
        assert not await service.leave(60)
    assert service.consumer is not None
    assert service.consumer.kept == {"leaver-0-0": "the broker does not let 's/+' be unsubscribed: reason code 0x87"}


async def test_a_broker_that_sends_no_unsuback_is_left_nevertheless(fake_broker: FakeBroker) -> None:
    passes_fences(fake_broker)
    fake_broker.reply(PacketType.UNSUBSCRIBE, None)
    async with serving(an_app(), fake_broker.url) as service:
        assert service.consumer is not None
        connection = service.consumer.links[0]._connection
        assert connection is not None
        connection.timeout = 0.1
        assert await service.leave(5)


async def test_what_is_cancelled_at_the_end_of_the_grace_keeps_the_session(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The fence came in time, the handlers did not end: their messages must not go with the session."""
    passes_fences(fake_broker)
    app = App("leaver", settings=Settings(instance="0", grace=0.3))

    @app.topic("s/<id>")
    async def handle(id: str) -> None:
        await asyncio.Event().wait()

    async with serving(app, fake_broker.url) as service:
        link_of(fake_broker).publish("s/1", qos=1, packet_id=1)
        assert not await service.leave(0.3, rescue=RESCUE)
    assert "as something may wait in it (2 messages are not acknowledged)" in caplog.text, (
        "the fence waits for its turn"
    )
    assert link_of(fake_broker).received[-1].body == b""


async def test_a_disconnect_without_an_answer_keeps_the_session(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    passes_fences(fake_broker)
    fake_broker.reply(PacketType.DISCONNECT, None)
    async with serving(an_app(), fake_broker.url) as service:
        assert await service.leave(5, rescue=RESCUE)
    assert "(the broker has not answered the DISCONNECT)" in caplog.text


async def test_a_session_that_is_gone_needs_no_fence(fake_broker: FakeBroker) -> None:
    passes_fences(fake_broker, times=0)
    async with serving(an_app(), fake_broker.url) as service:
        leaving = asyncio.create_task(service.leave(60))
        await link_of(fake_broker).wait_for(PacketType.UNSUBSCRIBE)
        link_of(fake_broker).reset()
        assert await leaving
    assert [packet.kind.name for packet in link_of(fake_broker).received] == ["CONNECT", "DISCONNECT"]
    assert link_of(fake_broker).received[-1].body == bytes.fromhex("00 05 11 00000000")


async def test_a_subscription_that_only_shows_while_leaving_gets_a_fence_of_its_own(fake_broker: FakeBroker) -> None:
    """What waits tells by its identifier of a filter that nobody had recorded."""

    def answer(connection: Connection, packet: Packet) -> bytes:
        if packet.filters == ["s/+"]:
            connection.publish("former/1", qos=1, packet_id=1, subscription_ids=[subscription_id("former/+")])
        return unsuback(packet.packet_id, [0], version=connection.version)

    passes_fences(fake_broker)
    fake_broker.reply(PacketType.UNSUBSCRIBE, answer)
    async with serving(an_app(), fake_broker.url) as service:
        assert await service.leave(5)
    unsubscribed = link_of(fake_broker).packets(PacketType.UNSUBSCRIBE)
    assert [each.filters for each in unsubscribed] == [["s/+"], ["former/+"], [fence_topic("leaver-0-0")]]
    publishing = next(each for each in fake_broker.connections if each.client_id == "leaver-0-0-pub")
    assert len(publishing.packets(PacketType.PUBLISH)) == 2


async def test_a_request_to_stop_cuts_the_leave_short(fake_broker: FakeBroker) -> None:
    async with serving(an_app(), fake_broker.url) as service:
        leaving = asyncio.create_task(service.leave(60))
        await link_of(fake_broker).wait_for(PacketType.UNSUBSCRIBE)
        assert readiness(service) == ("the app is leaving for good",)
        service.stopping.set_result(None)
        assert not await leaving


async def test_a_transient_session_leaves_without_a_warning(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = an_app()
    app.session = Session.transient()
    async with serving(app, fake_broker.url) as service:
        assert not await service.leave(0.1, rescue=RESCUE)
    assert "is kept" not in caplog.text


@VERSIONS
async def test_no_record_is_left_of_a_session_that_has_ended(
    mosquitto: Mosquitto, tmp_path: Path, version: str
) -> None:
    async with serving(an_app(state_dir=tmp_path, protocol=version), mosquitto.url) as service:
        await eventually(lambda: list(tmp_path.rglob("*.filters.json")))
        assert await service.leave(5)
    assert not list(tmp_path.rglob("*.filters.json"))


async def test_a_fence_that_a_full_queue_has_swallowed_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MQTT 3.1.1, where the broker's window is not what the app holds at most."""
    monkeypatch.setattr(departure, "AGAIN", 0.05)
    gate, handled = asyncio.Event(), list[str]()
    app = App("leaver", settings=Settings(instance="0", protocol="3.1.1"))

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        await gate.wait()
        handled.append(payload)

    with Mosquitto(persistence=False, max_inflight=1, extra=["max_queued_messages 10", "log_type debug"]) as broker:
        async with serving(app, broker.url) as service:
            await publish_all(broker.url, "s/1", texts(40))
            assert "Outgoing messages are being dropped" in broker.log()
            leaving = asyncio.create_task(service.leave(10))
            await eventually(lambda: "Received PUBLISH from leaver-0-0-pub" in broker.log(), what=broker.log)
            gate.set()
            assert await leaving
        assert len(handled) < 40
        assert not await has_session(broker.url, "leaver-0-0", "3.1.1")


async def test_a_fence_is_for_no_route_of_any_app(mosquitto: Mosquitto) -> None:
    """Not for one that has subscribed to everything, nor for the fallback of the app that leaves."""
    seen: list[str] = []
    other, leaver = App("other", settings=Settings(instance="0")), an_app()
    for app in (other, leaver):

        @app.topic("#" if app is other else "mqttapi/#", name="all")
        async def everything(message: Message) -> None:
            seen.append(message.topic)

        @app.fallback
        async def fallback(message: Message) -> None:
            seen.append(message.topic)

    async with other.running(broker=mosquitto.url):
        async with serving(leaver, mosquitto.url) as service:
            assert await service.leave(5)
            counted = stats(service)
        assert (counted.unmatched, counted.unknown_ids) == (0, 0)
        await eventually(lambda: other.stats.received == 1)
        assert (other.stats.unmatched, other.stats.unknown_ids) == (0, 0)
        async with client(mosquitto.url) as publisher:
            await publisher.publish("mqttapi/fences", b"are no fence")
        await eventually(lambda: seen)
    assert seen == ["mqttapi/fences"]


async def test_it_unsubscribes_at_once_though_nothing_is_read(fake_broker: FakeBroker) -> None:
    """Its memory is full of a message that is being handled: the answers of the broker have to wait."""
    gate = asyncio.Event()
    app = App("leaver", settings=Settings(instance="0", grace=5.0, max_in_flight=1))

    @app.topic("s/<id>")
    async def handle(id: str) -> None:
        await gate.wait()

    passes_fences(fake_broker)
    async with serving(app, fake_broker.url) as service:
        link_of(fake_broker).publish("s/1", qos=1, packet_id=1)
        await eventually(lambda: stats(service).in_flight)
        leaving = asyncio.create_task(service.leave(10))
        await link_of(fake_broker).wait_for(PacketType.UNSUBSCRIBE)
        gate.set()
        assert await leaving
