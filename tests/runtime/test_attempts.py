"""How often a handler runs, when, and with what it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mqttapi import (
    App,
    ConfigurationError,
    Context,
    Depends,
    Drop,
    HandlerStuck,
    InvalidPayload,
    Publish,
    Reject,
    Retry,
    RetryLater,
)
from mqttapi.config import Settings
from mqttapi.errors import PublishQueueFull
from mqttapi.message import Message
from mqttapi.runtime.dead_letters import DeadLetters
from mqttapi.runtime.outcome import Outcome
from mqttapi.runtime.runs import Run
from mqttapi.runtime.spool import Letter, Spool
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

RETRIES = Retry(attempts=3, delay=0, jitter=False)


class Reading(BaseModel):
    number: int


def failing(
    times: int, error: BaseException | type[BaseException] = ValueError, **options: Any
) -> tuple[App, list[int]]:
    """An app whose handler raises the first `times` times, and the attempts that it has seen."""
    app = App("t")
    attempts: list[int] = []

    @app.topic("t", name="r", **options)
    async def handler(context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) <= times:
            raise error

    return app, attempts


async def outcome(app: App, payload: Any = b"{}") -> str:
    async with TestClient(app, raise_exceptions=False) as client:
        delivery = await client.publish("t", payload)
        return f"{delivery.outcome}: {delivery.reason}" if delivery.reason else delivery.outcome


@pytest.mark.parametrize(
    ("times", "attempts", "end"),
    [(0, [1], "done"), (2, [1, 2, 3], "done"), (3, [1, 2, 3], "failed: raised ValueError")],
)
async def test_a_handler_runs_again_until_it_returns_or_attempts_run_out(
    times: int, attempts: list[int], end: str
) -> None:
    app, seen = failing(times, retry=RETRIES)
    assert await outcome(app) == end
    assert seen == attempts


async def test_without_retry_it_runs_once() -> None:
    app, seen = failing(1)
    assert await outcome(app) == "failed: raised ValueError"
    assert seen == [1]


async def test_a_number_is_that_of_the_attempts() -> None:
    app, seen = failing(9, retry=4)
    await outcome(app)
    assert seen == [1, 2, 3, 4]


async def test_a_circle_of_causes_fails_like_any_other_error() -> None:
    """`raise error from error`: nothing may walk round it for ever."""
    own = ValueError("its own cause")
    own.__cause__ = own
    assert await outcome(failing(9, own)[0]) == "failed: raised ValueError"

    one, two, three = ValueError("one"), KeyError("two"), OSError("three")
    one.__cause__, two.__context__, three.__cause__ = two, three, two  # and `one` is not on the circle
    app, seen = failing(9, one, retry=RETRIES)
    assert await outcome(app) == "failed: raised ValueError"
    assert seen == [1, 2, 3]


async def test_what_is_not_named_is_not_retried() -> None:
    app, seen = failing(9, KeyError("x"), retry=dataclasses.replace(RETRIES, on=(ValueError, OSError)))
    await outcome(app)
    assert seen == [1]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (Drop("enough"), "dropped: enough"),
        (Reject("wrong"), "rejected: wrong"),
        (Reject(5), "rejected: 5"),  # type: ignore[arg-type]  # any object will do
        (Drop(ValueError("x")), "dropped: x"),  # type: ignore[arg-type]
        (InvalidPayload("bad"), "rejected: bad"),
        (asyncio.CancelledError(), "failed: was cancelled, though not by mqttapi"),
    ],
)
async def test_what_steers_or_rejects_is_never_retried(error: BaseException, end: str) -> None:
    app, seen = failing(9, error, retry=RETRIES)
    assert await outcome(app) == end
    assert seen == [1]


async def test_a_payload_that_does_not_validate_is_never_retried() -> None:
    app = App("t", retry=RETRIES)
    tries: list[str] = []

    async def counted(context: Context, call_next: Any) -> Any:
        tries.append("x")
        return await call_next(context)

    @app.topic("t", middleware=[counted])
    async def handler(reading: Reading) -> None: ...

    assert (await outcome(app, b"[]")).startswith("rejected: ")
    assert len(tries) == 1


@pytest.mark.parametrize("around", [False, True])
async def test_route_middleware_and_dependencies_run_again_and_what_is_outside_sees_one_outcome(around: bool) -> None:
    seen: list[str] = []

    def noting(name: str) -> Any:
        async def middleware(context: Context, call_next: Any) -> Any:
            seen.append(name)
            try:
                return await call_next(context)
            except ValueError:
                seen.append(f"{name} sees ValueError")
                raise

        return middleware

    async def dependency() -> None:
        seen.append("dependency")

    app = App("t", middleware=[noting("app")] if around else [])

    @app.topic("t", retry=RETRIES, middleware=[noting("route")], dependencies=[Depends(dependency)])
    async def handler(context: Context) -> None:
        seen.append("handler")
        if context.attempt < 3:
            raise ValueError

    assert await outcome(app) == "done"
    once = ["route", "dependency", "handler"]
    failed = [*once, "route sees ValueError"]
    assert seen == ["app"] * around + failed + failed + once


async def test_what_middleware_outside_of_the_attempts_raises_is_not_retried() -> None:
    calls: list[str] = []

    async def broken(context: Context, call_next: Any) -> Any:
        calls.append("x")
        raise ValueError

    app = App("t", middleware=[broken], retry=RETRIES)

    @app.topic("t")
    async def handler() -> None: ...

    assert await outcome(app) == "failed: raised ValueError"
    assert len(calls) == 1


# -- RetryLater


@pytest.mark.parametrize("around", [False, True])
async def test_retry_later_runs_it_again_whatever_retry_says(around: bool) -> None:
    async def passing(context: Context, call_next: Any) -> Any:
        return await call_next(context)

    app, seen = failing(4, RetryLater(1), middleware=[])
    if around:
        app.add_middleware(passing)
    assert await outcome(app) == "done"
    assert seen == [1, 2, 3, 4, 5]


async def test_retry_later_does_not_use_up_the_attempts_of_retry() -> None:
    raised = iter([RetryLater(0), ValueError(), RetryLater(0), ValueError(), ValueError()])
    app = App("t")
    seen: list[int] = []

    @app.topic("t", retry=RETRIES)
    async def handler(context: Context) -> None:
        seen.append(context.attempt)
        raise next(raised)

    assert await outcome(app) == "failed: raised ValueError"
    assert seen == [1, 2, 3, 4, 5]


async def test_a_message_that_wants_to_run_again_at_once_does_not_take_a_core() -> None:
    app, seen = failing(10**6, RetryLater(0))
    app.settings = Settings(max_hold=1)
    assert (await outcome(app)).startswith("failed")
    assert len(seen) <= 101  # 10 ms each


async def test_a_message_is_held_for_max_hold_at_most() -> None:
    app, seen = failing(99, RetryLater(25, "busy"))
    app.settings = Settings(max_hold=60)
    async with TestClient(app, raise_exceptions=False) as client:
        delivery = await client.publish("t")
    error = delivery.outcomes["r"].error
    assert str(error) == "RetryLater(25) would hold the message for 75 s, longer than max_hold (60 s): busy"
    assert isinstance(error, TimeoutError)
    assert len(seen) == 3


async def test_pauses_of_retry_count_against_max_hold_too() -> None:
    app, seen = failing(99, retry=Retry(attempts=50, delay=20, factor=1, max_delay=20, jitter=False))
    app.settings = Settings(max_hold=60)
    assert await outcome(app) == "failed: raised ValueError"
    assert len(seen) == 3


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", None, True])
def test_a_bad_number_of_seconds_is_an_error(seconds: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryLater(seconds)
    assert str(caught.value) == f"RetryLater({seconds!r}): seconds must be a number from 0 up"


# -- time-outs


@pytest.mark.parametrize("around", [False, True])
async def test_the_time_out_is_that_of_one_attempt_and_is_retried(around: bool) -> None:
    """Middleware outside sees a TimeoutError, once."""
    seen: list[str] = []

    async def noting(context: Context, call_next: Any) -> Any:
        try:
            return await call_next(context)
        except TimeoutError as error:
            seen.append(str(error))
            raise

    app = App("t", middleware=[noting] if around else [])
    attempts: list[int] = []

    @app.topic("t", retry=dataclasses.replace(RETRIES, on=TimeoutError), timeout=0.05)
    async def handler(context: Context) -> None:
        attempts.append(context.attempt)
        await asyncio.Event().wait()

    assert await outcome(app) == "failed: raised HandlerTimeout"
    assert attempts == [1, 2, 3]
    assert seen == ["took longer than 0.05 s"] * around


async def test_a_second_attempt_may_succeed_after_one_that_took_too_long() -> None:
    app = App("t", retry=RETRIES, timeout=0.05)

    @app.topic("t")
    async def handler(context: Context) -> None:
        if context.attempt == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    async with TestClient(app) as client:
        for _ in range(3):  # whatever the first one left behind in the task would cancel the next one
            assert (await client.publish("t")).outcome == "done"


async def test_without_a_time_out_max_hold_is_the_limit() -> None:
    app = App("t", timeout=None, settings=Settings(max_hold=0.1))

    @app.topic("t")
    async def handler() -> None:
        await asyncio.Event().wait()

    assert await outcome(app) == "failed: raised HandlerTimeout"


async def test_a_time_out_of_the_handlers_own_is_an_ordinary_failure() -> None:
    app = App("t", retry=2)
    attempts: list[int] = []

    @app.topic("t")
    async def handler(context: Context) -> None:
        attempts.append(context.attempt)
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    assert await outcome(app) == "failed: raised TimeoutError"
    assert attempts == [1, 2]


async def test_a_plain_function_that_takes_too_long_is_not_run_again_beside_its_thread() -> None:
    """Its message has no outcome, what is behind it in its lane does not run, and the process has to end."""
    gate = threading.Event()
    calls: list[str] = []
    app = App("t", retry=RETRIES, timeout=0.05)

    @app.topic("t/<n>", ordered_by=None, name="r")
    def handler(n: str) -> None:
        calls.append(n)
        gate.wait()

    async with TestClient(app) as client:
        try:
            with pytest.raises(
                HandlerStuck, match=r"^r \(test_attempts.py:\d+\) took longer than 0.05 s on t/1, in a thread"
            ):
                await client.publish("t/1")
            assert calls == ["1"]
            assert app.stats.stuck_threads == 1
            assert app.stats.routes["r"].failed == 0
        finally:
            gate.set()


@pytest.fixture
async def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the clock of the loop jump, by seconds."""
    loop, jumped = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + jumped)

    def jump(seconds: float) -> None:
        nonlocal jumped
        jumped += seconds

    return jump


