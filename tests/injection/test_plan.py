# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""What a plan is made of, and what it can be given at start."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from mqttapi.errors import ConfigurationError
from mqttapi.injection import Depends, analyse, compile_plan
from mqttapi.topics import TopicTemplate
from tests.injection.plans import TEMPLATE, endpoint_of, journey, refusal, run


class Reading(BaseModel):
    temperature: float


class Alarm(BaseModel):
    level: int


class Store: ...


JSON = b'{"temperature": 1}'


def unit(device_id: str) -> str:
    return f"unit-{device_id}"


async def ask(device_id: str) -> str:
    return device_id


# -------------------------------------------------------------------------------------------------------------- endpoint


async def test_an_endpoint_returns_the_handlers_own_coroutine() -> None:
    async def handler(device_id: str, reading: Reading, unit: Annotated[str, Depends(unit)]):
        return device_id, reading, unit

    coroutine: Any = endpoint_of(handler)(journey(JSON))
    assert coroutine.cr_code is handler.__code__
    assert await coroutine == ("7", Reading(temperature=1), "unit-7")


def test_only_what_has_to_wait_makes_the_endpoint_a_coroutine_function() -> None:
    async def handler(device_id: str, unit: Annotated[str, Depends(unit)]): ...

    async def waits(it: Annotated[str, Depends(ask)]): ...

    assert [inspect.iscoroutinefunction(endpoint_of(h)) for h in (handler, waits)] == [False, True]


async def test_a_plain_handler_runs_in_a_thread_with_the_context_variables() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("x")

    def handler(device_id: str, *, reading: Reading):
        return device_id, reading.temperature, variable.get(), threading.get_ident()

    *values, thread = await run(handler, JSON)
    assert values == ["7", 1.0, "x"]
    assert thread != threading.get_ident()


async def test_plain_handlers_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def handler():
        return barrier.wait()

    endpoint = endpoint_of(handler)
    assert sorted(await asyncio.gather(*(endpoint(journey()) for _ in range(3)))) == [0, 1, 2]


async def test_a_plain_handler_that_returns_a_coroutine_is_told_to_be_async() -> None:
    def handler(device_id: str):
        return ask(device_id)

    with pytest.raises(TypeError, match="a plain 'def' but returned a coroutine: make it an 'async def'"):
        await run(handler)


def test_a_signature_knows_whether_its_handler_runs_in_a_thread() -> None:
    def plain(): ...

    async def late(): ...

    template = TopicTemplate("a")
    assert [analyse(handler, template=template).in_thread for handler in (plain, late)] == [True, False]


async def test_a_traceback_shows_the_line_of_the_plan() -> None:
    def fails() -> None:
        raise ValueError

    async def handler(it: Annotated[None, Depends(fails)]): ...

    with pytest.raises(ValueError) as caught:
        await run(handler)
    assert "<plan of handler() for sensors/<device_id>/data>" in "".join(traceback.format_exception(caught.value))
    assert any(line.startswith("fails_") for line in (frame.line or "" for frame in traceback.extract_tb(caught.tb)))


async def test_names_that_are_no_ascii_identifiers_do_no_harm() -> None:
    names: dict[str, Any] = {}
    exec("async def größe(*, länge: dict): return länge", names)
    handler = names["größe"]
    handler.__qualname__ = "x(): import os; y"
    assert await run(handler, b'{"a": 1}') == {"a": 1}


async def test_a_signature_can_be_compiled_more_than_once() -> None:
    async def handler(unit: Annotated[str, Depends(unit)], store: Store):
        return unit, store

    signature = analyse(handler, template=TopicTemplate(TEMPLATE), resources=[Store])
    first, second = Store(), Store()
    one = compile_plan(signature, resources={Store: first}, overrides={unit: lambda: "other"})
    two = compile_plan(signature, resources={Store: second})
    assert [await one(journey()), await two(journey())] == [("other", first), ("unit-7", second)]


# ------------------------------------------------------------------------------------------------------------- resources


def test_a_resource_that_was_not_opened_is_named() -> None:
    async def handler(store: Store): ...

    signature = analyse(handler, template=TopicTemplate("a"), resources=[Store])
    with pytest.raises(ConfigurationError) as caught:
        compile_plan(signature)
    assert str(caught.value) == "handler() needs a Store, and the app has opened none."


async def test_a_resource_that_was_not_opened_is_none_where_the_hint_allows_it() -> None:
    async def handler(store: Store | None):
        return store

    signature = analyse(handler, template=TopicTemplate(TEMPLATE), resources=[Store])
    assert await compile_plan(signature)(journey()) is None


