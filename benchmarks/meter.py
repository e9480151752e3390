"""What every measured program reports, in the same way. Standard library only, for every environment imports it.

The CPU time of a message is the user and system time of the whole process (all its threads) between the last message
of the warm-up and the last message of all, over their number: start-up, connecting and first compilations are left
out. The broker pauses between the two, so nothing is read ahead when the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.workload import stamp_of, topic_of

IN_FLIGHT = 64
TOPICS = [topic_of(number) for number in range(1_000)]


@dataclass(frozen=True, slots=True)
class Job:
    """What the harness asks for, in environment variables."""

    port: int = field(default_factory=lambda: int(os.environ["BENCH_PORT"]))
    qos: Literal[0, 1] = field(default_factory=lambda: 1 if os.environ.get("BENCH_QOS") == "1" else 0)
    messages: int = field(default_factory=lambda: int(os.environ.get("BENCH_MESSAGES", "100000")))
    warmup: int = field(default_factory=lambda: int(os.environ.get("BENCH_WARMUP", "1000")))
    latency: bool = field(default_factory=lambda: os.environ.get("BENCH_MODE") == "latency")
    variant: str = field(default_factory=lambda: os.environ.get("BENCH_VARIANT", ""))
    sleep: float = field(default_factory=lambda: float(os.environ.get("BENCH_SLEEP", "0")))
    result: Path = field(default_factory=lambda: Path(os.environ.get("BENCH_RESULT", "/dev/stdout")))


@dataclass(frozen=True, slots=True)
class Reading:
    """User time, system time and the wall clock, in seconds."""

    user: float
    system: float
    wall: float

    @classmethod
    def now(cls) -> Reading:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(usage.ru_utime, usage.ru_stime, time.perf_counter())


def figures(began: Reading, ended: Reading, messages: int) -> dict[str, float]:
    user, system, wall = ended.user - began.user, ended.system - began.system, ended.wall - began.wall
    return {
        "messages": messages,
        "user_us": user / messages * 1e6,
        "system_us": system / messages * 1e6,
        "cpu_us": (user + system) / messages * 1e6,
        "wall_us": wall / messages * 1e6,
    }


def finish(job: Job, result: dict[str, Any]) -> None:
    """Report and end the process at once: what a library does at its end is not measured."""
    job.result.write_text(json.dumps(result) + "\n")
    os._exit(0)


def counter(job: Job) -> Callable[[Any], None]:
    """The function that a handler calls once for each message, with the payload or its timestamp."""
    return _latencies(job) if job.latency else _counter(job)


def _counter(job: Job) -> Callable[[Any], None]:
    count, mark = 0, job.warmup
    began = ended = Reading.now()

    def tick(_: bytes | int) -> None:
        nonlocal count, mark, began, ended
        count += 1
        if count != mark:
            return
        if count == job.warmup:
            began, mark = Reading.now(), count + 1
        elif count == job.warmup + 1:  # the broker's pause is over: from here the wall clock counts
            began, mark = Reading(began.user, began.system, time.perf_counter()), job.warmup + job.messages
        else:
            ended = Reading.now()
            finish(job, figures(began, ended, job.messages))

    return tick


def _latencies(job: Job) -> Callable[[Any], None]:
    seen: list[int] = []
    began = Reading.now()

    def tick(sent: bytes | int) -> None:
        nonlocal began
        now = time.monotonic_ns() // 1_000
        seen.append(now - stamp_of(sent))
        if len(seen) == job.warmup:
            began = Reading.now()
        elif len(seen) == job.warmup + job.messages:
            result = figures(began, Reading.now(), job.messages)
            ordered = sorted(seen[job.warmup :])
            for name, share in (("p50_us", 0.50), ("p99_us", 0.99), ("max_us", 1.0)):
                result[name] = ordered[min(int(len(ordered) * share), len(ordered) - 1)]
            finish(job, result)

    return tick


async def publish_all(job: Job, publish: Callable[[str], Awaitable[object]]) -> None:
    """Publish the warm-up and then the messages, 64 awaited at any time, and report."""

    async def some(first: int, last: int) -> None:
        for number in range(first, last, IN_FLIGHT):
            await publish(TOPICS[number % len(TOPICS)])

    async def lots(count: int) -> None:
        await asyncio.gather(*(some(lane, count) for lane in range(IN_FLIGHT)))

    await lots(job.warmup)
    began = Reading.now()
    await lots(job.messages)
    finish(job, figures(began, Reading.now(), job.messages))