@pytest.fixture
async def thread() -> AsyncIterator[CapacityLimiter]:
    """The only one that handlers share; it is taken."""
    limiter = current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    limiter.acquire_on_behalf_of_nowait(limiter)
    yield limiter
    limiter.total_tokens = before


def plain(**options: Any) -> App:
    app = App("t")

    @app.topic("t", name="r", timeout=30, **options)
    def handler() -> None: ...

    return app


async def test_the_time_out_does_not_run_while_the_call_waits_for_a_thread(
    later: Callable[[float], None], thread: CapacityLimiter
) -> None:
    async with TestClient(plain()) as client:
        publish = asyncio.create_task(client.publish("t"))
        await waits_for(thread)
        later(40)
        look(client)
        thread.release_on_behalf_of(thread)
        assert (await publish).outcome == "done"


async def test_max_hold_limits_the_wait_for_a_thread(later: Callable[[float], None], thread: CapacityLimiter) -> None:
    """And the failure says so: the handler has not run."""
    async with TestClient(plain(), raise_exceptions=False) as client:
        publish = asyncio.create_task(client.publish("t"))
        await waits_for(thread)
        later(61)
        look(client)
        error = (await publish).outcomes["r"].error
        assert isinstance(error, TimeoutError)
        assert str(error) == "waited too long for a thread: all 1 are taken"


