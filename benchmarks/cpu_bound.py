"""A handler that needs a millisecond of CPU time: inline, in a thread, in a pool of processes, with workers.

    python -m benchmarks.cpu_bound

Throughput and CPU time: the workers are stopped (SIGSTOP) while messages are published, so that nothing but them and the
broker runs when they go on. Latency: 400 messages a second for that handler, and 47 for a fast route of the same app,
whose age in its handler is taken. All of it on the cores of this machine, the broker and the publisher too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from benchmarks.check_fleet import ROOT, Broker, until
from benchmarks.cpu_work import calibrated
from mqttapi import App

MILLISECOND = 0.001
WARM_UP = 100
SLOW_RATE, FAST_RATE = 400, 47  # messages a second; no common beat
TICKS = os.sysconf("SC_CLK_TCK")


class Way(NamedTuple):
    name: str
    handler: str
    workers: int = 1
    work: str = "burn"


WAYS = (
    Way("`async def`", "inline"),
    Way("`def`: a thread", "thread"),
    Way("`def`, and the work holds no lock", "thread_without_lock", work="digest"),
    Way("`anyio.to_process`", "process"),
    Way("`ProcessPoolExecutor`", "executor"),
    Way("`async def`, `workers=2`", "inline", 2),
    Way("`async def`, `workers=4`", "inline", 4),
)


class Run:
    """An app that runs."""

    def __init__(self, process: subprocess.Popen[bytes], notes: Path) -> None:
        self._process = process
        self._notes = notes

    def notes(self, kind: str) -> dict[int, int]:
        """When each number was noted."""
        lines = (line.split() for path in self._notes.iterdir() for line in path.read_text().splitlines())
        return {int(number): int(time) for time, noted, number in lines if noted == kind}

    def ready(self) -> int:
        return sum("connected" in path.read_text() for path in self._notes.iterdir())

    def tree(self) -> list[int]:
        """The workers, and what they have started."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(stat.parent.name)] = int(fields[1])
        found = {self._process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {self._process.pid})

    def signal(self, number: signal.Signals) -> None:
        for pid in self.tree():
            os.kill(pid, number)

    def cpu(self) -> float:
        """Seconds of CPU time, of all of them."""
        ticks = 0
        for pid in self.tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS


@contextmanager
def running(way: Way, count: int, broker: Broker, directory: Path) -> Iterator[Run]:
    notes = directory / "notes"
    notes.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MQTT")} | {
        "CPU_NOTES": str(notes),
        "CPU_WAY": way.handler,
        "CPU_WORKERS": str(way.workers),
        "CPU_COUNT": str(count),
        "MQTT_URL": broker.url,
        "MQTT_INSTANCE": "bench",
        "MQTTAPI_RUNTIME_DIR": str(directory / "runtime"),
        "MQTTAPI_STATE_DIR": str(directory / "state"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "mqttapi", "run", "benchmarks.cpu_app:app"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield Run(process, notes)
        finally:
            process.terminate()


async def burst(app: App, run: Run, first: int, count: int) -> float:
    """Have so many messages handled; gives the seconds from the time that the workers went on."""
    run.signal(signal.SIGSTOP)
    await asyncio.gather(*(app.publish(f"burn/{number}") for number in range(first, first + count)))
    began = time.monotonic_ns()
    run.signal(signal.SIGCONT)
    await until(lambda: len(run.notes("ended")) == first + count, f"{count} messages")
    return (max(run.notes("ended").values()) - began) / 1e9


async def latencies(app: App, run: Run, first: int, seconds: float) -> list[float]:
    """The ages, in milliseconds, of messages of the fast route beside the slow one."""
    sent: dict[int, int] = {}

    def send_fast(number: int) -> None:
        sent[number] = time.monotonic_ns()
        app.publish_nowait(f"fast/{number}")

    await asyncio.gather(
        steadily(SLOW_RATE, seconds, lambda number: app.publish_nowait(f"burn/{first + number}")),
        steadily(FAST_RATE, seconds, send_fast),
    )
    await until(lambda: len(run.notes("fast")) == len(sent), "the fast messages")
    arrived = run.notes("fast")
    return [(arrived[number] - at) / 1e6 for number, at in sent.items()]


async def steadily(rate: float, seconds: float, send: Callable[[int], object]) -> None:
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        send(number)


async def measure(way: Way, count: int, messages: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="cpu-") as folder:
        directory = Path(folder)
        os.environ["MQTTAPI_RUNTIME_DIR"], os.environ["MQTTAPI_STATE_DIR"] = f"{folder}/bench", f"{folder}/bench-state"
        broker = Broker(directory)
        broker.start()
        try:
            app = App("bench", broker=broker.url)
            with running(way, count, broker, directory) as run:
                async with app.running():
                    await until(lambda: run.ready() == way.workers, f"{way.workers} workers")
                    await burst(app, run, 0, WARM_UP)
                    before = run.cpu()
                    took = await burst(app, run, WARM_UP, messages)
                    cpu = run.cpu() - before
                    ages = await latencies(app, run, WARM_UP + messages, seconds)
        finally:
            broker.stop()
    return {
        "per_second": messages / took,
        "cpu_ms": cpu / messages * 1000,
        "p50_ms": median(ages),
        "p99_ms": quantiles(ages, n=100)[98],
        "max_ms": max(ages),
    }


def collect(ways: Sequence[Way], rounds: int, messages: int, seconds: float) -> list[dict[str, Any]]:
    """Every way in each round, so that a noisy minute falls on all of them; of each figure the best, as noise only costs."""
    counts = calibrated(MILLISECOND)
    found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            figures = asyncio.run(measure(way, counts[way.work], messages, seconds))
            found[way.name].append(figures)
            print(f"round {number + 1}: {way.name}: {figures}", file=sys.stderr, flush=True)
    best = {"per_second": max}
    return [
        {"name": name, **{key: round(best.get(key, min)(it[key] for it in each), 2) for key in each[0]}}
        for name, each in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="HANDLER", help="inline, thread, thread_without_lock, process, executor"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the latency's load")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.only or way.handler in options.only]
    rows = collect(ways, options.rounds, options.messages, options.seconds)
    if options.json:
        print(json.dumps(rows))
        return
    print("| | messages a second | CPU, ms a message | fast route: median | 99 of 100 |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['per_second']:,.0f} | {row['cpu_ms']:.2f} | {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms |"
        )


if __name__ == "__main__":
    main()
