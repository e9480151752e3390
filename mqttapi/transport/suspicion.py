"""Which publish it is that a broker closes the connection over.

Some brokers do so over one that they do not like. It is the first that goes again, so nothing else would ever get through:
where `PATIENCE` connections in a row end with the same publish as the oldest that has no answer, everything sent is suspect,
and goes one at a time. What is alone on the wire at the end of `PATIENCE` connections is the culprit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttapi.errors import PublishRefused
from mqttapi.transport.dialer import SHORT_LIFE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.transport.connection import Closed
    from mqttapi.transport.pending import Pending

__all__ = ["Suspicion"]

PATIENCE: Final = 3
"""Connections that a publish may end by chance."""
_UNSPECIFIED: Final = 0x80
# A DISCONNECT that has nothing to do with what was sent: server busy or shutting down, keep alive, taken over, rate, quota,
# administrative action, other server, server moved, connection rate, maximum connect time.
_INNOCENT: Final = frozenset((0x89, 0x8B, 0x8D, 0x8E, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0x9F, 0xA0))


class Suspicion:
    """What the ends of connections tell of what was sent."""

    def __init__(self) -> None:
        self.suspects: set[Pending] = set()
        """While there are any, one is to be sent at a time. Always the same object."""
        self.sent_alone = 0.0
        """When the last one was."""
        self._oldest: Pending | None = None  # without an answer when the connection before was lost
        self._fruitless = 0  # connections in a row that ended with the same oldest

    def verdict(self, sent: Sequence[Pending], closed: Closed, now: float) -> PublishRefused | None:
        """A connection has ended while these, oldest first, had no answer.

        Gives the error of the first, if it is alone and certainly the culprit.
        """
        if not sent:
            return None
        oldest = sent[0]
        self._fruitless = self._fruitless + 1 if oldest is self._oldest else 1
        self._oldest = oldest
        if not self.suspects:
            if self._fruitless >= PATIENCE:
                self.suspects.update(sent)
        elif len(sent) == 1 and self._ended_over_it(closed, now):
            oldest.ended += 1
            if oldest.ended >= PATIENCE:
                return _refused(oldest, closed)
        return None

    def end(self) -> None:
        """Nothing is suspect any more."""
        self.suspects.clear()
        self._fruitless = 0
        self._oldest = None

    def _ended_over_it(self, closed: Closed, now: float) -> bool:
        soon = now - self.sent_alone < SHORT_LIFE
        return soon and not closed.by_us and closed.reason_code not in _INNOCENT


def _refused(entry: Pending, closed: Closed) -> PublishRefused:
    said = "" if closed.reason_code is None else f": {closed.reason}"
    this = "its PUBREL" if entry.received else "this"
    return PublishRefused(
        f"{entry.label}: the broker closed the connection {entry.ended} times when it got {this} and nothing else{said}",
        reason_code=closed.reason_code or _UNSPECIFIED,
    )
