"""What becomes of messages that fail."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from mqttapi.cli.checks.finding import Finding
from mqttapi.remarks import never_reached

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Retry

__all__ = ["no_dead_letter", "qos_0_kept", "retry_above_hold", "timeout_above_hold"]


def no_dead_letter(subject: Subject) -> Iterator[Finding]:
    """An app that puts no message aside."""
    lasting = tuple(subject.lasting())
    if lasting and not any(route.dead_letter for route in subject.routes):
        yield Finding(
            "note",
            lasting,
            "no route has a dead_letter",
            "A message that is rejected, or fails for good, is logged, counted and acknowledged: then it is gone.",
            "App(dead_letter='dead/<topic>') puts it aside, with the reason.",
        )


def qos_0_kept(subject: Subject) -> Iterator[Finding]:
    """Routes of QoS 0 that have means against loss."""
    routes = tuple(route for route in subject.routes if not route.qos and (route.dead_letter or route.retry))
    if routes:
        yield Finding(
            "note",
            routes,
            "QoS 0 with dead_letter or retry",
            "They hold while the process lives: of QoS 0 nothing is kept at the broker, so what is being handled or "
            "retried when the process ends is lost.",
            "Where that matters, publish and subscribe with QoS 1.",
        )


def timeout_above_hold(subject: Subject) -> Iterator[Finding]:
    """A time-out that is never reached."""
    hold = subject.settings.max_hold
    for route in never_reached(subject.routes, hold):
        yield Finding(
            "warning",
            (route,),
            f"timeout={route.timeout:g} is never reached: a message is held for {hold:g} s at most",
            "MQTTAPI_MAX_HOLD bounds attempts, pauses and waits together.",
            f"Raise MQTTAPI_MAX_HOLD, or make timeout {hold:g} or less.",
        )


def retry_above_hold(subject: Subject) -> Iterator[Finding]:
    """Attempts that are never made."""
    hold = subject.settings.max_hold
    for route in subject.routes:
        if route.retry is None:
            continue
        made = 1 + sum(waited < hold for waited in _waits(route.retry))
        if made < route.retry.attempts:
            yield Finding(
                "warning",
                (route,),
                f"of {route.retry.attempts} attempts at most {made} are made: a message is held for {hold:g} s",
                "The pauses alone take longer. MQTTAPI_MAX_HOLD bounds attempts, pauses and waits together.",
                "Shorten delay or max_delay, or raise MQTTAPI_MAX_HOLD; for longer outages let the dead letter wait.",
            )


def _waits(retry: Retry) -> list[float]:
    """For each attempt but the first, the seconds that the pauses before it take at least, all together."""
    pauses = (min(retry.max_delay, retry.delay * retry.factor**at) for at in range(retry.attempts - 1))
    return list(accumulate(pause / 2 if retry.jitter else pause for pause in pauses))
