"""Which process serves which routes: pure decisions, the same in every process of a pool.

A pool has slots, one process each. Unshared routes are served by slot 0, or with `placement="spread"` by the slot that
a hash of their filter chooses. A shared route that asks for n processes is served by the slots 0 to n - 1. When the
pool is scaled, every shared route gets as many processes more, or fewer, as the pool; one always.

Routes on one subscription stand and fall together: the one that asks for the most processes decides.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mqttapi.topics import split_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mqttapi.routing import Route

__all__ = ["MOST_WORKERS", "Placement", "Plan", "Wanted", "Worker", "processes_of", "wanted"]

MOST_WORKERS: Final = 512
"""Processes that a pool has at most."""

Placement = Literal["first", "spread"]


class Worker(NamedTuple):
    """Which process of a pool this is. An app that was not started by `mqttapi run` is the only one."""

    slot: int = 0
    """0, 1, 2 and so on: part of the client id, and the same after a restart."""
    size: int | None = None
    """How many processes the pool has; None: as many as the routes ask for, but all of them in this one process."""


class Wanted(NamedTuple):
    """What a subscription asks for."""

    filter: str
    """With its `$share/<group>/`."""
    workers: int
    """Processes; 1 where it is not shared."""

    @property
    def shared(self) -> bool:
        return split_share(self.filter)[0] is not None


class Plan:
    """How the subscriptions of an app are spread over the processes of a pool.

    Args:
        wanted: What each of them asks for; a filter may come more than once.
        placement: Of what is not shared: on the `first` slot, or `spread` over all.
        size: Processes of the pool, 1 to 512; None: as many as are asked for.
    """

    def __init__(self, wanted: Iterable[Wanted], *, placement: Placement = "first", size: int | None = None) -> None:
        self._workers: dict[str, int] = {}
        for each in wanted:
            self._workers[each.filter] = max(each.workers, self._workers.get(each.filter, 1))
        self.asked = max(self._workers.values(), default=1)
        """Processes that the routes ask for."""
        self.size = self.asked if size is None else size
        self.can_scale = any(split_share(filter)[0] is not None for filter in self._workers)
        """Whether more processes would have anything to do."""
        self._placement = placement

    def slots(self, filter: str) -> Sequence[int]:
        """The slots that serve a subscription."""
        if split_share(filter)[0] is not None:
            return range(max(1, min(self.size, self._workers[filter] + self.size - self.asked)))
        if self._placement == "first":
            return (0,)
        # Rendezvous hashing: a slot more or less moves nothing but what it takes or had.
        return (max(range(self.size), key=lambda slot: _weight(filter, slot)),)

    def serves(self, slot: int, filter: str) -> bool:
        """Whether the process in a slot has the subscription."""
        return slot in self.slots(filter)

    def served(self, slot: int) -> frozenset[str]:
        """The subscriptions of a slot."""
        return frozenset(filter for filter in self._workers if self.serves(slot, filter))


def wanted(routes: Iterable[Route], group: str, *, default: int | None, cap: int | None = None) -> list[Wanted]:
    """What the subscriptions of routes ask for.

    Args:
        routes: All of an app.
        group: The name of the default group.
        default: Processes of shared routes that do not say (`WORKER_COUNT`); None: one.
        cap: The most that any route gets (`--workers`); None: 512.
    """
    return [
        Wanted(filter, processes_of(route, default=default, cap=cap))
        for route in routes
        for filter in route.filters(group)
    ]


def processes_of(route: Route, *, default: int | None, cap: int | None = None) -> int:
    """How many processes a route asks for; see `wanted`."""
    if route.shared is False:
        return 1
    return min(route.workers or default or 1, cap or MOST_WORKERS, MOST_WORKERS)


def _weight(filter: str, slot: int) -> bytes:
    return hashlib.blake2b(f"{slot}\0{filter}".encode(), digest_size=8).digest()
