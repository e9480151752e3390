"""What a supervisor's state says to people: the same words for `mqttapi ps`, for SIGUSR1 and for `/ready`.

A state is what `Supervisor.state()` returns. It may come from a process of another version, so nothing in it is relied
on but the slots of its workers.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    State = Mapping[str, Any]  # JSON

__all__ = [
    "COLUMNS",
    "HANDLED",
    "READY",
    "SILENT",
    "cells",
    "counted",
    "describe",
    "duration",
    "headline",
    "memory",
    "name_of",
    "problems",
    "unready",
    "workers",
]

COLUMNS: Final = (
    *("slot", "pid", "client id", "state", "up", "restarts", "in flight", "lag"),
    *("handled", "rejected", "failed", "memory", "CPU"),
)
"""Of `cells`."""
READY: Final = "ready"
SILENT: Final = 5.0
"""Seconds after which a worker that has not reported is not taken for ready; it reports once a second."""
HANDLED: Final = ("done", "dropped")
"""The counters of a route that say that a message was dealt with; see `RouteStats`."""


def describe(state: State) -> list[str]:
    """The whole state, in lines for a log."""
    return [headline(state), *(_line(worker) for worker in workers(state)), *problems(state)]


def name_of(state: State) -> str:
    """`plant-host (pid 4711)`, or only `pid 4711` while the app is being imported."""
    app, pid = state.get("app"), state.get("pid")
    return printable(f"{app}-{state.get('instance')} (pid {pid})" if app else f"pid {pid}")


def headline(state: State) -> str:
    """One line about the supervisor."""
    what = " ".join(filter(None, (name_of(state), state.get("phase"), printable(state.get("target") or ""))))
    count = state.get("size", 0) - len({slot for slots in unready(state).values() for slot in slots})
    up = duration(state.get("uptime", 0.0))
    return f"{what}: {count} of {state.get('size')} workers ready, up {up}"


def workers(state: State) -> list[State]:
    """By slot."""
    found: list[State] = sorted(state.get("workers", ()), key=lambda worker: worker["slot"])
    return found


def cells(worker: State) -> dict[str, str]:
    """What a table says about a worker, by the names of `COLUMNS`."""
    stats = worker.get("stats") or {}
    quarantine = ", quarantine" if worker.get("quarantine") else ""
    return {
        "slot": str(worker["slot"]),
        "pid": str(worker.get("pid") or "-"),
        "client id": printable(worker.get("client_id") or "-"),
        "state": f"{worker.get('state')}{quarantine}",
        "up": duration(worker.get("uptime")),
        "restarts": f"{worker.get('restarts', 0):,}",
        "in flight": f"{stats.get('in_flight', 0):,}",
        "lag": duration(stats.get("oldest") or None),
        "handled": f"{counted(worker, *HANDLED):,}",
        "rejected": f"{counted(worker, 'rejected'):,}",
        "failed": f"{counted(worker, 'failed'):,}",
        "memory": memory(worker.get("rss")),
        "CPU": duration(worker.get("cpu")),
    }


def counted(worker: State, *names: str) -> int:
    """The sum of these counters over the routes of a worker; see `RouteStats`."""
    routes = (worker.get("stats") or {}).get("routes") or {}
    return sum(route.get(name, 0) for route in routes.values() for name in names)


def unready(state: State, age: float = 0.0) -> dict[str, list[int]]:
    """Why the pool is not ready, with the slots where it is so, or none where it is the supervisor's doing.

    Empty when the pool has its size, and each of its workers is ready and has reported within 5 s. A worker that leaves
    when the pool gets smaller is no part of it any more, nor is a process that waits for the former one of its slot.

    Args:
        state: Of the supervisor.
        age: Seconds since it was taken.
    """
    found: dict[str, list[int]] = {"stopping": []} if state.get("phase") == "stopping" else {}
    of_slot: dict[int, list[list[str]]] = {slot: [] for slot in range(state.get("size", 0))}
    for worker in workers(state):
        if worker["slot"] in of_slot:
            of_slot[worker["slot"]].append(_lacking(worker, age))
    for slot, lacking in of_slot.items():
        if all(lacking):
            for problem in chain.from_iterable(lacking or (["no process"],)):
                found.setdefault(problem, []).append(slot)
    return found


def problems(state: State) -> list[str]:
    """What `unready` finds, a line each."""
    return [f"{_slots(slots)}: {problem}" if slots else problem for problem, slots in unready(state).items()]


def _lacking(worker: State, age: float) -> list[str]:
    state = worker.get("state")
    found = [printable(problem) for problem in worker.get("problems") or ()]
    if state != READY and not found:
        found.append(str(state))
    heard = age + (worker.get("heard") or 0.0)
    if state == READY and heard > SILENT:
        found.append(f"has not reported for {duration(heard)}")
    return found


def _slots(slots: Sequence[int]) -> str:
    return f"slot{'s' if len(slots) > 1 else ''} {', '.join(map(str, slots))}"


def _line(worker: State) -> str:
    said = cells(worker)
    first = f"slot {said['slot']}: pid {said['pid']}, {said['client id']}, {said['state']}"
    return ", ".join((first, *(f"{column} {said[column]}" for column in COLUMNS[4:])))


def duration(seconds: float | None) -> str:
    """`0.2 s`, `12 s`, `5 min`, `3 h 05 min`, `2 d 4 h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if days < 2 else f"{days} d {hours % 24} h"


def memory(size: int | None) -> str:
    """Bytes as `58 MiB`; `-` for None."""
    return "-" if size is None else f"{size / 2**20:,.0f} MiB"