@pytest.mark.usefixtures("thread")
async def test_an_isolated_route_has_threads_of_its_own() -> None:
    assert await outcome(plain(isolate=True)) == "done"


@pytest.mark.usefixtures("thread")
async def test_the_spool_waits_for_no_thread_of_handlers(tmp_path: Path) -> None:
    letters = DeadLetters(cast("Any", None), lambda: Spool(tmp_path, 1 << 20))
    letter = Letter(time="", to="d", why="", topic="t", payload=b"", qos=1, route="r", error="", reason="", attempts=1)
    assert await letters._kept(letter, "nobody has subscribed to it")


class Full:
    """A publisher that never has room."""

    has_properties = True

    async def send(self, publish: Publish, *, reserved: bool) -> None:
        raise PublishQueueFull("no room")


async def test_a_dead_letter_that_the_publisher_never_has_room_for_goes_to_the_disk(tmp_path: Path) -> None:
    letters = DeadLetters(cast("Any", Full()), lambda: Spool(tmp_path, 1 << 20), max_bytes=100)
    letter = Letter(
        time="", to="d", why="", topic="t", payload=b"x" * 200, qos=1, route="r", error="", reason="", attempts=1
    )
    assert await letters._sent(letter) == "no room"


async def waits_for(thread: CapacityLimiter) -> None:
    while not thread.statistics().tasks_waiting:
        await asyncio.sleep(0)


