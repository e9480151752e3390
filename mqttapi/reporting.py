"""How an app that runs is: what it has counted, and what it is not ready for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mqttapi.message import printable
from mqttapi.runtime.stats import Stats, route_stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.service import Service

__all__ = ["IDLE", "LEAVING", "STARTING", "STOPPING", "oldest", "readiness", "stats"]

# What an app does when that is not its work: a service's `phase`.
STARTING: Final = "the app is starting"
STOPPING: Final = "the app is stopping"
IDLE: Final = "the app takes no messages"
LEAVING: Final = "the app is leaving for good"

_NOTHING_TO_ASK: Final = frozenset((STARTING, IDLE))
_UNTIL_STUCK: Final = 5.0
"""Seconds beyond its time-out after which a handler is taken to stand still."""


def stats(service: Service) -> Stats:
    """See `App.stats`."""
    if service.phase in _NOTHING_TO_ASK:
        return Stats()
    routes = {runner.route.name: route_stats(runner) for runner in service.runners}
    held = Stats(
        routes=MappingProxyType(routes),
        in_flight=sum(each.in_flight for each in routes.values()),
        dead_letters_held=service.dead_letters.held,
        stuck_threads=service.policy.stuck_threads,
    )
    if service.consumer is None or service.publishing is None:
        return held
    intakes = service.consumer.intakes
    return replace(
        held,
        received=sum(intake.received for intake in intakes),
        unmatched=sum(intake.unmatched for intake in intakes),
        unknown_ids=sum(intake.unknown_ids for intake in intakes),
        refused=sum(intake.refused for intake in intakes),
        violations=sum(intake.ledger.violations for intake in intakes),
        unacknowledged=sum(intake.ledger.held for intake in intakes),
        outgoing=service.publishing.sender.messages,
    )


def readiness(service: Service) -> Sequence[str]:
    """See `App.readiness`."""
    if service.phase in _NOTHING_TO_ASK:
        return (service.phase,)
    publishing = service.publishing
    reasons = (
        service.phase,
        str(service.failure.result()) if service.failure.done() else "",
        service.consumer.state if service.consumer else "",
        f"publishing: {publishing.state}" if publishing and publishing.state else "",
        *service.dead_letters.readiness(),
        *service.backends.problems,
        *_standing_still(service),
    )
    return tuple(filter(None, reasons))


def oldest(service: Service) -> float:
    """Seconds since the oldest unacknowledged message came; 0 when there is none."""
    heads = [intake.ledger.head() for intake in (service.consumer.intakes if service.consumer else ())]
    now = asyncio.get_running_loop().time()
    return max((now - head.arrived for head in heads if head is not None), default=0.0)


def _standing_still(service: Service) -> list[str]:
    """The routes whose handlers have not ended though they were cancelled for taking too long."""
    now = asyncio.get_running_loop().time()
    return [
        f"{run.route.name} has not ended for {now - run.began:.0f} s on {printable(run.message.topic)}, though its "
        f"timeout is {run.runner.timeout:g} s: it does not let itself be cancelled"
        for run in service.workers.waiting()
        if run.deadline is not None and run.deadline < 0 and now + run.deadline > _UNTIL_STUCK
    ]
