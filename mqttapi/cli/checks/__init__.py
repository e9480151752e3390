"""What `mqttapi check` looks for: functions from a `Subject` to what they find, and the names under which it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mqttapi.cli.checks.failures import no_dead_letter, qos_0_kept, retry_above_hold, timeout_above_hold
from mqttapi.cli.checks.filters import bare_wildcard, leading_wildcard, retained_under_shared
from mqttapi.cli.checks.finding import LEVELS, Finding, Level
from mqttapi.cli.checks.loops import dead_letter_comes_back, publish_loop
from mqttapi.cli.checks.ordering import (
    concurrency_above_window,
    concurrency_of_one_key,
    narrow_broker_window,
    order_across_processes,
)
from mqttapi.cli.checks.overlaps import overlapping_pairs, shadowed_route
from mqttapi.cli.checks.payloads import bytes_in_union, tolerant_union
from mqttapi.cli.checks.rates import rate_behind_stricter, rate_per_process, rate_wait_cut_off, rate_wait_too_short
from mqttapi.cli.checks.sessions import deduplicate_forgets, session_of_nothing, short_session
from mqttapi.cli.checks.start import refused_at_start
from mqttapi.cli.checks.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["CHECKS", "LEVELS", "Finding", "Found", "Level", "Subject", "look_at"]

CHECKS: Final[Mapping[str, Callable[[Subject], Iterator[Finding]]]] = {
    "refused-at-start": refused_at_start,
    "shadowed-route": shadowed_route,
    "overlapping-routes": overlapping_pairs,
    "bare-wildcard": bare_wildcard,
    "leading-wildcard": leading_wildcard,
    "retained-under-shared": retained_under_shared,
    "publish-loop": publish_loop,
    "dead-letter-comes-back": dead_letter_comes_back,
    "order-across-processes": order_across_processes,
    "concurrency-above-window": concurrency_above_window,
    "concurrency-of-one-key": concurrency_of_one_key,
    "narrow-broker-window": narrow_broker_window,
    "tolerant-union": tolerant_union,
    "bytes-in-union": bytes_in_union,
    "rate-wait-too-short": rate_wait_too_short,
    "rate-wait-cut-off": rate_wait_cut_off,
    "rate-behind-stricter": rate_behind_stricter,
    "rate-per-process": rate_per_process,
    "short-session": short_session,
    "session-of-nothing": session_of_nothing,
    "deduplicate-forgets": deduplicate_forgets,
    "timeout-above-hold": timeout_above_hold,
    "retry-above-hold": retry_above_hold,
    "qos-0-kept": qos_0_kept,
    "no-dead-letter": no_dead_letter,
}


class Found(NamedTuple):
    """A finding, and the check that it is of."""

    check: str
    finding: Finding


def look_at(subject: Subject, without: Collection[str] = ()) -> list[Found]:
    """All findings, the worst first; `without` some checks."""
    found = [
        Found(name, finding) for name, check in CHECKS.items() if name not in without for finding in check(subject)
    ]
    return sorted(found, key=lambda each: LEVELS.index(each.finding.level))
