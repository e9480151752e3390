"""One run of an app against the fake broker, and what it took."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from mqttapi.config import Session, Settings
from mqttapi.errors import BrokerError, MQTTAPIError
from mqttapi.message import Message, printable
from mqttapi.runtime.runs import Run
from mqttapi.service import Service
from mqttapi.serving import tune_garbage_collector

if TYPE_CHECKING:
    from mqttapi.app import App
    from mqttapi.cli.fake_broker import Plan
    from mqttapi.runtime.outcome import Outcome

__all__ = ["NothingMeasured", "Result", "measured"]

_PACKAGE: Final = Path(__file__).parents[2]
_POLL: Final = 0.005
"""Seconds between two looks at whether everything has arrived: they take less than a hundredth of the CPU time."""
_COUNTED: Final = ("done", "dropped", "rejected", "failed", "retried")


class NothingMeasured(MQTTAPIError):
    """Raised when the app handles no message: the time of errors is of no interest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured."""

    topics: int
    payload: int
    """Bytes."""
    qos: int
    messages: int
    cpu_us: float
    """CPU time per message, user and system, all threads."""
    wall_us: float
    per_second: int
    done: int
    """How the messages ended, counted once per route, and what was retried."""
    dropped: int
    rejected: int
    failed: int
    retried: int


async def measured(app: App, plan: Plan) -> Result:
    """Run the app for as long as it takes.

    Raises:
        NothingMeasured: No message was handled.
        BrokerError: The app lost its connection on the way.
    """
    app.session = Session.transient()
    with tempfile.TemporaryDirectory(prefix="mqttapi-bench-") as directory:
        # What the app keeps on disk belongs to the one in service, which has the same client id.
        own = {"state_dir": Path(directory), "runtime_dir": Path(directory)}
        service = Service(app, (app.settings or Settings()).model_copy(update=own))
        async with _Broker(plan) as broker, service.connected(broker.url):
            work = asyncio.create_task(_measure(service, plan, broker))
            await asyncio.wait((work, service.failure), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            work.cancel()
            raise service.failure.result()


async def _measure(service: Service, plan: Plan, broker: _Broker) -> Result:
    await _handle_one(service, plan)
    await broker.send(plan.warmup)
    await _handled(service, plan.warmup)
    tune_garbage_collector()
    before = _counts(service)
    cpu, wall = time.process_time(), time.perf_counter()
    await broker.send(plan.messages)
    await _handled(service, plan.warmup + plan.messages)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    counts = {name: count - before[name] for name, count in _counts(service).items()}
    if not counts["done"]:
        raise NothingMeasured(f"the app handled none of {plan.messages:,} messages; the log says why")
    return Result(
        topics=len(plan.topics),
        payload=len(plan.payload),
        qos=plan.qos,
        messages=plan.messages,
        cpu_us=round(cpu / plan.messages * 1e6, 3),
        wall_us=round(wall / plan.messages * 1e6, 3),
        per_second=round(plan.messages / wall),
        **counts,
    )


def _counts(service: Service) -> dict[str, int]:
    return {name: sum(runner.counts[name] for runner in service.runners) for name in _COUNTED}


async def _handled(service: Service, count: int) -> None:
    """Wait until so many messages have come and are handled, with all that they published."""
    assert service.consumer is not None  # noqa: S101  it is connected
    assert service.publishing is not None  # noqa: S101
    while sum(intake.received + intake.refused for intake in service.consumer.intakes) < count:  # noqa: ASYNC110  an event would cost each message
        await asyncio.sleep(_POLL)
    await service.workers.drain()
    await service.publishing.sender.flushed()


class _First:
    """The `Origin` of a message that comes from no broker: it knows how that ended, and why."""

    def __init__(self) -> None:
        self.end: asyncio.Future[tuple[Run, Outcome]] = asyncio.get_running_loop().create_future()

    def ended(self, run: Run, outcome: Outcome) -> None:
        if not self.end.done():
            self.end.set_result((run, outcome))


async def _handle_one(service: Service, plan: Plan) -> None:
    message, first = Message(plan.topics[0], plan.payload, plan.qos), _First()
    for target in service.dispatcher.targets(message.topic):
        service.workers.submit(Run(message, target, service.app, first, None))
    service.workers.wake()
    run, outcome = await first.end
    if outcome.kind != "done":
        raise NothingMeasured(
            f"{run.route.name} {outcome.kind} the first message, on {printable(message.topic)}: "
            f"{printable(outcome.reason)}. Nothing was measured"
        )


class _Broker:
    """The fake broker, in a process that ends with this one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "mqttapi.cli.fake_broker"),
            env={**os.environ, "PYTHONPATH": str(_PACKAGE)},
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for this process
        )
        self._write(self._plan.to_json())
        self.url = f"mqtt://127.0.0.1:{int(await self._line())}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def send(self, count: int) -> None:
        """Let it send the next part, of so many messages; with QoS 1, until they are acknowledged."""
        self._write("")
        while "sent" not in (said := json.loads(await self._line())):
            pass
        if said["sent"] < count:
            raise BrokerError(f"the app lost its connection after {said['sent']:,} of {count:,} messages")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.write(f"{line}\n".encode())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        line = await self._process.stdout.readline()
        if not line:
            raise BrokerError("the process that sends the messages has ended")
        return line
