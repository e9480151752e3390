"""`RateLimit`: at most so many messages in a period.

Both strategies book a time for each message: `now` where there is room, a later one where it is worth waiting, none
where it is not. So nothing is ever tried again, and who waits has a place that nobody can take.

- Sliding window: the times of the last `limit` messages are kept, and a message comes a period after the `limit`th
  before it at the earliest. No period of that length, wherever it begins, has more than `limit`.
- Token bucket: a bucket holds `burst` tokens and gets `limit` new ones in each period, evenly. One number is kept:
  when the bucket would be full again (the "generic cell rate algorithm").
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar
from weakref import WeakKeyDictionary

from mqttapi.errors import ConfigurationError, Drop, Reject
from mqttapi.injection.functions import called
from mqttapi.middleware.base import Middleware
from mqttapi.middleware.builtin.find import Find, finder, fingerprint
from mqttapi.middleware.builtin.rules import is_number, require, require_choice, require_clock
from mqttapi.middleware.builtin.store import (
    PerRun,
    Store,
    check_store,
    is_in_run,
    layers_around,
    needs_of,
    patient,
    redis_of,
    scope,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint
    from mqttapi.routing import Route, Router

__all__ = ["RateLimit"]

LONGEST_WAIT: Final = 5.0
"""Seconds."""
LARGEST_WINDOW: Final = 10_000
"""Messages whose times are kept, per key."""
MOST_KEYS: Final = 100_000
"""Keys in the memory of a process; beyond that the oldest are forgotten."""

# Times are those of Redis, in microseconds: the clocks of the processes may differ. What is booked for later than
# anybody would wait was booked before the clock was set back; others of the same name may wait where this one does not.
_PRELUDE: Final = f"""
local longest = {round(LONGEST_WAIT * 1e6)}
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local limit, period, patience, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local at = now
"""
_WINDOW_SCRIPT: Final = (
    _PRELUDE
    + """
local newest = tonumber(redis.call('LINDEX', KEYS[1], 0))
if newest and newest > now + longest then redis.call('DEL', KEYS[1]) end
local nth = tonumber(redis.call('LINDEX', KEYS[1], limit - 1))
if nth and nth + period > now then at = nth + period end
if at - now > patience then return -1 end
redis.call('LPUSH', KEYS[1], string.format('%.0f', at))
redis.call('LTRIM', KEYS[1], 0, limit - 1)
redis.call('PEXPIRE', KEYS[1], math.ceil((at - now + period) / 1000))
return at - now
"""
)
_BUCKET_SCRIPT: Final = (
    _PRELUDE
    + """
