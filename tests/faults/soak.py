"""A soak: publishers that never pause, an app in two processes, and faults at random, for as long as you like.

    python -m tests.faults.soak --minutes 10 --seed 1

A message counts as published once the broker has said so with reason code 0x00. At the end all that was published must
have been handled (or dead-lettered, where its handler always raises), and each run beyond the first one must be
explained by what the proxy before the broker has seen: the broker delivered the message again, because it had not read
an acknowledgement when a fault ended the connection of the delivery before. mosquitto reads one packet of a connection
at a time, so acknowledgements may be long under way; but it reads them in order, so those that it has not read are the
last ones of their connection: if one message comes again, so must all that were acknowledged behind it. With QoS 2 that
is no excuse, as the app remembers what it has answered, and leaves it behind for its next process: only a SIGKILL may
have taken that away. The one other rule is for mosquitto 2.0.11: over a restart it forgets that it has sent PUBREL, and
sends the PUBLISH again.

Exit code 1 else. The fault table goes to stdout as markdown, and the evidence to a directory that is named there.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.support import AppProcess
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType
from tests.support.proxy import Direction, Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.packets import Packet
    from tests.support.proxy import ProxyConnection

TO_BROKER, TO_CLIENT = Direction

RESTART = "broker restart"
BACKLOG = 500
"""Messages that may be published and not handled."""
QUIET = 60.0
"""Seconds without any message after which nothing more is expected: more than `max_delay` of a reconnect."""

SOURCE = """
async def work(payload: str, context: Context) -> None:
    kind = int(payload.rpartition("-")[2]) % 100
    if kind == 13 and context.attempt < 3:
        raise ValueError("twice in vain")
    if kind == 57:
        if context.attempt == 3:
            note("failed", payload)
        raise RuntimeError("always in vain")
    if kind < 10:
        await asyncio.sleep(0.05)
    if kind == 99:
        time.sleep(0.05)
    note("handled", payload)

often = Retry(attempts=3, delay=0.01, jitter=False)

@app.topic("shared/<id>", shared=True, retry=often, dead_letter="dead/<id>")
async def shared(payload: str, context: Context):
    await work(payload, context)
"""
ALONE = """
@app.topic("one/<id>", retry=often, dead_letter="dead/<id>")
async def one(payload: str, context: Context):
    await work(payload, context)

@app.topic("dead/<id>")
async def dead(payload: str):
    note("dead", payload)

@app.topic("two/<id>", qos=2, retry=often, dead_letter="dead/<id>")
async def two(payload: str, context: Context):
    await work(payload, context)
