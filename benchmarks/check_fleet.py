"""Compares `benchmarks.simulate_fleet` with real runs: mosquitto, `mqttapi run` with 1, 2 and 4 workers, SIGKILL.

    python -m benchmarks.check_fleet --workers 1 2 4

The handler sleeps, so that the workers do not fight for cores. A rehearsal measures what the simulation is then given:
how long a message takes (in a burst), and how long a killed worker is away. Then messages are published at half of what
the workers can do; there are a burst, the SIGKILL of a worker in the middle of another one, and a restart of the broker,
each with time to recover. What was published and handled when is compared with the prediction, and with the one that
follows from how long the worker really was away, and the connections after the broker's restart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from benchmarks.latency import free_port
from benchmarks.simulate_fleet import (
    BrokerRestart,
    Burst,
    Failure,
    Fleet,
    Kill,
    Load,
    Samples,
    Service,
    recovery,
    simulate,
)
from mqttapi import App

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "deploy" / "mosquitto.conf"
NOBODY_SUBSCRIBED = 0x10
PATIENCE = 60.0  # seconds that anything may take
SAMPLE = 0.1  # seconds
BURST_PER_WORKER = 150
REHEARSAL_PER_WORKER = 100
REHEARSED_KILLS = 3
BROKER_RESTART, BROKER_AWAY = 32.0, 2.0  # seconds: when, and for how long
# After that the clients try again within this time: their pauses have grown, and are drawn at random.
RECONNECT = 3.0


# ------------------------------------------------------------------------------------------------------------- processes


class Broker:
    """mosquitto with the configuration of `deploy/`, on a port and in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise SystemExit("needs mosquitto")
        self.port = free_port()
        here = {
            "listener": f"listener {self.port} 127.0.0.1",
            "persistence_location": f"persistence_location {directory}/",
        }
        lines = [line for line in CONFIGURATION.read_text().splitlines() if line and not line.startswith("#")]
        lines = [here.get(line.split()[0], line) for line in lines] + (["user root"] if os.geteuid() == 0 else [])
        configuration = directory / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self.command = [program, "-c", str(configuration)]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


