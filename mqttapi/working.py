"""An app as a worker of a pool: it serves when it is told to, tells how it is, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttapi.config import Settings, default_instance
from mqttapi.errors import HandlerStuck
from mqttapi.reporting import oldest, readiness, stats
from mqttapi.service import Service, Stopped
from mqttapi.serving import tune_garbage_collector
from mqttapi.workers import channel
from mqttapi.workers.plan import Plan, Wanted, Worker, wanted
from mqttapi.workers.slot import HANDLER_ENDED_IT

if TYPE_CHECKING:
    from mqttapi.app import App
    from mqttapi.runtime.quarantine import Quarantine
    from mqttapi.workers.channel import Commands

__all__ = ["introduction", "work"]

log = logging.getLogger("mqttapi.workers")

_PERIOD: Final = 1.0  # seconds between two reports
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def introduction(app: App, cap: int | None) -> dict[str, Any]:
    """What the supervisor has to know of an app; `cap` is the most processes for any route."""
    settings = app.settings or Settings()
    return {
        "app": app.name,
        "instance": settings.instance or default_instance(),
        "stem": settings.client_id,
        "grace": settings.grace,
        "placement": app.placement,
        "wanted": _wanted(app, settings, cap),
    }


def _wanted(app: App, settings: Settings, cap: int | None) -> list[Wanted]:
    return wanted(app.routes, settings.group_name or app.name, default=settings.worker_count, cap=cap)


async def work(
    app: App,
    commands: Commands,
    broker: str | None,
    *,
    slot: int,
    size: int,
    cap: int | None,
    rescue: str,
    quarantine: Quarantine | None = None,
) -> int:
    """Serve as the worker in a slot, until a command says otherwise; gives the exit code.

    Args:
        app: What to serve.
        commands: From the supervisor, and the way to it.
        broker: URL of the broker, if one was given on the command line.
        slot: Of this process.
        size: Of the pool.
        cap: The most processes for any route.
        rescue: The command that handles what waits in the session of another worker; it lacks the client id.
        quarantine: Where the process before this one has died.

    Raises:
        MQTTAPIError: The app cannot go on, or not even start.
        asyncio.CancelledError: It was told to stop at once.
    """
    plan = Plan(_wanted(app, app.settings or Settings(), cap), placement=app.placement, size=size)
    reports = _Reports(commands)
    service = Service(
        app, worker=Worker(slot, size), served=plan.served(slot), on_change=reports.soon, quarantine=quarantine
    )
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  for type checkers: this is a coroutine of a task
    leaving: asyncio.Future[dict[str, Any]] = loop.create_future()
    """Done when the slot goes away, with the command that says so."""

    def obey(command: dict[str, Any]) -> None:
        match command["do"]:
            case "leave" if service.was_ready:
                if not leaving.done():
                    leaving.set_result(command)
            case "resize":
                service.worker = Worker(slot, command["size"])
            case "leave" | "drain" | channel.GONE:
                service.stop()
            case "cancel":
                task.cancel()

    def hand(command: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: what still lives has nothing to do with commands
            loop.call_soon_threadsafe(obey, command)

    commands.hand_to(hand)
    loop.add_signal_handler(signal.SIGTERM, obey, {"do": "drain"})  # once or several times: only the supervisor hurries
    reporting = asyncio.create_task(reports.run(service), name=f"mqttapi[{service.client_id}].reports")
    reporting.add_done_callback(_must_not_fail)
    try:
        async with service.connected(broker):
            tune_garbage_collector()
            reports.soon()
            if not slot:
                _tell_of_former(service, rescue)
            await asyncio.wait((service.stopping, service.failure, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                await service.leave(leaving.result()["timeout"], rescue=leaving.result()["rescue"])
        if service.failure.done():
            raise service.failure.result()
    except Stopped:
        return 0
    except (SystemExit, KeyboardInterrupt, HandlerStuck) as error:
        if not service.failure.done():
            log.error("the app has ended the process before it was ready, by %r", error)
            return 1
        of = ", ".join(getattr(error, "__notes__", ()))
        log.error(
            "%s", error if isinstance(error, HandlerStuck) else f"{of}: the handler has ended the process, by {error!r}"
        )
        return HANDLER_ENDED_IT
    finally:
        reporting.cancel()
    return 0


def _tell_of_former(service: Service, rescue: str) -> None:
    """The broker goes on filling the sessions of workers that an earlier start had, and this one has not."""
    assert service.consumer is not None and service.worker.size is not None  # noqa: S101, PT018  it is connected
    for name in service.consumer.former_workers(service.worker.size):
        log.warning(
            "%s, a worker of an earlier start, has left a session: the broker gives it messages that nobody handles. "
            "Have as many workers as before, or end it: %s %s",
            *(name, rescue, name),
        )


def _must_not_fail(reporting: asyncio.Task[None]) -> None:
    if not reporting.cancelled() and reporting.exception() is not None:
        log.error("the worker tells nothing any more: this is a bug in mqttapi", exc_info=reporting.exception())


class _Reports:
    """Tells the supervisor how the worker is: once a second, and at once when something has changed."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._due = asyncio.Event()

    def soon(self) -> None:
        """Something has changed."""
        self._due.set()

    async def run(self, service: Service) -> None:
        """Do so until it is cancelled."""
        loop = asyncio.get_running_loop()
        late = 0.0
        while True:
            self._commands.tell("state", loop_lag=late, **_state(service))
            self._due.clear()
            due = loop.time() + _PERIOD
            try:
                async with asyncio.timeout_at(due):
                    await self._due.wait()
            except TimeoutError:
                late = loop.time() - due


def _state(service: Service) -> dict[str, Any]:
    problems = readiness(service)
    counted = stats(service)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "client_id": service.client_id,
        "state": "ready" if not problems else "not ready" if service.was_ready else "connecting",
        "problems": list(problems),
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": _resident(usage),
        "quarantine": service.quarantine is not None and service.quarantine.active,
        "stats": {
            **{field.name: getattr(counted, field.name) for field in dataclasses.fields(counted)},
            "oldest": oldest(service),
            "routes": {name: dataclasses.asdict(each) for name, each in counted.routes.items()},
        },
    }


def _resident(usage: resource.struct_rusage) -> int:
    """Bytes of memory: what is there now where the system tells, else the most there ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