local step = period / limit
local full = tonumber(redis.call('GET', KEYS[1])) or now
if full < now or full > now + burst * step + longest then full = now end
at = math.max(now, full - (burst - 1) * step)
if at - now > patience then return -1 end
redis.call('SET', KEYS[1], string.format('%.0f', full + step), 'PX', math.ceil((full + step - now) / 1000))
return math.ceil(at - now)
"""
)


class RateLimit(Middleware):
    """Lets at most `limit` messages through in a period.

        app.middleware_alias("throttle", RateLimit)

        @app.topic("devices/<device_id>/data", middleware=["throttle:60,1,device_id"])  # each device 60 per minute

    A limiter counts the messages of its route, and each `by` for itself; several on one route count each for itself.
    With a `name` it counts those of all the routes of the app that have a limiter of that name: these have one limit.

    With Redis it is exact across processes, by one atomic script; in memory each process counts for itself.

    Args:
        limit: Messages, from 1 up; to 10,000 with `sliding_window`.
        minutes: The period; one minute unless it or `seconds` is given.
        by: What has a limit of its own: `"topic"`, a path parameter, `"property.tenant"`, a function of the context
            (see `Find`), or None: all messages together.
        excess: What becomes of a message too many: `reject` (dead letter), `drop`, or `wait` for its turn, for
            `max_wait` seconds at most, and be rejected where that is not enough.
        seconds: The period, in place of `minutes`.
        strategy: `sliding_window`: never more than `limit` in any period. `token_bucket`: `burst` at once, and `limit`
            in each period on average.
        burst: Messages that a bucket lets through at once; `limit` unless given.
        name: What the routes that count together have in common.
        store: `redis`, `memory`, a Redis client, or `auto`: Redis where the app has a `REDIS_URL`.
        max_wait: Seconds, above 0 and to 5. While a message waits, those behind it in its lane do.
        clock: Seconds, for memory.
        sleep: Waits.

    Raises:
        ConfigurationError: When an argument breaks a rule; when the app starts, where one name has two limits.
    """

    def __init__(
        self,
        limit: int,
        minutes: float | None = None,
        by: Find | None = "topic",
        excess: Literal["drop", "reject", "wait"] = "reject",
        *,
        seconds: float | None = None,
        strategy: Literal["sliding_window", "token_bucket"] = "sliding_window",
        burst: int | None = None,
        name: str | None = None,
        store: Store = "auto",
        max_wait: float = LONGEST_WAIT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if minutes is not None and seconds is not None:
            raise ConfigurationError(f"RateLimit: minutes={minutes!r} and seconds={seconds!r} say the same: give one")
        if minutes is not None:
            require("RateLimit", "minutes", minutes, lambda given: is_number(given, 1e-3 / 60), "a number above 0")
        period = seconds if seconds is not None else 60.0 * (1 if minutes is None else minutes)
        require("RateLimit", "the period", period, lambda seconds: is_number(seconds, 1e-3), "at least 0.001 s")
        _check_choices(excess, strategy, name)
        _check_numbers(strategy, limit, burst, max_wait)
        check_store("RateLimit", store)
        require_clock("RateLimit", clock, sleep)
        self._find = None if by is None else finder(by, "RateLimit")
        self.limit = limit
        self.period = period
        self.burst = limit if burst is None else burst
        self.strategy = strategy
        self.excess = excess
        self.by = by
        self.patience = max_wait if excess == "wait" else 0.0
        self._name = name
        self._rule = (strategy, str(limit), str(float(self.period)), str(self.burst))
        self._by = "" if by is None else by if isinstance(by, str) else called(by)
        self._reason = f"more than {limit} messages in {self.period:g} s"
        self._sleep = sleep
        self._store: Store = store
        self._clock = clock
        self._limiters = PerRun(self._limiter)
        self._scopes: PerRun[dict[tuple[str, str], str | None]] = PerRun(lambda _: {})
        self.needs = needs_of(store)

    def check_route(self, route: Route) -> None:
        """Called when the app starts, for each route that it is around.

        Raises:
            ConfigurationError: When a limiter of the same name has another limit.
        """
        if self._name is None:
            return
        rules = _RULES.setdefault(route.scopes[0], {})
        rule, limiter, other = rules.setdefault(self._name, (self._rule, repr(self), route.name))
        if rule != self._rule:
            raise ConfigurationError(
                f"{self!r} around {route.name!r} ({route.source}) is called {self._name!r}, as is {limiter} around "
                f"{other!r}: limiters of one name count together, so they need one limit, period, strategy and burst. "
                "Give one of them another name"
            )

    def _limiter(self, context: Context) -> _Limiter:
        redis = redis_of(self, self._store, context)
        if redis is not None:
            return _InRedis(self, redis)
        if self._name is None or not is_in_run():
            return _InMemory(self, self._clock, _States())
        return _InMemory(self, self._clock, _NAMED.of(context).setdefault(self._name, _States()))

    def _scope(self, context: Context) -> str | None:
        """What its keys begin with: the same in each process, and that of no other limiter which counts for itself.

        None: one of its name, further out, has counted the message.
        """
        scopes, app, route = self._scopes.of(context), context.app.name, context.route.name
        try:
            return scopes[app, route]
        except KeyError:
            pass
        found: str | None = None
        place = self._place(context)
        if self._name is None:
            found = scope("rate", app, "route", route, *self._rule, self._by, str(place))
        elif not place:
            found = scope("rate", app, "name", self._name, *self._rule)
        return scopes.setdefault((app, route), found)

    def _place(self, context: Context) -> int:
        """How many limiters that are the same by their arguments are around the route, further out."""
        same = [layer for layer in layers_around(context, RateLimit) if layer._is_like(self)]
        return next((place for place, layer in enumerate(same) if layer is self), 0)

    def _is_like(self, other: RateLimit) -> bool:
        return (self._name, self._rule, self._by) == (other._name, other._rule, other._by)

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Let the message through, at once or when it is its turn."""
        # What came through once need not do so again for its second attempt; but whoever waits spares something that
        # each attempt uses.
        if context.attempt == 1 or self.excess == "wait":
            key = self._scope(context)
            if key is None:
                return await next_handler(context)
            if self._find is not None:
                key += fingerprint(self._find(context))
            wait = await self._limiters.of(context).book(key)
            if wait is None:
                raise Drop(self._reason) if self.excess == "drop" else Reject(self._reason)
            if wait > 0:
                await self._sleep(wait)
        return await next_handler(context)

    def __repr__(self) -> str:
        return f"RateLimit({self.limit}, seconds={self.period:g}, excess={self.excess!r})"


