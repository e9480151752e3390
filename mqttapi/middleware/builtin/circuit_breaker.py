"""`CircuitBreaker`: while what a route depends on is away, its messages wait.

    closed ──so many failures in a row──► open ──after a while──► half open: one message probes
      ▲                                    ▲                        │            │
      └────────────── it succeeded ────────┼────────────────────────┘            │
                                           └────────────── it failed ────────────┘

A message that finds the circuit open, or whose failure has opened it, waits, for as long as it takes: it has no
time-out meanwhile. So the route needs a link of its own, `isolate=True`. Nothing is read from it while messages wait,
and the broker keeps what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError, Drop, MessageError, RetryLater
from mqttapi.injection.standstill import standstill
from mqttapi.middleware.builtin.rules import is_number, require
from mqttapi.middleware.builtin.store import PerRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint
    from mqttapi.routing import Route

__all__ = ["CircuitBreaker"]

log = logging.getLogger("mqttapi.middleware")


class CircuitBreaker:
    """Holds the messages of a route while what it depends on is away.

        @app.topic("orders/<id>", isolate=True, middleware=[CircuitBreaker(5, reset=30, on=(OSError, DBAPIError))])

    After `failures` failures in a row nothing is handled for `reset` seconds. Then one message probes: when it succeeds
    all go on, else another one probes `reset` seconds later. The message whose failure has opened the circuit is held
    and handled again; those that failed before it went the way of their route. `failures=1` holds the first one.

    What fails again after others have succeeded is itself to blame, and goes the way of its route, too.

    Args:
        failures: In a row, 1 to 1,000,000.
        reset: Seconds until the first probe, and between two probes.
        on: What counts as a failure, an exception or a tuple of them. Never `Drop`, `RetryLater`, and what rejects a
            message. A handler that takes too long counts, but is not held.

    Raises:
        ConfigurationError: When an argument breaks a rule, or, when the app starts, its route is not isolated.
    """

    def __init__(
        self,
        failures: int = 5,
        reset: float = 30.0,
        *,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
    ) -> None:
        owner = "CircuitBreaker"
        whole = "a whole number, 1 to 1,000,000"
        require(owner, "failures", failures, lambda n: type(n) is int and 1 <= n <= 10**6, whole)
        require(owner, "reset", reset, lambda seconds: is_number(seconds, 1e-3), "above 0 s")
        kinds = on if isinstance(on, tuple) else (on,)
        require(
            owner, "on", on, lambda _: any(kinds) and all(map(_is_exception, kinds)), "an exception or a tuple of them"
        )
        self._on = kinds
        self._failures = failures
        self._reset = reset
        self._circuits: PerRun[dict[str, _Circuit]] = PerRun(lambda _: {})

    def check_route(self, route: Route) -> None:
        """Called when the app starts, for each route that it is around.

        Raises:
            ConfigurationError: When the route is not isolated.
        """
        if not route.isolate:
            raise ConfigurationError(
                f"CircuitBreaker around {route.name!r} ({route.source}): while the circuit is open nothing is "
                "acknowledged, and other routes would stand still with it. Give the route isolate=True"
            )

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Run what is inside while the circuit is closed, or as a probe."""
        circuit = self._circuit(context)
        may_wait = context.attempt == 1  # a second attempt has a time-out that cannot be lifted
        held: int | None = None
        while True:
            probes = may_wait and await circuit.enter(context)
            try:
                result = await next_handler(context)
            except asyncio.CancelledError:
                circuit.failed("it took too long", probes=probes)
                raise
            except BaseException as error:
                if not isinstance(error, self._on) or isinstance(error, Drop | MessageError | RetryLater):
                    circuit.succeeded(probes=probes)
                    raise
                circuit.failed(type(error).__name__, probes=probes)
                if not may_wait or not circuit.is_open or held not in {None, circuit.closings}:
                    raise
                held = circuit.closings
            else:
                circuit.succeeded(probes=probes)
                return result

    def _circuit(self, context: Context) -> _Circuit:
        circuits, route = self._circuits.of(context), context.route.name
        if route not in circuits:
            circuits[route] = _Circuit(route, self._failures, self._reset)
        return circuits[route]

    def __repr__(self) -> str:
        return f"CircuitBreaker(on={', '.join(kind.__name__ for kind in self._on)})"


class _Circuit:
    """The circuit of one route."""

    def __init__(self, route: str, failures: int, reset: float) -> None:
        self.is_open = False
        self.closings = 0
        """How often it was closed."""
        self._route = route
        self._allowed = failures
        self._reset = reset
        self._in_a_row = 0
        self._may_probe = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, context: Any) -> bool:
        """Return when the message may be handled; True: as a probe, whose end has to be told."""
        if not self.is_open:
            return False
        async with standstill(context, anew=True):
            with _held_link(context):
                while not self._lets_in():
                    await self._turn()
                probes, self._may_probe = self._may_probe, False
                return probes

    def _lets_in(self) -> bool:
        return not self.is_open or self._may_probe

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif self._may_probe:  # it was ours
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def succeeded(self, *, probes: bool) -> None:
        """A message was handled, or has failed by itself."""
        self._in_a_row = 0
        if not probes:
            return
        self.is_open, self._may_probe = False, False
        self.closings += 1
        log.info("the circuit of %s is closed again: %d messages go on", self._route, len(self._waiting))
        while self._waiting:
            self._wake()

    def failed(self, reason: str, *, probes: bool) -> None:
        """A message has failed."""
        self._in_a_row += 1
        if probes:
            self._open_for_a_while()
        elif not self.is_open and self._in_a_row >= self._allowed:
            self.is_open = True
            log.warning(
                "the circuit of %s is open, after %d failures in a row (%s): messages wait, one probes in %g s",
                self._route,
                self._in_a_row,
                reason,
                self._reset,
            )
            self._open_for_a_while()

    def _open_for_a_while(self) -> None:
        asyncio.get_running_loop().call_later(self._reset, self._half_open)

    def _half_open(self) -> None:
        self._may_probe = True
        self._wake()


@contextlib.contextmanager
def _held_link(context: Any) -> Iterator[None]:
    """Nothing is read from the link that the message came on."""
    origin: Any = getattr(context, "origin", None)
    if not hasattr(origin, "hold"):  # that is no link
        yield
        return
    origin.hold()
    try:
        yield
    finally:
        origin.let_go()


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)
