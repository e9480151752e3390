"""What an app subscribes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttapi.cli.checks.finding import Finding, some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject

__all__ = ["bare_wildcard", "leading_wildcard", "retained_under_shared"]

_EVERYTHING: Final = frozenset({"#", "+/#"})


def bare_wildcard(subject: Subject) -> Iterator[Finding]:
    """Routes on `#`."""
    for route in subject.routes:
        if _EVERYTHING.intersection(route.listens):
            yield Finding(
                "warning",
                (route,),
                f"subscribes to {route.listens[0]!r}: every message that the broker lets the app read",
                "Whatever another client publishes, secrets and floods too, comes to this app; only the broker's access "
                "control is in the way.",
                "Name the first levels of the topics that are meant, or grant the app no more than these at the broker.",
            )


def leading_wildcard(subject: Subject) -> Iterator[Finding]:
    """Routes whose first level is a wildcard, but not all of it: in an app of many tenants that may be each."""
    found = {
        route: text
        for route in subject.routes
        for text in route.listens
        if text.startswith("+") and text not in _EVERYTHING
    }
    if found:
        yield Finding(
            "note",
            tuple(found),
            f"filters that begin with a wildcard: {some([repr(text) for text in dict.fromkeys(found.values())])}",
            "The access control of the broker cannot keep the app below one prefix, and topics that begin with '$' never "
            "match [MQTT-4.7.2-1].",
            "Begin topics with a level of their own, such as the name of the plant, where you may choose.",
        )


def retained_under_shared(subject: Subject) -> Iterator[Finding]:
    """Shared routes that want retained messages."""
    for route in subject.routes:
        if not route.shared or route.retained == "skip" or route.options.retain_as_published:
            continue
        only = route.retained == "only"
        yield Finding(
            "error" if only else "warning",
            (route,),
            f"retained={route.retained!r} on a shared subscription",
            "A group gets no retained messages when it subscribes [MQTT5 §4.8.2]"
            + (": the route never runs." if only else ", though some brokers send them, to one member or to each."),
            "Read what is retained in a route that is not shared; retained='skip' is the default of shared ones.",
        )