class _Limiter(Protocol):
    async def book(self, key: str) -> float | None:
        """Seconds until the message may pass; None: it may not, and nothing was booked."""
        ...


S = TypeVar("S")


class _Keys(OrderedDict[str, S]):
    """States by key, bounded: those that were used last are kept."""

    def put(self, key: str, state: S) -> None:
        self[key] = state
        self.move_to_end(key)
        if len(self) > MOST_KEYS:
            self.popitem(last=False)


class _States:
    """What is remembered in memory, for one limiter or for those of one name."""

    def __init__(self) -> None:
        self.times: _Keys[deque[float]] = _Keys()
        self.full: _Keys[float] = _Keys()


_NAMED: Final[PerRun[dict[str, _States]]] = PerRun(lambda _: {})
"""By the name of the limiters."""
_RULES: Final[WeakKeyDictionary[Router, dict[str, tuple[tuple[str, ...], str, str]]]] = WeakKeyDictionary()
"""By the app's own router: what the limiters of a name have in common, and which one on which route came first."""


class _InMemory:
    def __init__(self, rate: RateLimit, clock: Callable[[], float], states: _States) -> None:
        self._rate = rate
        self._clock = clock
        self._times = states.times
        self._full = states.full
        self._book = self._in_window if rate.strategy == "sliding_window" else self._from_bucket

    async def book(self, key: str) -> float | None:
        return self._book(key, self._clock())

    def _in_window(self, key: str, now: float) -> float | None:
        rate = self._rate
        times = self._times.get(key)
        if times is None:
            _forget(self._times, lambda times: times[-1] + rate.period <= now)
            times = deque(maxlen=rate.limit)
        at = now if len(times) < rate.limit else max(now, times[0] + rate.period)
        if at - now > rate.patience:
            return None
        times.append(at)
        self._times.put(key, times)
        return at - now

    def _from_bucket(self, key: str, now: float) -> float | None:
        rate = self._rate
        full = self._full.get(key)
        if full is None:
            _forget(self._full, lambda full: full <= now)
            full = now
        step = rate.period / rate.limit
        full = max(full, now)
        at = max(now, full - (rate.burst - 1) * step)
        if at - now > rate.patience:
            return None
        self._full.put(key, full + step)
        return at - now


def _forget(states: _Keys[S], over: Callable[[S], bool]) -> None:
    """Forget two of the oldest keys if nothing depends on them: more than the one that is about to come."""
    for key in [key for key, _ in zip(states, range(2), strict=False)]:
        if over(states[key]):
            del states[key]


class _InRedis:
    def __init__(self, rate: RateLimit, redis: Redis) -> None:
        self._script = redis.register_script(_WINDOW_SCRIPT if rate.strategy == "sliding_window" else _BUCKET_SCRIPT)
        self._arguments = [rate.limit, round(rate.period * 1e6), round(rate.patience * 1e6), rate.burst]

    async def book(self, key: str) -> float | None:
        wait = await patient(lambda: self._script(keys=[key], args=self._arguments))
        return None if wait < 0 else wait / 1e6


def _check_choices(excess: str, strategy: str, name: object) -> None:
    require_choice("RateLimit", "excess", excess, ("drop", "reject", "wait"))
    require_choice("RateLimit", "strategy", strategy, ("sliding_window", "token_bucket"))
    require(
        "RateLimit",
        "name",
        name,
        lambda name: name is None or (isinstance(name, str) and name != ""),
        "a text, or None",
    )


def _check_numbers(strategy: str, limit: object, burst: object, max_wait: object) -> None:
    owner, is_window = "RateLimit", strategy == "sliding_window"
    most = LARGEST_WINDOW if is_window else 1_000_000_000
    require(owner, "limit", limit, lambda n: type(n) is int and 1 <= n <= most, f"a whole number, 1 to {most:,}")
    require(
        owner, "max_wait", max_wait, lambda seconds: is_number(seconds, 1e-3, LONGEST_WAIT), "above 0 s and at most 5 s"
    )
    if burst is not None:
        require(owner, "burst", burst, lambda n: type(n) is int and n >= 1, "a whole number from 1 up")
        if is_window:
            raise ConfigurationError(f"{owner}: burst={burst} is for strategy='token_bucket': a window has its limit")
