# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""`Depends`: what may be a dependency, how often it runs, and how it ends."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import pytest

from mqttapi.context import Context
from mqttapi.errors import InvalidPayload
from mqttapi.injection import Depends
from mqttapi.message import Message
from tests.injection.plans import endpoint_of, journey, run


class Service:
    def __init__(self, device_id: str) -> None:
        self.device_id = device_id

    def method(self, device_id: str) -> str:
        return self.device_id + device_id


class Calls:
    """Called `n` times."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> int:
        self.n += 1
        return self.n


class Late:
    async def __call__(self, device_id: str) -> str:
        return device_id


class Lasting:
    def __call__(self, device_id: str) -> Iterator[str]:
        yield device_id


def plain(device_id: str) -> str:
    return device_id


async def late(device_id: str) -> str:
    await asyncio.sleep(0)
    return device_id


def lasting(device_id: str):
    yield device_id


async def late_and_lasting(device_id: str):
    yield device_id


@contextlib.contextmanager
def managed(device_id: str):
    yield device_id


@contextlib.asynccontextmanager
async def late_and_managed(device_id: str):
    yield device_id


@functools.wraps(late)
def wrapped(*args: Any) -> Any:
    return late(*args)


DEPENDENCIES = {
    "function": plain,
    "async function": late,
    "generator": lasting,
    "async generator": late_and_lasting,
    "context manager": managed,
    "async context manager": late_and_managed,
    "callable instance": Late(),
    "callable instance with yield": Lasting(),
    "partial": functools.partial(plain),
    "partial of async": functools.partial(late),
    "partial of generator": functools.partial(lasting),
    "partial with arguments": functools.partial(lambda prefix, device_id: device_id, "x"),
    "partial with names": functools.partial(lambda device_id, suffix: device_id, suffix="x"),
    "wrapper": wrapped,
    "method": Service("").method,
}


@pytest.mark.parametrize("dependency", DEPENDENCIES.values(), ids=DEPENDENCIES.keys())
async def test_what_may_be_a_dependency(dependency) -> None:
    async def handler(value: Annotated[str, Depends(dependency)]):
        return value

    assert await run(handler) == "7"


async def test_a_class_may_be_a_dependency() -> None:
    async def handler(service: Annotated[Service, Depends(Service)], other: Annotated[Service, Depends()]):
        return service.device_id, service is other

    assert await run(handler) == ("7", True)


async def test_dependencies_nest() -> None:
    def double(value: Annotated[str, Depends(late)]) -> str:
        return value * 2

    async def handler(value: Annotated[str, Depends(double)]):
        return value

    assert await run(handler) == "77"


async def test_dependencies_get_what_handlers_get() -> None:
    def everything(message: Message, context: Context, payload: int) -> Any:
        return message.topic, context["device_id"], payload

    async def handler(value: Annotated[Any, Depends(everything)]):
        return value

    assert await run(handler, b"5") == ("sensors/7/data", "7", 5)


async def test_dependencies_of_the_route_run_first_and_in_order() -> None:
    order: list[str] = []

    async def handler(value: Annotated[None, Depends(lambda: order.append("handler's"))]):
        order.append("handler")

    await run(handler, dependencies=[Depends(lambda: order.append("first")), Depends(lambda: order.append("second"))])
    assert order == ["first", "second", "handler's", "handler"]


# --------------------------------------------------------------------------------------------------------------- caching


async def test_a_dependency_runs_once_per_attempt() -> None:
    count = Calls()

    def nested(n: Annotated[int, Depends(count)]) -> int:
        return n

    async def handler(a: Annotated[int, Depends(count)], b: Annotated[int, Depends(nested)]):
        return a, b

    endpoint = endpoint_of(handler, dependencies=[Depends(count)])
    assert [await endpoint(journey()), await endpoint(journey())] == [(1, 1), (2, 2)]


async def test_a_dependency_without_cache_runs_for_each_parameter() -> None:
    count = Calls()

    async def handler(
        a: Annotated[int, Depends(count)],
        b: Annotated[int, Depends(count, use_cache=False)],
        c: Annotated[int, Depends(count, use_cache=False)],
        d: Annotated[int, Depends(count)],
    ):
        return a, b, c, d

    assert await run(handler) == (1, 2, 3, 1)


async def test_a_method_of_one_object_is_one_dependency() -> None:
    calls: list[int] = []

    class Unit:
        def method(self) -> int:
            calls.append(1)
            return 1

    unit = Unit()

    async def handler(a: Annotated[int, Depends(unit.method)], b: Annotated[int, Depends(unit.method)]): ...

    await run(handler)
    assert calls == [1]


async def test_a_dependency_that_cannot_be_hashed_is_accepted() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> int:
            return 1

    async def handler(a: Annotated[int, Depends(Unhashable())]):
        return a

    assert await run(handler) == 1


async def test_what_a_dependency_returns_belongs_to_one_message() -> None:
    async def fresh() -> list[int]:
        await asyncio.sleep(0)
        return []

    async def handler(mine: Annotated[list[int], Depends(fresh)], device_id: int):
        await asyncio.sleep(0)
        mine.append(device_id)
        return mine

    endpoint = endpoint_of(handler)
    contexts = [journey(topic=f"sensors/{n}/data") for n in range(20)]
    assert await asyncio.gather(*(endpoint(context) for context in contexts)) == [[n] for n in range(20)]


# --------------------------------------------------------------------------------------------------------------- threads


async def test_a_plain_dependency_runs_on_the_loop_and_with_thread_in_a_thread() -> None:
    def where() -> int:
        return threading.get_ident()

    async def handler(here: Annotated[int, Depends(where)], there: Annotated[int, Depends(where, thread=True)]):
        return here, there

    here, there = await run(handler)
    assert here == threading.get_ident() != there


async def test_a_generator_with_thread_begins_and_ends_in_threads() -> None:
    seen: list[int] = []

    def lasting():
        seen.append(threading.get_ident())
        yield
        seen.append(threading.get_ident())

    async def handler(it: Annotated[None, Depends(lasting, thread=True)]): ...

    await run(handler)
    assert len(seen) == 2
    assert threading.get_ident() not in seen


VARIABLE: ContextVar[str] = ContextVar("VARIABLE")


async def test_a_thread_sees_the_context_variables() -> None:
    def read() -> str:
        return VARIABLE.get()

    async def handler(it: Annotated[str, Depends(read, thread=True)]):
        return it

    VARIABLE.set("x")
    assert await run(handler) == "x"


# -------------------------------------------------------------------------------------------------------------- clean-up


class Log(list[str]):
    """What happened, in order."""

    def sync(self, name: str, inner: Any = None):
        def dependency(inner: Annotated[Any, Depends(inner or (lambda: None))]):
            self.append(f"+{name}")
            try:
                yield name
            except BaseException as error:
                self.append(f"{name}!{type(error).__name__}")
                raise
            finally:
                self.append(f"-{name}")

        return dependency

    def late(self, name: str, inner: Any = None):
        async def dependency(inner: Annotated[Any, Depends(inner or (lambda: None))]):
            self.append(f"+{name}")
            try:
                yield name
            except BaseException as error:
                self.append(f"{name}!{type(error).__name__}")
                raise
            finally:
                await asyncio.sleep(0)
                self.append(f"-{name}")

        return dependency


def handler_of(log: Log, error: BaseException | None = None, thread: bool = False) -> Any:
    first = log.sync("a")
    second = log.late("b", first)

    async def handler(x: Annotated[Any, Depends(second)], y: Annotated[Any, Depends(log.sync("c"), thread=thread)]):
        log.append("handler")
        if error:
            raise error
        return "result"

    return handler


@pytest.mark.parametrize("thread", [False, True])
async def test_clean_up_comes_after_the_handler_last_one_first(thread) -> None:
    log = Log()
    assert await run(handler_of(log, thread=thread)) == "result"
    assert log == ["+a", "+b", "+c", "handler", "-c", "-b", "-a"]


@pytest.mark.parametrize("thread", [False, True])
async def test_an_exception_of_the_handler_is_raised_at_each_yield(thread) -> None:
    log, error = Log(), ValueError("handler")
    with pytest.raises(ValueError, match="handler") as caught:
        await run(handler_of(log, error, thread=thread))
    assert caught.value is error
    assert log == [
        *("+a", "+b", "+c", "handler"),
        *("c!ValueError", "-c", "b!ValueError", "-b", "a!ValueError", "-a"),
    ]


async def test_a_cancelled_handler_is_cleaned_up_after() -> None:
    log = Log()
    started = asyncio.Event()

    async def handler(x: Annotated[Any, Depends(log.late("a"))]):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(endpoint_of(handler)(journey()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["+a", "a!CancelledError", "-a"]


def swallow():
    with contextlib.suppress(BaseException):
        yield


async def swallow_late():
    with contextlib.suppress(BaseException):
        yield


@pytest.mark.parametrize("marker", [Depends(swallow), Depends(swallow_late), Depends(swallow, thread=True)])
async def test_a_dependency_cannot_swallow_an_exception(marker) -> None:
    log, error = Log(), ValueError("handler")

    async def handler(outer: Annotated[Any, Depends(log.sync("outer"))], it=marker):
        raise error

    with pytest.raises(ValueError, match="handler") as caught:
        await run(handler)
    assert caught.value is error
    assert log == ["+outer", "outer!ValueError", "-outer"]


async def test_a_dependency_may_replace_an_exception() -> None:
    log = Log()

    def translate():
        try:
            yield
        except ValueError as error:
            raise KeyError from error

    async def handler(outer: Annotated[Any, Depends(log.sync("outer"))], it: Annotated[None, Depends(translate)]):
        raise ValueError

    with pytest.raises(KeyError):
        await run(handler)
    assert log == ["+outer", "outer!KeyError", "-outer"]


async def test_a_failing_clean_up_fails_the_attempt_and_the_others_still_run() -> None:
    def fails():
        yield
        raise ValueError("commit")

    log = Log()

    async def handler(outer: Annotated[Any, Depends(log.late("outer"))], it: Annotated[None, Depends(fails)]):
        return "result"

    with pytest.raises(ValueError, match="commit"):
        await run(handler)
    assert log == ["+outer", "outer!ValueError", "-outer"]


async def test_a_dependency_that_fails_ends_the_attempt_and_those_before_it() -> None:
    log = Log()

    def fails() -> None:
        raise ValueError("no database")

    async def handler(outer: Annotated[Any, Depends(log.sync("outer"))], it: Annotated[None, Depends(fails)]):
        log.append("handler")

    with pytest.raises(ValueError, match="no database"):
        await run(handler)
    assert log == ["+outer", "outer!ValueError", "-outer"]


async def test_nothing_runs_for_a_payload_that_does_not_validate() -> None:
    log = Log()

    async def handler(outer: Annotated[Any, Depends(log.sync("outer"))], count: dict[str, int]):
        log.append("handler")

    with pytest.raises(InvalidPayload):
        await run(handler, b"no json")
    assert log == []


async def test_many_dependencies_with_yield_are_possible() -> None:
    log = Log()
    dependencies = [Depends(log.late(str(n)), use_cache=n % 2 == 0) for n in range(60)]

    async def handler(): ...

    await run(handler, dependencies=dependencies)
    assert log == [f"+{n}" for n in range(60)] + [f"-{n}" for n in reversed(range(60))]