"""


@dataclass
class Fault:
    """One kind of fault, and what came of it."""

    name: str
    expected: str
    twice: int = 0
    intervals: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Delivery:
    """One PUBLISH that the app was sent."""

    connection: int
    moment: float
    qos: int
    turn: int | None = None
    """The place of its PUBACK or PUBREC among those of the connection; None when there was none."""
    released: bool = False
    """QoS 2: whether PUBREL came."""


class Soak:
    """One soak."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.published: list[str] = []
        self.faults: dict[str, Fault] = {}
        self.ends: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        """When the process of an app ended, and why, by client id."""
        self.stopping = asyncio.Event()
        self.apps: list[AppProcess] = []

    async def run(self, seconds: float) -> bool:
        """Gives whether all is well."""
        with Mosquitto() as self.mosquitto:
            async with Proxy(self.mosquitto.port) as self.proxy:
                try:
                    await self._run(seconds)
                finally:
                    for app in self.apps:
                        app.dispose()
                return self.report()

    async def _run(self, seconds: float) -> None:
        for instance, source, window in (("0", SOURCE + ALONE, "100"), ("1", SOURCE, "20")):
            settings = {"MQTT_KEEPALIVE": "2", "MQTTAPI_MAX_IN_FLIGHT": window}
            app = AppProcess(self.directory, self.proxy.url, source, instance=instance, **settings)
            self.apps.append(app)
            await app.start()
        kinds = [("one", 1), ("one", 1), ("shared", 1), ("shared", 1), ("two", 2), ("two", 2)]
        publishers = [
            asyncio.create_task(self._publish(f"{topic}-{number}", topic, qos))
            for number, (topic, qos) in enumerate(kinds)
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self.random.uniform(0.3, 3.0))
            await self._fault()
            for task in publishers:
                if task.done():
                    task.result()
            self._say(f"{until - time.monotonic():.0f} s to go")
        self.stopping.set()
        await asyncio.gather(*publishers)
        await self._settled()
        for app in self.apps:
            await app.stop()

    async def _settled(self) -> None:
        """Return once all is handled, or nothing more happens."""
        before, since = -1, time.monotonic()
        while self.missing() and time.monotonic() < since + QUIET:
            now = sum(len(app.notes()) for app in self.apps)
            if now != before:
                before, since = now, time.monotonic()
            await asyncio.sleep(0.2)

    # Publishing

    async def _publish(self, name: str, topic: str, qos: int) -> None:
        number = 0
        while not self.stopping.is_set():
            try:
                async with client(self.mosquitto.url) as publisher:
                    for _ in range(5000):  # then the client's packet ids are used up
                        if self.stopping.is_set():
                            return
                        await self._room()
                        number += 1
                        payload = f"{name}-{number}"
                        if await publisher.publish(f"{topic}/{number % 20}", payload, qos=qos) == 0:
                            self.published.append(payload)
            except (OSError, pytest.fail.Exception):
                await asyncio.sleep(0.01)

    async def _room(self) -> None:
        """Wait where the apps are far behind: mosquitto 2.0.11 sends a whole queue at once to who comes back, whatever
        Receive Maximum says, and then takes longer to read the acknowledgements than there is between two faults."""
        while not self.stopping.is_set() and self._backlog() > BACKLOG:
            await asyncio.sleep(0.05)

    def _backlog(self) -> int:
        """Messages that were published and have not ended, well or as dead letters; a few less where some ran twice."""
        return len(self.published) - sum(app.distinct("handled") + app.distinct("dead") for app in self.apps)

    # Faults

    async def _fault(self) -> None:
        kinds: list[tuple[str, str, Callable[[], Awaitable[None]]]] = [
            (RESTART, "subscribed again, nothing lost", self._restart_broker),
            ("broker stopped (SIGSTOP) for a while", "given up, resumed", self._pause_broker),
            ("connections reset", "resumed, what ran is joined", self._reset),
            ("connection cut within a packet", "no partial message", self._cut),
            ("network silent for a while", "given up, resumed", self._silence),
            ("acknowledgements lost, then reset", "second runs, nothing lost", self._lose_acknowledgements),
            ("slow network", "nothing", self._slow),
            ("app SIGKILL and restart", "redelivered", self._kill),
            ("app SIGTERM and restart", "drained, the rest waits", self._terminate),
            ("app stopped (SIGSTOP) for a while", "resumed", self._pause_app),
        ]
        name, expected, act = self.random.choice(kinds)
        fault = self.faults.setdefault(name, Fault(name, expected))
        began = time.monotonic()
        await act()
        fault.intervals.append((began, time.monotonic()))

    async def _restart_broker(self) -> None:
        await asyncio.to_thread(self.mosquitto.restart)

    async def _pause_broker(self) -> None:
        self.mosquitto.pause()
        await self._while()
        self.mosquitto.resume()

    async def _reset(self) -> None:
        self.proxy.reset()

    async def _cut(self) -> None:
        self.proxy.cut_after(self.random.choice((TO_BROKER, TO_CLIENT)), self.random.randrange(2000))
        await self._while()
        self.proxy.cuts.clear()

    async def _silence(self) -> None:
        self.proxy.pause()
        await self._while()
        self.proxy.resume()

    async def _lose_acknowledgements(self) -> None:
        self.proxy.pause(TO_BROKER)
        await asyncio.sleep(self.random.uniform(0.05, 0.5))
        self.proxy.reset()
        self.proxy.resume()

    async def _slow(self) -> None:
        self.proxy.delay = 0.05
        await self._while()
        self.proxy.delay = 0

    async def _kill(self) -> None:
        app = self.random.choice(self.apps)
        await app.kill()
        self._note_end(app, "SIGKILL")
        await asyncio.sleep(self.random.choice((0, 1)))
        app.launch()

    async def _terminate(self) -> None:
        app = self.random.choice(self.apps)
        code = await app.stop()
        self._note_end(app, "SIGTERM")
        if code:
            self._say(f"an app ended with {code} after SIGTERM")
        await asyncio.sleep(self.random.choice((0, 1)))
        app.launch()

    def _note_end(self, app: AppProcess, why: str) -> None:
        self.ends[f"faults-{self.apps.index(app)}-0"].append((time.monotonic(), why))

    async def _pause_app(self) -> None:
        app = self.random.choice(self.apps)
        app.send(signal.SIGSTOP)
        await self._while()
        app.send(signal.SIGCONT)

    async def _while(self) -> None:
        """Often longer than what the app takes for the end of a connection, often not."""
        await asyncio.sleep(self.random.uniform(0.5, 5.0))

    # What came of it

    def _runs(self, *words: str) -> Counter[str]:
        return sum((app.noted(word) for app in self.apps for word in words), Counter[str]())

    def missing(self) -> set[str]:
        """What was published and is neither handled nor, where it always fails, among the dead letters."""
        ended = self._runs("handled", "dead")
        return set(self.published) - set(ended)

    def report(self) -> bool:
        """Print the tables, and what speaks against it; gives whether all is well."""
        runs, missing, deliveries = self._runs("handled", "failed"), self.missing(), self._deliveries()
        read = self._read(deliveries)
        rules = {
            payload: self._explain(deliveries[payload], count, read) for payload, count in runs.items() if count > 1
        }
        bad = [f"LOST: {payload} {deliveries.get(payload)}" for payload in sorted(missing)]
        bad += [
            f"UNEXPLAINED: {payload} ran {runs[payload]} times: {deliveries[payload]}"
            for payload, rule in rules.items()
            if rule is None
        ]
        print(
            "\n".join([*self._table(len(missing), len(rules)), "", *self._summary(runs, rules), *bad[:40]]), flush=True
        )
        (self.directory / "timeline").write_text(self._timeline())
        (self.directory / "broker.log").write_text(self.mosquitto.log())
        return not bad and bool(self.published)

    def _table(self, lost: int, twice: int) -> Iterator[str]:
        ended = Counter(
            fault.name for n in range(len(self.proxy.connections)) if (fault := self._behind(n)) is not None
        )
        yield "| fault | times | expected | connections it ended | lost | twice |"
        yield "|---|---|---|---|---|---|"
        for each in sorted(self.faults.values(), key=lambda each: each.name):
            yield f"| {each.name} | {len(each.intervals)} | {each.expected} | {ended[each.name]} | | {each.twice} |"
        times = sum(len(each.intervals) for each in self.faults.values())
        yield f"| **all** | {times} | published = handled | {sum(ended.values())} | {lost} | {twice} |"

    def _summary(self, runs: Counter[str], rules: dict[str, str | None]) -> Iterator[str]:
        topics = Counter(payload.partition("-")[0] for payload in self.published)
        by_topic = ", ".join(f"{count} on {topic}/…" for topic, count in sorted(topics.items()))
        yield f"{len(self.published)} published with reason code 0x00 ({by_topic}):"
        yield f"- {len(set(self.published) & set(runs))} handled"
        yield f"- {len(self._runs('dead'))} dead letters of {len(self._runs('failed'))} that always fail"
        yield f"- {len(rules)} run more than once"
        for rule, count in Counter(rules.values()).most_common():
            yield f"  - {count}: {rule or 'UNEXPLAINED'}"

    def _timeline(self) -> str:
        """What was done when, and what became of each connection: the evidence."""
        events = [
            (moment, f"{word} {fault.name}")
            for fault in self.faults.values()
            for interval in fault.intervals
            for moment, word in zip(interval, ("begin", "end"), strict=True)
        ]
        for number, connection in enumerate(self.proxy.connections):
            sent, came = (connection.packets[direction] for direction in Direction)
            if not sent:
                continue
            name = f"connection {number} of {sent[0].connect.client_id}"
            counts = Counter(packet.kind.name for packet in (*sent, *came))
            events += [
                (connection.times[TO_BROKER][0], f"    {name} begins"),
                (connection.ended, f"    {name} ends: {dict(counts)}, last sent: {sent[-1]}"),
            ]
        return "".join(f"{moment:.3f} {event}\n" for moment, event in sorted(events))

    def _explain(self, deliveries: list[Delivery], runs: int, read: dict[int, int]) -> str | None:
        """The rule by which a message ran more than once; None when there is none."""
        if len(deliveries) < runs:
            return None
        first = self._behind(deliveries[0].connection)
        rules = [self._why_again(each, following, read) for each, following in itertools.pairwise(deliveries)]
        found = list(filter(None, rules))
        wanted = runs - 1 if deliveries[0].qos == 2 else len(rules)  # what has no rule was told to be a repeat
        if first is None or len(found) < wanted:
            return None
        first.twice += 1
        return max(found)

    def _why_again(self, each: Delivery, following: Delivery, read: dict[int, int]) -> str | None:
        client_id = self.proxy.connections[each.connection].packets[TO_BROKER][0].connect.client_id
        ends = {why for moment, why in self.ends[client_id] if each.moment < moment < following.moment}
        if each.turn is None:
            joins = each.qos == 2 and not ends  # with QoS 1 a PUBACK may have been on its way to the proxy
            return None if joins else "not acknowledged when its connection ended"
        if each.qos == 2 and not each.released:
            return "the app was killed between its PUBREC and PUBREL" if "SIGKILL" in ends else None
        if each.qos == 1 and each.turn >= read[each.connection]:
            return "the broker had not read its acknowledgement when its connection ended"
        restarts = self.faults[RESTART].intervals if RESTART in self.faults else []
        if each.released and any(began < following.moment and each.moment < end for began, end in restarts):
            return "the broker was restarted behind PUBREL, and sent PUBLISH again"
        return None

    def _read(self, deliveries: dict[str, list[Delivery]]) -> dict[int, int]:
        """Per connection how many acknowledgements the broker must have read: those of messages that came no more."""
        read: defaultdict[int, int] = defaultdict(int)
        for each in deliveries.values():
            last = each[-1]
            if last.turn is not None:
                read[last.connection] = max(read[last.connection], last.turn + 1)
        return read

    def _behind(self, connection: int) -> Fault | None:
        """The fault that ended a connection: the last one that had begun by then, but for those that only slow down."""
        moment = self.proxy.connections[connection].ended
        begun = [
            (began, fault)
            for fault in self.faults.values()
            if fault.name != "slow network"
            for began, _ in fault.intervals
            if began <= moment
        ]
        return max(begun, key=lambda each: each[0])[1] if begun and moment != float("inf") else None

    def _deliveries(self) -> dict[str, list[Delivery]]:
        """What was delivered to the app, by payload, in order."""
        found: defaultdict[str, list[Delivery]] = defaultdict(list)
        for number, connection in enumerate(self.proxy.connections):
            owed: dict[tuple[PacketType, int], Delivery] = {}
            turns = itertools.count()
            for moment, packet in _in_order(connection):
                answer = (packet.kind, packet.packet_id)
                if packet.kind is PacketType.PUBLISH and not packet.topic.startswith("dead/"):
                    delivery = Delivery(number, moment, packet.qos)
                    owed[_ANSWERS[packet.qos], packet.packet_id] = delivery
                    found[packet.payload.decode()].append(delivery)
                elif answer in owed and packet.kind is PacketType.PUBREL:
                    owed.pop(answer).released = True
                elif answer in owed:
                    delivery = owed.pop(answer)
                    delivery.turn = next(turns)
                    if packet.kind is PacketType.PUBREC:
                        owed[PacketType.PUBREL, packet.packet_id] = delivery
        return found

    def _say(self, text: str) -> None:
        print(f"{len(self.published)} published, {text}", file=sys.stderr, flush=True)


_ANSWERS = {1: PacketType.PUBACK, 2: PacketType.PUBREC}


def _in_order(connection: ProxyConnection) -> Iterator[tuple[float, Packet]]:
    """Messages to the app and its acknowledgements, in order, until the connection ended."""
    kinds = {TO_CLIENT: {PacketType.PUBLISH, PacketType.PUBREL}, TO_BROKER: set(_ANSWERS.values())}
    streams = [
        [
            (moment, packet)
            for packet, moment in zip(connection.packets[direction], connection.times[direction], strict=True)
            if packet.kind in kinds[direction] and moment <= connection.ended
        ]
        for direction in (TO_CLIENT, TO_BROKER)
    ]
    return heapq.merge(*streams, key=lambda each: each[0])


def main() -> int:
    """Gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="mqttapi-soak-"))
    if Path("/dev/shm").is_dir():
        tempfile.tempdir = "/dev/shm"  # mosquitto waits for the disk at every change, and reads nothing meanwhile
    print(f"seed {given.seed}, evidence in {directory}", flush=True)
    fine = asyncio.run(Soak(directory, given.seed).run(given.minutes * 60))
    print("all is well" if fine else "NOT WELL", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
