"""A message on a route: the `Runner` is the route, a `Run` the message, and a `Target` is what a topic means to a runner.

A `Run` is the context that middleware and handlers are given, with what the engine has to know of it: its place in the
order, where it came from, and how long it may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mqttapi.context import Context
from mqttapi.runtime.ordering import key_function

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from mqttapi.app import App
    from mqttapi.message import Message
    from mqttapi.middleware import Endpoint
    from mqttapi.routing import Route
    from mqttapi.runtime.outcome import Outcome
    from mqttapi.runtime.overflow import Queue

__all__ = ["Origin", "Run", "Runner", "Target"]

COUNTED = (
    *("done", "dropped", "rejected", "failed"),
    *("retried", "dead_lettered", "spooled", "replies_failed"),
    "overflowed",
)
"""What is counted per route: how runs ended, what happened on the way, and what never began."""

Again: TypeAlias = "Callable[[Run, BaseException], Awaitable[object]]"
"""Runs a route again that has raised an exception; gives what it returns in the end, or raises what it raises."""


class Origin(Protocol):
    """Where a message came from: it is told how each of its runs ended."""

    def ended(self, run: Run, outcome: Outcome) -> None:
        """`run` is over. Called exactly once for each run."""


class Runner:
    """A route that runs: its endpoint with all the middleware around it, its lanes and its bounds."""

    __slots__ = (
        "again",
        "backlog",
        "counts",
        "endpoint",
        "index",
        "key_of",
        "lanes",
        "limit",
        "max_hold",
        "order",
        "queue",
        "route",
        "running",
        "timeout",
    )

    def __init__(
        self,
        route: Route,
        endpoint: Endpoint,
        index: int = 0,
        again: Again | None = None,
        queue: Queue | None = None,
    ) -> None:
        self.route = route
        self.index = index  # in the order of registration
        self.counts = dict.fromkeys(COUNTED, 0)
        self.endpoint = endpoint if queue is None else queue.around(endpoint)
        self.queue = queue  # where messages of QoS 0 may be dropped
        self.again = again  # where it is not within the endpoint: what to do when that raises
        self.timeout = route.timeout
        self.max_hold = math.inf
        self.order = route.ordered_by
        self.key_of = key_function(route)
        # Runs without a lane are counted by way of a limit that is never reached.
        self.limit = route.concurrency or (sys.maxsize if self.order is None else None)
        self.running = 0  # counted only where there is a limit
        self.backlog: deque[Run] = deque()  # ready, but for the limit
        self.lanes: dict[Hashable, deque[Run] | None] = {}  # key to the runs behind the first one; None: none so far

    def target(self, topic: str, values: tuple[object, ...]) -> Target:
        """What the runner is for the messages of one topic."""
        if self.order == "topic":
            return Target(self, values, topic)
        if self.order is None or callable(self.order):
            return Target(self, values, None)
        return Target(self, values, values[self.route.template.names.index(self.order)])


class Target:
    """A runner with what a topic means to it: computed once per topic, used for each of its messages."""

    __slots__ = ("key", "runner", "values")

    def __init__(self, runner: Runner, values: tuple[object, ...], key: Hashable) -> None:
        self.runner = runner
        self.values = values
        self.key = key


class Run(Context):
    """The context of one message on one route, with what the engine needs to know about it."""

    __slots__ = ("began", "deadline", "key", "origin", "returned", "runner", "ticket")

    began: float
    """On the clock of the loop: when it was first seen to wait. Only there once it has waited, as is the next one."""
    deadline: float | None
    """When the attempt has taken too long. Negative: that has passed, and the task was cancelled at that time."""
    returned: bool
    """Whether the handler itself returned; only there where the route has `publish_to`."""

    def __init__(self, message: Message, target: Target, app: App, origin: Origin, ticket: Any) -> None:
        self.message = message
        self.runner = runner = target.runner
        self.route = runner.route
        self.values_ = target.values
        self.app = app
        self.attempt = 1
        self._data = None
        self.key = target.key if runner.key_of is None else runner.key_of(message)
        self.origin = origin
        self.ticket = ticket

    @contextlib.asynccontextmanager
    async def standstill(self, *, held: bool = False, anew: bool = False) -> AsyncIterator[None]:
        """The run waits for something that is not its own doing, and the time-out of the attempt waits with it.

        Args:
            held: Whether `max_hold` goes on meanwhile, and limits the wait.
            anew: Whether the attempt, and all that `max_hold` is for, begins anew behind it.
        """
        await asyncio.sleep(0)  # the workers know now that the run waits, and have set its deadline
        until = getattr(self, "deadline", None)
        if until is None or until < 0:
            yield
            return
        clock, max_hold = asyncio.get_running_loop().time, self.runner.max_hold
        since = clock()
        self.deadline = self.began + max_hold if held else None
        try:
            yield
        finally:
            if self.deadline is None or self.deadline >= 0:  # else `max_hold` is over
                now = clock()
                if anew:
                    self.began, until = now, since + (self.runner.timeout or max_hold)
                elif not held:
                    self.began += now - since
                self.deadline = min(until + now - since, self.began + max_hold)
