"""From two states of a supervisor to the rows that `mqttapi top` shows: pure functions.

Workers report once a second, and so often we look: a rate is the growth of a counter between two reports over the time
between these, since none, one or two of them may come between two looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mqttapi.message import printable
from mqttapi.workers.description import HANDLED, cells, counted, duration, memory, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mqttapi.workers.description import State

__all__ = ["ROUTE_COLUMNS", "WORKER_COLUMNS", "Sample", "route_rows", "worker_rows"]

_LEAST: Final = 0.05  # seconds between two reports; below that they are one and the same
_ROUTE_COUNTS: Final = {
    "in flight": "in_flight",
    "rejected": "rejected",
    "failed": "failed",
    "retried": "retried",
    "dead letters": "dead_lettered",
    "overflowed": "overflowed",
}

WORKER_COLUMNS: Final = (
    *("slot", "state", "received/s", "handled/s", "in flight", "lag"),
    *("restarts", "rejected", "failed", "memory", "CPU"),
)
ROUTE_COLUMNS: Final = ("route", "handled/s", *_ROUTE_COUNTS)


class Sample(NamedTuple):
    """A state, and when it was taken."""

    at: float
    """Seconds, on a clock that only goes forward."""
    state: State


def worker_rows(before: Sample, after: Sample) -> list[dict[str, str]]:
    """The cells of `WORKER_COLUMNS` for each worker of the later sample, and for all of them together.

    Rates that nobody knows yet are `-`: `before` may be the same sample.
    """
    shown = [(pair.worker, _worker_figures(pair)) for pair in _pairs(before, after)]
    rows = [cells(worker) | _formatted(figures, WORKER_COLUMNS) for worker, figures in shown]
    if len(rows) > 1:
        figures = _total(figures for _, figures in shown)
        rows.append({"slot": "all", "state": ""} | _formatted(figures, WORKER_COLUMNS))
    return rows


def route_rows(before: Sample, after: Sample) -> list[dict[str, str]]:
    """The cells of `ROUTE_COLUMNS` for each route, over all workers; the counts of a worker begin with its process."""
    found: dict[str, list[Figures]] = {}
    for pair in _pairs(before, after):
        for route in _routes(pair.worker):
            found.setdefault(route, []).append(_route_figures(pair, route))
    return [
        {"route": printable(route)} | _formatted(_total(figures), ROUTE_COLUMNS) for route, figures in found.items()
    ]


# --------------------------------------------------------------------------------------------------------- the figures

Figures = dict[str, float]
"""By column; what is not known is missing."""


class _Pair(NamedTuple):
    """A worker of the later of two samples."""

    worker: State
    former: State
    """Itself in the earlier sample; empty when its process is new."""
    seconds: float
    """Between the reports that the two are from."""

    def rate(self, column: str, count: Callable[[State], float]) -> Figures:
        """The growth of what is counted, per second."""
        if self.seconds < _LEAST:
            return {}
        return {column: (count(self.worker) - count(self.former)) / self.seconds}


def _pairs(before: Sample, after: Sample) -> Iterator[_Pair]:
    known = {_process(worker): worker for worker in workers(before.state)}
    for worker in workers(after.state):
        former = known.get(_process(worker), {})
        began = before.at - _number(former, "heard") if former else after.at - _number(worker, "uptime")
        yield _Pair(worker, former, after.at - _number(worker, "heard") - began)


def _process(worker: State) -> tuple[object, object]:
    return worker["slot"], worker.get("pid")


def _number(values: Mapping[str, float | None], name: str) -> float:
    return values.get(name) or 0.0


def _worker_figures(pair: _Pair) -> Figures:
    worker, stats = pair.worker, pair.worker.get("stats") or {}
    return {
        **pair.rate("received/s", lambda worker: (worker.get("stats") or {}).get("received", 0)),
        **pair.rate("handled/s", lambda worker: counted(worker, *HANDLED)),
        **pair.rate("CPU", lambda worker: _number(worker, "cpu")),
        "in flight": stats.get("in_flight", 0),
        "lag": _number(stats, "oldest"),
        "restarts": worker.get("restarts", 0),
        "rejected": counted(worker, "rejected"),
        "failed": counted(worker, "failed"),
        "memory": _number(worker, "rss"),
    }


def _routes(worker: State) -> Mapping[str, Mapping[str, int]]:
    routes: Mapping[str, Mapping[str, int]] = (worker.get("stats") or {}).get("routes") or {}
    return routes


def _route_figures(pair: _Pair, route: str) -> Figures:
    def handled(worker: State) -> int:
        counts = _routes(worker).get(route, {})
        return sum(counts.get(name, 0) for name in HANDLED)

    counts = _routes(pair.worker)[route]
    return pair.rate("handled/s", handled) | {column: counts.get(name, 0) for column, name in _ROUTE_COUNTS.items()}


def _total(figures: Iterable[Figures]) -> Figures:
    """Sums, and the greatest lag."""
    sums: Figures = {}
    for each in figures:
        for column, value in each.items():
            sums[column] = max(sums.get(column, 0), value) if column == "lag" else sums.get(column, 0) + value
    return sums


# ---------------------------------------------------------------------------------------------------------- the cells


def _formatted(figures: Figures, columns: Sequence[str]) -> dict[str, str]:
    formats = {"lag": _lag, "memory": _memory, "CPU": _share, "received/s": _rate, "handled/s": _rate}
    return {
        column: formats.get(column, _count)(figures[column]) if column in figures else "-"
        for column in columns
        if column not in {"slot", "state", "route"}
    }


def _lag(seconds: float) -> str:
    return duration(seconds or None)


def _memory(size: float) -> str:
    return memory(int(size) or None)


def _share(of_a_core: float) -> str:
    return f"{of_a_core:.0%}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 9.95 or not per_second else f"{per_second:.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