@contextmanager
def workers(count: int, broker: Broker, directory: Path, service: float) -> Iterator[Notes]:
    """`mqttapi run` with so many workers; gives their notes."""
    notes = directory / "notes"
    notes.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MQTT")} | {
        "FLEET_NOTES": str(notes),
        "FLEET_SERVICE": str(service),
        "FLEET_WORKERS": str(count),
        "MQTT_URL": broker.url,
        "MQTT_INSTANCE": "check",
        "MQTTAPI_RUNTIME_DIR": str(directory / "runtime"),
        "MQTTAPI_STATE_DIR": str(directory / "state"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "mqttapi", "run", "benchmarks.fleet_app:app"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield Notes(notes)
        finally:
            process.terminate()
            process.wait()


class Note(NamedTuple):
    time: int
    """Nanoseconds, of the clock that all processes of the machine share."""
    pid: int
    kind: str
    number: int = -1
    dup: bool = False


class Notes:
    """What the workers have written; each line is read once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, int] = {}
        self._notes: list[Note] = []

    def all(self) -> list[Note]:
        for path in self._directory.iterdir():
            with path.open("rb") as file:
                file.seek(self._read.get(path.name, 0))
                lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                self._read[path.name] = self._read.get(path.name, 0) + len(whole)
            for line in whole.splitlines():
                time, kind, *rest = line.decode().split()
                number, dup = (*map(int, rest), 0, 0)[:2] if rest else (-1, 0)
                self._notes.append(Note(int(time), int(path.name), kind, number, bool(dup)))
        return self._notes

    def ended(self) -> dict[int, int]:
        """When each message was handled first."""
        ended: dict[int, int] = {}
        for note in self.all():
            if note.kind == "ended" and note.time < ended.get(note.number, note.time + 1):
                ended[note.number] = note.time
        return ended

    def connected(self) -> set[int]:
        return {note.pid for note in self.all() if note.kind == "connected"}


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}")
        await asyncio.sleep(0.1)


# ------------------------------------------------------------------------------------------------------------ publishing


@dataclass(slots=True)
class Feed:
    """Publishes numbered messages, and each again until someone has subscribed to it."""

    app: App
    made: dict[int, int] = field(default_factory=dict)
    """When each number was made, in nanoseconds."""
    answered: list[int] = field(default_factory=list)
    """When the broker has answered, whatever it said."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def make(self, count: int = 1) -> list[int]:
        numbers = [len(self.made) + offset for offset in range(count)]
        for number in numbers:
            self.made[number] = time.monotonic_ns()
            task = asyncio.create_task(self._publish(number))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return numbers

    async def _publish(self, number: int) -> None:
        while True:
            result = await self.app.publish(f"load/{number}")
            self.answered.append(time.monotonic_ns())
            if result.reason_code != NOBODY_SUBSCRIBED:
                return
            await asyncio.sleep(0.05)

    async def steadily(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        for number in range(1, int(rate * seconds) + 1):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            self.make()


# --------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True, slots=True)
class Times:
    """What the simulation is given, in seconds."""

    service: float
    restart: float
    reconnect: float | tuple[float, ...] = RECONNECT
    publishers: float = RECONNECT / 2

    def fleet(self, members: int) -> Fleet:
        return Fleet(members, service=Service(mean=self.service), restart=self.restart, reconnect=self.reconnect)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is compared, of the simulation and of the run."""

    published: int
    handled: int
    redelivered: int
    repeated: int
    peaks: list[int]
    """Of the backlog, after the burst, the one with the SIGKILL, the restart of the broker."""
    recoveries: list[float | None]


async def rehearse(count: int, notes: Notes, feed: Feed) -> Times:
    await until(lambda: len(notes.connected()) == count, f"{count} workers")
    burst = feed.make(REHEARSAL_PER_WORKER * count)
    await until(lambda: set(burst) <= notes.ended().keys(), "the burst of the rehearsal")
    took = []
    for pid in notes.connected():
        mine = [note.time for note in notes.all() if note.pid == pid and note.kind in {"began", "ended"}]
        took.append((max(mine) - min(mine)) / 1e9 / (len(mine) / 2))
    away = []
    for again in range(REHEARSED_KILLS):
        at = kill_one(notes)
        await until(lambda: len(notes.connected()) == count + 1 + again, "the killed worker to be back")  # noqa: B023  read now
        back = min(note.time for note in notes.all() if note.kind == "connected" and note.time > at)
        away.append((back - at) / 1e9)
    return Times(fmean(took), median(away))


def kill_one(notes: Notes) -> int:
    """SIGKILL for a worker; gives when."""
    alive = [note.pid for note in notes.all() if note.kind == "connected" and Path(f"/proc/{note.pid}").exists()]
    at = time.monotonic_ns()
    os.kill(alive[0], signal.SIGKILL)
    return at


def plan(count: int, rehearsed: Times) -> tuple[Load, list[Failure]]:
    """Half of the capacity, and time enough after each failure."""
    burst = BURST_PER_WORKER * count
    load = Load(0.5 * count / rehearsed.service, 60.0, bursts=(Burst(4.0, burst), Burst(14.0, burst)))
    return load, [Kill(15.0, 0), BrokerRestart(BROKER_RESTART, BROKER_AWAY)]


async def perform(load: Load, failures: Sequence[Failure], notes: Notes, feed: Feed, broker: Broker) -> int:
    """Do what the plan says; gives when it began, in nanoseconds."""
    began = time.monotonic()

    async def at(seconds: float, action: Callable[[], object]) -> None:
        await asyncio.sleep(began + seconds - time.monotonic())
        action()

    doing = [feed.steadily(load.rate, load.duration)]
    doing += [at(burst.at, partial(feed.make, burst.count)) for burst in load.bursts]
    for failure in failures:
        match failure:
            case Kill():
                doing.append(at(failure.at, partial(kill_one, notes)))
            case BrokerRestart():
                doing.append(at(failure.at, broker.stop))
                doing.append(at(failure.at + failure.takes, broker.start))
    await asyncio.gather(*doing)
    await until(lambda: feed.made.keys() <= notes.ended().keys(), "all messages")
    return int(began * 1e9)


def samples_of(made: Iterable[int], ended: Iterable[int], began: int, seconds: float) -> list[tuple[float, int]]:
    """The backlog by time: what was made, without what was handled."""
    made, ended = sorted(made), sorted(ended)
    times = [round(step * SAMPLE, 6) for step in range(int(seconds / SAMPLE) + 1)]
    marks = [began + int(at * 1e9) for at in times]
    return [(at, bisect_right(made, mark) - bisect_right(ended, mark)) for at, mark in zip(times, marks, strict=True)]


def peaks(samples: Samples, edges: Sequence[float]) -> list[int]:
    """The largest backlog between each edge and the next, or the end."""
    bounds = [*edges, float("inf")]
    return [max(backlog for at, backlog in samples if first <= at < last) for first, last in pairwise(bounds)]


def seen(samples: Samples, edges: Sequence[float], members: int, **counted: int) -> Seen:
    recoveries = [recovery(samples, edge, slack=members) for edge in edges]
    return Seen(**counted, peaks=peaks(samples, edges), recoveries=recoveries)


def predict(
    times: Times, count: int, edges: Sequence[float], load: Load, failures: Sequence[Failure]
) -> tuple[Seen, Samples]:
    outcome = simulate(times.fleet(count), replace(load, reconnect=times.publishers), failures)
    counted = {name: getattr(outcome, name) for name in ("published", "handled", "redelivered", "repeated")}
    return seen(outcome.samples, edges, count, **counted), outcome.samples


def real_times(rehearsed: Times, notes: Sequence[Note], feed: Feed, began: int, failures: Sequence[Failure]) -> Times:
    """How long the killed worker was away, and after the broker was back each worker and the publisher."""
    connected = sorted((note.time - began) / 1e9 for note in notes if note.kind == "connected" and note.time > began)
    (kill,) = [failure.at for failure in failures if isinstance(failure, Kill)]
    (back,) = [failure.at + failure.takes for failure in failures if isinstance(failure, BrokerRestart)]
    return Times(
        rehearsed.service,
        next(at for at in connected if at > kill) - kill,
        tuple(at - back for at in connected if at > back),
        next(at for at in ((answer - began) / 1e9 for answer in feed.answered) if at > back) - back,
    )


async def measure(count: int, service: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        directory = Path(folder)
        broker = Broker(directory)
        broker.start()
        app = App("feeder", broker=broker.url)
        os.environ["MQTTAPI_RUNTIME_DIR"], os.environ["MQTTAPI_STATE_DIR"] = (
            f"{folder}/feeder",
            f"{folder}/feeder-state",
        )
        try:
            with workers(count, broker, directory, service) as notes:
                async with app.running():
                    feed = Feed(app)
                    rehearsed = await rehearse(count, notes, feed)
                    load, failures = plan(count, rehearsed)
                    first = len(feed.made)
                    began = await perform(load, failures, notes, feed, broker)
                    found = notes.all()
                    made = {number: at for number, at in feed.made.items() if number >= first}
                    ended = {number: at for number, at in notes.ended().items() if number >= first}
        finally:
            broker.stop()
    runs = [note for note in found if note.kind == "began" and note.number >= first]
    edges = [*(burst.at for burst in load.bursts), BROKER_RESTART]
    real = real_times(rehearsed, found, feed, began, failures)
    predicted, before = predict(rehearsed, count, edges, load, failures)
    explained, _ = predict(real, count, edges, load, failures)
    samples = samples_of(made.values(), ended.values(), began, load.duration)
    measured = seen(
        samples,
        edges,
        count,
        published=len(made),
        handled=sum(at <= began + load.duration * 1e9 for at in ended.values()),
        redelivered=sum(note.dup for note in runs),
        repeated=len(runs) - len({note.number for note in runs}),
    )
    return {
        "workers": count,
        "rate": round(load.rate, 1),
        "rehearsed": asdict(rehearsed),
        "real": asdict(real),
        "predicted": asdict(predicted),
        "explained": asdict(explained),
        "measured": asdict(measured),
        "samples": {"predicted": before, "measured": samples},
    }


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| workers | | predicted | with the real times | measured |"
    yield "|---|---|---|---|---|"
    for result in results:
        sides = [result[name] for name in ("predicted", "explained", "measured")]
        rows: list[tuple[Any, ...]] = [("published", *(side["published"] for side in sides))]
        for place, name in enumerate(("burst", "burst and SIGKILL", "restart of the broker")):
            rows.append((f"{name}: largest backlog", *(side["peaks"][place] for side in sides)))
            rows.append((f"{name}: as before after", *(_seconds(side["recoveries"][place]) for side in sides)))
        rows += [(name, *(side[name] for side in sides)) for name in ("redelivered", "repeated")]
        for name, *values in rows:
            yield f"| {result['workers']} | {name} | {' | '.join(map(str, values))} |"


def _seconds(value: float | None) -> str:
    return "not" if value is None else f"{value:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--service", type=float, default=0.01, help="seconds that the handler sleeps")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for count in options.workers:
        results.append(asyncio.run(measure(count, options.service)))
        print(f"{count} workers: {results[-1]['rehearsed']}, really {results[-1]['real']}", file=sys.stderr, flush=True)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
