"""Rate limits that do not do what they seem to say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mqttapi.cli.checks.finding import Finding
from mqttapi.middleware import RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["rate_behind_stricter", "rate_per_process", "rate_wait_cut_off", "rate_wait_too_short"]


def rate_wait_too_short(subject: Subject) -> Iterator[Finding]:
    """`excess="wait"` where a turn comes later than anybody waits."""
    for route, limiters in _limited(subject):
        for rate in limiters:
            step = rate.period / rate.limit
            if rate.excess == "wait" and step > rate.patience:
                yield Finding(
                    "warning",
                    (route,),
                    f"{rate!r}: waiting rarely helps: one message may pass each {step:g} s, and none waits longer than "
                    f"{rate.patience:g} s",
                    "What has to wait longer for its turn is rejected, as if it had not waited.",
                    "Say excess='reject' or 'drop', or let more pass in a shorter period.",
                )


def rate_wait_cut_off(subject: Subject) -> Iterator[Finding]:
    """A wait that is longer than an attempt may take."""
    for route, limiters in _limited(subject):
        longest = subject.longest_attempt(route)
        for rate in limiters:
            if rate.patience >= longest:
                yield Finding(
                    "warning",
                    (route,),
                    f"{rate!r}: a message may wait for {rate.patience:g} s, and an attempt takes {longest:g} s at most",
                    "The wait is part of the attempt: its time-out ends it, and the message fails.",
                    f"Make max_wait less than {longest:g}, or raise timeout= (and MQTTAPI_MAX_HOLD, which bounds it).",
                )


def rate_behind_stricter(subject: Subject) -> Iterator[Finding]:
    """A limiter that never has anything to do, as one further out lets less through."""
    for route, limiters in _limited(subject):
        for at, inner in enumerate(limiters):
            outer = next(
                (rate for rate in limiters[:at] if _counts_as_much(rate, inner) and _stricter(rate, inner)), None
            )
            if outer is not None:
                yield Finding(
                    "warning",
                    (route,),
                    f"{inner!r} never stops anything: {outer!r} further out lets less through",
                    "A message meets the outer one first.",
                    "Take one of the two out, or make the inner one the stricter of them.",
                )


def rate_per_process(subject: Subject) -> Iterator[Finding]:
    """A limiter that counts in memory, on a route that several processes serve."""
    for route, limiters in _limited(subject):
        workers = subject.workers_of(route)
        for rate in limiters:
            in_memory = rate._store == "memory" or (rate._store == "auto" and subject.settings.redis_url is None)
            if workers > 1 and in_memory:
                yield Finding(
                    "warning",
                    (route,),
                    f"{rate!r}: each of the {workers} workers counts for itself, so up to {workers * rate.limit} messages pass",
                    "Without Redis a limiter knows of its own process alone.",
                    "Set REDIS_URL, or divide the limit by the number of workers.",
                )


def _limited(subject: Subject) -> Iterator[tuple[Route, list[RateLimit]]]:
    """The routes with their limiters, outermost first."""
    for route in subject.routes:
        layers = [getattr(function, "__self__", None) for function in subject.middleware_of(route)]
        yield route, [layer for layer in layers if isinstance(layer, RateLimit)]


def _counts_as_much(outer: RateLimit, inner: RateLimit) -> bool:
    """Whether the outer one counts each message together with all those that the inner one counts it with."""
    same_route = inner._name is None or inner._name == outer._name
    return same_route and (outer.by is None or outer.by == inner.by)


def _stricter(outer: RateLimit, inner: RateLimit) -> bool:
    """Whether what the outer one lets through never reaches the bound of the inner one."""
    if inner.strategy == "sliding_window":
        return _most(outer, inner.period) <= inner.limit
    return _most(outer, 0.0) <= inner.burst and outer.limit / outer.period <= inner.limit / inner.period


def _most(rate: RateLimit, seconds: float) -> int:
    """How many messages pass at most, in a period of that length."""
    if rate.strategy == "sliding_window":
        return rate.limit * max(1, math.ceil(seconds / rate.period))
    return rate.burst + math.floor(rate.limit * seconds / rate.period)
