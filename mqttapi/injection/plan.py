"""From a signature to an endpoint: what runs for each message.

A plan is straight-line code, written and compiled once, at start, as `dataclasses` does it with `__init__`. For

    async def ingest(device_id: str, reading: Reading, unit: Annotated[str, Depends(unit_of)]) -> None: ...

it reads (and shows in tracebacks):

    def endpoint(context):
        value_6 = read_5(context)
        unit_of_8 = unit_of_7(context.values_[0])
        return ingest_9(context.values_[0], value_6, unit_of_8)

What can be refused without running anything is read first: no transaction begins for a payload that does not validate.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import math
import re
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from anyio import CapacityLimiter, WouldBlock
from anyio.to_thread import current_default_thread_limiter, run_sync

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, identity
from mqttapi.injection.hints import show
from mqttapi.injection.overrides import override
from mqttapi.injection.params import Depends
from mqttapi.injection.sources import Attribute, Call, Dependency, Read, Resource, Signature, Source
from mqttapi.injection.standstill import standstill

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mqttapi.context import Context

__all__ = ["Endpoint", "compile_plan"]

Endpoint: TypeAlias = "Callable[[Context], Awaitable[Any]]"
"""Runs one attempt for a context: dependencies, handler, clean-up. Gives what the handler returned."""

T = TypeVar("T")


def compile_plan(
    signature: Signature,
    *,
    overrides: Mapping[Any, Any] | None = None,
    resources: Mapping[type[Any], Any] | None = None,
    threads: CapacityLimiter | None = None,
) -> Endpoint:
    """Bind a signature to what it needs.

    An endpoint raises `InvalidPayload` and `InvalidParameter`, and whatever dependencies and handler raise; it may do
    so when it is called, or when what it gave is awaited.

    Args:
        signature: What `analyse` made of the handler; it can be compiled again, with other things.
        overrides: What to use instead of a dependency or of the resource of a type: a function, a class or
            `Depends(...)`; for a type also the thing itself.
        resources: What the app has, by type. `Depends(...)` makes one per attempt; a `yield` cleans it up.
        threads: How many threads the calls of this plan may take; None: they share anyio's with the rest of the loop.

    Raises:
        ConfigurationError: When a resource is missing, or an override does not fit.
    """
    given = {**(resources or {}), **(overrides or {})}
    factories = {kind: value for kind, value in (resources or {}).items() if isinstance(value, Depends)}
    writer = _Writer(signature.handler.name, given, _Threads(threads))
    return writer.endpoint(override(signature, {**factories, **(overrides or {})}))


class _Writer:
    """Writes the code of one plan: names of our own making, and in `_names` what they stand for."""

    def __init__(self, owner: str, given: Mapping[Any, Any], threads: _Threads) -> None:
        self._owner = owner
        self._given = given
        self._names: dict[str, Any] = _HELPERS | {"in_thread": threads.run, "enter_in_thread": threads.enter}
        self._known: dict[object, str] = {}
        self._reads: list[str] = []
        self._steps: list[str] = []
        self._is_async = False
        self._has_exits = False

    def endpoint(self, signature: Signature) -> Endpoint:
        for dependency in signature.dependencies:
            self._value(dependency)
        call = self._call(signature.handler)
        steps = [*self._steps, f"return await {call}" if self._is_async else f"return {call}"]
        if self._has_exits:
            steps = ["async with AsyncExitStack() as stack:", *(f"    {step}" for step in steps)]
        head = "async def endpoint(context):" if self._is_async else "def endpoint(context):"
        code = "\n".join([head, *(f"    {line}" for line in (*self._reads, *steps)), ""])
        return _run(code, self._names, f"<plan of {signature.handler.name} for {signature.template.text}>")

    def _call(self, call: Call) -> str:
        arguments = [
            f"{parameter.name}={self._value(source)}" if parameter.keyword else self._value(source)
            for parameter, source in call.arguments
        ]
        function = self._name(call.name, call.function)
        if call.in_thread and not call.is_context:
            return f"in_thread({', '.join(('context', function, *arguments))})"
        return f"{function}({', '.join(arguments)})"

    def _value(self, source: Source) -> str:
        """An expression for what an argument is given, after the lines that make it."""
        match source:
            case Attribute():
                return source.code
            case Resource():
                return self._resource(source)
            case Read():
                return self._once(source if source.key is None else source.key, lambda: self._read(source))
            case Dependency() if source.use_cache:
                call = source.call
                return self._once((identity(call.original), call.in_thread), lambda: self._dependency(call))
            case Dependency():
                return self._dependency(source.call)

    def _once(self, key: object, write: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = write()
        return self._known[key]

    def _read(self, source: Read) -> str:
        function, value = self._name("read", source.function), self._name("value")
        self._reads.append(f"{value} = {function}({source.code})")
        return value

    def _resource(self, source: Resource) -> str:
        if source.type in self._given:
            return self._name(source.type.__name__, self._given[source.type])
        if source.optional:
            return "None"
        raise ConfigurationError(f"{self._owner} needs a {show(source.type)}, and the app has opened none.")

    def _dependency(self, call: Call) -> str:
        code, value = self._call(call), self._name(call.name)
        awaits = call.is_async or call.in_thread
        if call.is_context:
            enter = "enter_async(" if call.is_async else "enter("
            code = f"{'enter_in_thread(context, ' if call.in_thread else enter}stack, {code})"
        self._is_async |= awaits or call.is_context
        self._has_exits |= call.is_context
        self._steps.append(f"{value} = await {code}" if awaits else f"{value} = {code}")
        return value

    def _name(self, label: str, thing: Any = None) -> str:
        name = f"{re.sub('[^a-zA-Z_]', '', label) or 'it'}_{len(self._names)}"
        self._names[name] = thing
        return name


def _run(code: str, names: dict[str, Any], filename: str) -> Endpoint:
    # Holds nothing from outside: names of functions are reduced to ASCII letters, and made unique by a number.
    exec(compile(code, filename, "exec"), names)  # noqa: S102
    linecache.cache[filename] = len(code), None, code.splitlines(keepends=True), filename
    endpoint: Endpoint = names["endpoint"]
    return endpoint


# ------------------------------------------------------------------------------------------------- what plans call upon


class _Threads:
    """Runs calls in threads, of which a route may have as many as `limit` says."""

    def __init__(self, limit: CapacityLimiter | None) -> None:
        self._limit = limit
        self._unlimited = CapacityLimiter(math.inf)

    async def run(self, context: object, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        turn = [None]  # taken out by the thread as it begins, or by a cancellation that comes before
        running = True

        def call() -> T:
            nonlocal running
            turn.pop()
            try:
                return function(*args, **kwargs)
            finally:
                running = False

        limit, token = self._limit or current_default_thread_limiter(), object()
        if not _took(limit, token):
            await _wait_for_thread(context, limit, token)
        try:
            result = await run_sync(call, limiter=self._unlimited)
        except asyncio.CancelledError as error:
            try:
                turn.pop()
            except IndexError:
                error.thread_runs_on = running  # type: ignore[attr-defined]  # so that nobody runs it again beside it
            raise
        finally:
            limit.release_on_behalf_of(token)
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError(f"{called(function)} is a plain 'def' but returned a coroutine: make it an 'async def'")
        return result

    async def enter(self, context: object, stack: AsyncExitStack, manager: AbstractContextManager[T]) -> T:
        value = await self.run(context, manager.__enter__)

        async def leave(*error: Any) -> None:
            await self.run(context, manager.__exit__, *error)

        stack.push_async_exit(leave)
        return value


def _took(limit: CapacityLimiter, token: object) -> bool:
    try:
        limit.acquire_on_behalf_of_nowait(token)
    except WouldBlock:
        return False
    return True


async def _wait_for_thread(context: Any, limit: CapacityLimiter, token: object) -> None:
    async with standstill(context, held=True):
        try:
            await limit.acquire_on_behalf_of(token)
        except asyncio.CancelledError as error:
            error.waited_for = f"waited too long for a thread: all {limit.total_tokens:g} are taken"  # type: ignore[attr-defined]
            raise


# What `leave` gives back is None on purpose: an exception goes on even where a generator swallowed it.


def _enter(stack: AsyncExitStack, manager: AbstractContextManager[T]) -> T:
    value = manager.__enter__()

    def leave(*error: Any) -> None:
        manager.__exit__(*error)

    stack.push(leave)
    return value


async def _enter_async(stack: AsyncExitStack, manager: AbstractAsyncContextManager[T]) -> T:
    value = await manager.__aenter__()

    async def leave(*error: Any) -> None:
        await manager.__aexit__(*error)

    stack.push_async_exit(leave)
    return value


_HELPERS: Final = {
    "AsyncExitStack": AsyncExitStack,
    "enter": _enter,
    "enter_async": _enter_async,
}
