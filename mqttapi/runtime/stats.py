"""What an app has counted: values, taken at one moment. Never by topic: there may be any number of those."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttapi.runtime.runs import Runner

__all__ = ["RouteStats", "Stats", "route_stats"]

_NONE: Final[Mapping[str, RouteStats]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStats:
    """The messages of one route: how many ended in which way, and what happened on the way."""

    done: int = 0
    dropped: int = 0
    rejected: int = 0
    failed: int = 0
    retried: int = 0
    """Attempts beyond the first one of a message."""
    dead_lettered: int = 0
    """Of the rejected and failed ones: those that went to `dead_letter`, or to the spool."""
    spooled: int = 0
    """Of these: those that went to the spool on disk."""
    replies_failed: int = 0
    """Answers to a Response Topic that could not be sent."""
    overflowed: int = 0
    """Messages of QoS 0 that were dropped unhandled, as `overflow` says."""
    in_flight: int = 0
    """Messages at this moment: waiting for their turn, or being handled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """An app's counters since it was started, and how much it holds at this moment."""

    routes: Mapping[str, RouteStats] = field(default_factory=lambda: _NONE)
    """By the name of the route."""
    received: int = 0
    """Messages that came, whatever became of them; of several connections all together, as with what follows."""
    unmatched: int = 0
    """Messages that no route is for."""
    unknown_ids: int = 0
    """Messages that no subscription of this version of the app explains: every route that matches got them."""
    refused: int = 0
    """Packets that were no message for us: a topic that is not UTF-8, a payload above `max_payload`."""
    violations: int = 0
    """How often a broker used the id of a message for another one before it was acknowledged [MQTT-2.2.1-4]."""
    in_flight: int = 0
    """Messages that are handled at this moment, counted once per route."""
    unacknowledged: int = 0
    """Messages of QoS 1 and 2 that are held: their handlers have not ended, or wait for one that came before."""
    outgoing: int = 0
    """Publishes that the broker has not confirmed."""
    dead_letters_held: int = 0
    """Dead letters that neither the broker nor the disk has taken yet."""
    stuck_threads: int = 0
    """Threads of plain `def` handlers that took too long and cannot be stopped."""


def route_stats(runner: Runner) -> RouteStats:
    """What a runner has counted."""
    return RouteStats(**runner.counts, in_flight=_in_flight(runner))


def _in_flight(runner: Runner) -> int:
    """Counted when somebody asks, so that it costs messages nothing."""
    if runner.order is None:
        return runner.running + len(runner.backlog)
    return sum(1 + len(waiting or ()) for waiting in list(runner.lanes.values()))
