"""What the broker keeps while the app is away, and what is remembered of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttapi.cli.checks.finding import Finding
from mqttapi.middleware import Deduplicate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject

__all__ = ["deduplicate_forgets", "session_of_nothing", "short_session"]

RESTART: Final = 60
"""Seconds that an app may be away though all is well: pauses between two starts reach 30 s, as do those between two
attempts to connect."""


def short_session(subject: Subject) -> Iterator[Finding]:
    """A session that may end while the app is started again."""
    expiry = subject.session.expiry
    if 0 < expiry < RESTART and subject.settings.protocol == "5":
        yield Finding(
            "warning",
            (),
            f"the session expires after {expiry} s, and a restart may take {RESTART} s",
            "After a crash the next start waits for up to 30 s, and so does the next attempt to connect. When the session "
            "has ended meanwhile, what came in that time is lost, at QoS 1 and 2 as well.",
            f"Make Session(expiry=...), or MQTTAPI_SESSION_EXPIRY, {RESTART} or more; the default is a day.",
        )
    if expiry and subject.session.clean_start:
        yield Finding(
            "warning",
            (),
            f"Session(clean_start=True) forgets at the start what its expiry of {expiry} s has kept",
            "What came while the app was away is lost.",
            "Leave clean_start out; Session.transient() says that nothing is to be kept.",
        )


def session_of_nothing(subject: Subject) -> Iterator[Finding]:
    """QoS 1 or 2 without a session."""
    lasting = tuple(subject.lasting())
    if not subject.session.persistent and lasting:
        yield Finding(
            "note",
            lasting,
            "the session ends with the connection",
            "What comes while the app is away, and what a crash leaves unacknowledged, is lost, at QoS 1 and 2 as well.",
            "Leave session= out, or give it an expiry; for development this is as it should be.",
        )


def deduplicate_forgets(subject: Subject) -> Iterator[Finding]:
    """`Deduplicate` that forgets a message before the broker does."""
    for route in subject.routes:
        for function in subject.middleware_of(route):
            layer = getattr(function, "__self__", None)
            if isinstance(layer, Deduplicate) and layer.ttl < subject.session.expiry:
                yield Finding(
                    "warning",
                    (route,),
                    f"{layer!r} knows a message for {layer.ttl:g} s, and the session lasts {subject.session.expiry} s",
                    "A message may be delivered again as long as the session lasts, and is handled again then.",
                    "Make ttl= more than the session's expiry.",
                )