async def test_a_resource_may_be_made_per_attempt() -> None:
    log: list[str] = []

    async def open_store(device_id: str):
        log.append(f"open {device_id}")
        yield Store()
        log.append("close")

    def user(store: Store) -> Store:
        return store

    async def handler(store: Store, same: Annotated[Store, Depends(user)]):
        log.append("handler")
        return store is same

    assert await run(handler, resources={Store: Depends(open_store)}) is True
    assert log == ["open 7", "handler", "close"]


# ------------------------------------------------------------------------------------------------------------- overrides


async def test_an_override_replaces_a_dependency_wherever_it_is() -> None:
    def nested(unit: Annotated[str, Depends(unit)]) -> str:
        return unit

    async def handler(a: Annotated[str, Depends(unit)], b: Annotated[str, Depends(nested)]):
        return a, b

    assert await run(handler, overrides={unit: lambda: "fake"}) == ("fake", "fake")


async def test_an_override_has_parameters_of_its_own() -> None:
    async def fake(device_id: int, reading: Reading):
        yield f"fake-{device_id + 1}"

    async def handler(a: Annotated[str, Depends(unit)], reading: Reading):
        return a

    assert await run(handler, JSON, overrides={unit: fake}) == "fake-8"


async def test_an_override_shares_what_the_plan_has_already() -> None:
    calls: list[int] = []

    def shared() -> int:
        calls.append(1)
        return 1

    def fake(shared: Annotated[int, Depends(shared)]) -> int:
        return shared

    async def handler(a: Annotated[int, Depends(shared)], b: Annotated[int, Depends(unit)]): ...

    await run(handler, overrides={unit: fake})
    assert calls == [1]


async def test_an_override_may_be_a_marker() -> None:
    def fake() -> int:
        return threading.get_ident()

    async def handler(a: Annotated[int, Depends(unit)]):
        return a

    assert await run(handler, overrides={unit: Depends(fake, thread=True)}) != threading.get_ident()


async def test_a_resource_is_overridden_by_an_instance_a_function_or_a_class() -> None:
    class Fake(Store): ...

    fake = Fake()

    async def handler(store: Store):
        return store

    assert await run(handler, resources={Store: Store()}, overrides={Store: fake}) is fake
    assert await run(handler, resources={Store: Store()}, overrides={Store: lambda: fake}) is fake
    assert type(await run(handler, resources={Store: Store()}, overrides={Store: Fake})) is Fake


async def test_an_overridden_resource_need_not_be_open() -> None:
    async def handler(store: Store):
        return store

    signature = analyse(handler, template=TopicTemplate(TEMPLATE), resources=[Store])
    fake = Store()
    assert await compile_plan(signature, overrides={Store: fake})(journey()) is fake


async def test_an_override_needs_no_hint_that_is_gone_from_the_handler() -> None:
    def registered():
        class Local(BaseModel):
            x: int

        async def handler(local: Local, unit: Annotated[str, Depends(unit)]):
            return local.x, unit

        return analyse(handler, template=TopicTemplate(TEMPLATE))

    endpoint = compile_plan(registered(), overrides={unit: lambda: "fake"})
    assert await endpoint(journey(b'{"x": 1}')) == (1, "fake")


def overridden(overrides: dict[Any, Any]) -> str:
    async def handler(reading: Reading, unit: Annotated[str, Depends(unit)]): ...

    with pytest.raises(ConfigurationError) as caught:
        endpoint_of(handler, overrides=overrides)
    return str(caught.value)


def test_an_override_that_cannot_be_called_is_refused() -> None:
    assert overridden({unit: 5}) == "the override of unit(): Depends(5) cannot be called. Give a function or a class."
    assert overridden({unit: None}) == "the override of unit() is None. Give a function or a class."


def test_an_override_that_needs_what_it_replaces_is_refused() -> None:
    def fake(unit: Annotated[str, Depends(unit)]) -> str:
        return unit

    assert overridden({unit: fake}) == (
        "dependency cycle: handler() → fake() → fake(). An override must not need what it replaces."
    )


def test_an_override_with_another_payload_is_refused() -> None:
    def fake(alarm: Alarm) -> str: ...  # type: ignore[empty-body]

    assert "are two different payloads" in overridden({unit: fake})


def test_an_override_with_an_unknown_parameter_is_refused() -> None:
    assert overridden({unit: lambda typo: typo}).startswith("<lambda>() for handler(): 'typo' is neither in ")


def test_registration_does_not_look_at_resources_beyond_their_types() -> None:
    async def handler(store: Store): ...

    analyse(handler, template=TopicTemplate("a"), resources={Store: None})
    assert "'store'" in refusal(handler)
