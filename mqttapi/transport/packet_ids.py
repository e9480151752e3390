"""Who may use which packet identifier."""

from __future__ import annotations

from collections import deque

__all__ = ["PacketIds"]


class PacketIds:
    """Gives out 1 to 65,535, each to one user at a time [MQTT-2.2.1-3].

    An id comes back as late as possible: all others are given out first. Both calls take constant time.
    """

    __slots__ = ("_fresh", "_released")

    def __init__(self) -> None:
        self._fresh = iter(range(1, 65_536))
        self._released: deque[int] = deque()

    def take(self) -> int:
        """An id that is not in use, or 0 when all are."""
        return next(self._fresh, 0) or (self._released.popleft() if self._released else 0)

    def release(self, packet_id: int) -> None:
        """Give back an id that `take` gave."""
        self._released.append(packet_id)