def look(client: TestClient) -> None:
    """At the deadlines, in time: the loop has turned meanwhile."""
    assert client._service is not None
    workers = client._service.workers
    workers._sweep_due = asyncio.get_running_loop().time()
    workers._look_at_deadlines()


async def test_middleware_around_the_attempts_is_limited_by_max_hold_after_a_retry(
    later: Callable[[float], None],
) -> None:
    hangs = asyncio.Event()

    async def middleware(context: Context, call_next: Any) -> Any:
        await call_next(context)
        hangs.set()
        await asyncio.Event().wait()

    app, seen = failing(1, retry=RETRIES)
    app.add_middleware(middleware)
    async with TestClient(app, raise_exceptions=False) as client:
        publish = asyncio.create_task(client.publish("t"))
        await hangs.wait()
        later(61)
        look(client)
        assert (await publish).outcome == "failed"
    assert seen == [1, 2]


# -- the value


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"attempts": 0}, "Retry(attempts=0): attempts must be a whole number from 1 to 100"),
        ({"attempts": True}, "Retry(attempts=True): attempts must be a whole number from 1 to 100"),
        ({"attempts": 1.5}, "Retry(attempts=1.5): attempts must be a whole number from 1 to 100"),
        ({"delay": -1}, "Retry(delay=-1): delay must be a number of seconds from 0 to 86,400"),
        ({"delay": float("nan")}, "Retry(delay=nan): delay must be a number of seconds from 0 to 86,400"),
        ({"factor": 0.5}, "Retry(factor=0.5): factor must be a number from 1 to 100"),
        ({"max_delay": "1"}, "Retry(max_delay='1'): max_delay must be a number of seconds from 0 to 86,400"),
        ({"jitter": 1}, "Retry(jitter=1): jitter must be True or False"),
        ({"on": 3}, "Retry(on=3): on must be a class of exceptions or a tuple of them, got 3"),
        (
            {"on": (ValueError, BaseException)},
            (
                "Retry(on=(<class 'ValueError'>, <class 'BaseException'>)): on must be a class of exceptions or a tuple "
                "of them, got <class 'BaseException'>"
            ),
        ),
        (
            {"on": InvalidPayload},
            "Retry(on=InvalidPayload): InvalidPayload has a meaning of its own and is never retried on. Leave it out",
        ),
    ],
)
def test_a_wrong_retry_is_named_with_its_rule(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(**arguments)
    assert str(caught.value) == text


@given(
    st.builds(
        Retry,
        attempts=st.integers(1, 100),
        delay=st.floats(0, 100),
        factor=st.floats(1, 100),
        max_delay=st.floats(0, 100),
        jitter=st.booleans(),
    )
)
def test_pauses_grow_to_the_longest_one_and_jitter_takes_half_of_one_at_most(retry: Retry) -> None:
    for attempts in range(1, retry.attempts):
        whole = min(retry.max_delay, retry.delay * retry.factor ** (attempts - 1))
        assert whole / 2 * retry.jitter <= retry.pause(attempts) <= whole
        assert retry.jitter or retry.pause(attempts) == whole


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Retry().attempts = 4  # type: ignore[misc]


# -- memory


class Forgetful:
    """An origin that keeps nothing."""

    def ended(self, run: Run, outcome: Outcome) -> None: ...


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("retry", [None, RETRIES])
async def test_a_failed_message_does_not_wait_for_the_garbage_collector(retry: Retry | None, around: bool) -> None:
    """An exception knows the frames it went through: where one of them knows the exception, payloads would pile up."""

    async def passing(context: Context, call_next: Any) -> Any:
        return await call_next(context)

    app, _ = failing(99, retry=retry)
    if around:
        app.add_middleware(passing)
    async with TestClient(app) as client:
        service = client._service
        assert service is not None
        logging.disable()  # records hold exceptions too
        gc.collect()
        gc.disable()
        before = _runs()
        try:
            for _ in range(5):
                (target,) = service.dispatcher.targets("t")
                service.workers.submit(Run(Message("t"), target, app, Forgetful(), None))
                service.workers.wake()
                await service.workers.drain()
            assert _runs() - before <= 1  # the worker knows the last one
        finally:
            gc.enable()
            logging.disable(logging.NOTSET)


def _runs() -> int:
    return sum(isinstance(each, Run) for each in gc.get_objects())
