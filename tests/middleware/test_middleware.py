# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi.errors import ConfigurationError
from mqttapi.middleware import as_middleware, compose
from tests.injection.plans import journey

if TYPE_CHECKING:
    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint, MiddlewareFunction

FORM = "Middleware is 'async def mw(context, call_next)', or an object with 'async def handle(self, context, next_handler)'."


def noting(log: list[str], name: str) -> MiddlewareFunction:
    async def mw(context: Context, call_next: Endpoint) -> Any:
        log.append(f"+{name}")
        try:
            return await call_next(context)
        finally:
            log.append(f"-{name}")

    return mw


async def pass_on(context: Context, call_next: Endpoint) -> Any:
    return await call_next(context)


async def answer(context: Context) -> Any:
    return 42


# --------------------------------------------------------------------------------------------------------------- compose


async def test_the_first_middleware_is_outermost() -> None:
    log: list[str] = []

    async def endpoint(context: Context) -> None:
        log.append("handler")

    await compose([noting(log, "a"), noting(log, "b")], endpoint)(journey())
    assert log == ["+a", "+b", "handler", "-b", "-a"]


def test_without_middleware_the_endpoint_is_all() -> None:
    assert compose([], answer) is answer


async def test_the_result_goes_out_through_all() -> None:
    assert await compose([pass_on] * 3, answer)(journey()) == 42


async def test_a_middleware_may_change_the_result() -> None:
    async def double(context: Context, call_next: Endpoint) -> Any:
        return 2 * await call_next(context)

    assert await compose([double], answer)(journey()) == 84


async def test_a_middleware_may_stop() -> None:
    async def stop(context: Context, call_next: Endpoint) -> Any:
        return "stopped"

    async def endpoint(context: Context) -> None:
        pytest.fail("called")

    assert await compose([pass_on, stop], endpoint)(journey()) == "stopped"


async def test_a_middleware_may_run_everything_inside_twice() -> None:
    log: list[str] = []

    async def twice(context: Context, call_next: Endpoint) -> Any:
        return [await call_next(context), await call_next(context)]

    assert await compose([twice, noting(log, "a")], answer)(journey()) == [42, 42]
    assert log == ["+a", "-a", "+a", "-a"]


async def test_an_exception_passes_through_every_middleware() -> None:
    log: list[str] = []

    async def fails(context: Context) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await compose([noting(log, "a"), noting(log, "b")], fails)(journey())
    assert log == ["+a", "+b", "-b", "-a"]


async def test_every_middleware_sees_the_same_context() -> None:
    seen: list[Context] = []

    async def look(context: Context, call_next: Endpoint) -> Any:
        seen.append(context)
        return await call_next(context)

    context = journey()
    await compose([look, look], answer)(context)
    assert seen == [context, context]


def test_a_composed_chain_makes_no_coroutine_of_its_own() -> None:
    coroutine: Any = compose([pass_on], answer)(journey())
    assert coroutine.cr_code is pass_on.__code__
    coroutine.close()


# --------------------------------------------------------------------------------------------------------- as_middleware


class Handles:
    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        return await next_handler(context)


class Called:
    async def __call__(self, context: Context, call_next: Endpoint) -> Any:
        return await call_next(context)


async def with_option(context: Context, call_next: Endpoint, option: int = 1) -> Any:
    return await call_next(context)


@functools.wraps(pass_on)
def wrapped(*args: Any) -> Any:
    return pass_on(*args)


@pytest.mark.parametrize(
    "middleware",
    [pass_on, Handles(), Called(), Handles().handle, with_option, functools.partial(with_option, option=2), wrapped],
)
async def test_what_may_be_middleware(middleware) -> None:
    assert await compose([as_middleware(middleware)], answer)(journey()) == 42


def test_a_function_stays_as_it_is() -> None:
    assert as_middleware(pass_on) is pass_on


def refusal(middleware: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        as_middleware(middleware)
    return str(caught.value)


def test_a_synchronous_function_is_refused() -> None:
    def mw(context, call_next): ...

    assert refusal(mw) == f"mw() is not an 'async def' that returns. {FORM}"


def test_a_generator_is_refused() -> None:
    async def mw(context, call_next):
        yield

    assert refusal(mw) == f"mw() is not an 'async def' that returns. {FORM}"


def test_a_synchronous_handle_is_refused() -> None:
    class Old:
        def handle(self, context, next_handler): ...

    assert refusal(Old()) == f"Old.handle() is not an 'async def' that returns. {FORM}"


@pytest.mark.parametrize("parameters", ["", "context", "context, call_next, more", "context, *, call_next"])
def test_a_wrong_number_of_parameters_is_refused(parameters) -> None:
    names: dict[str, Any] = {}
    exec(f"async def mw({parameters}): ...", names)
    assert refusal(names["mw"]) == f"mw() does not take two arguments. {FORM}"


def test_a_class_is_refused() -> None:
    assert refusal(Handles) == "middleware Handles is a class: give an instance, Handles(...)."


@pytest.mark.parametrize("thing", [5, None, "throttle"])
def test_anything_else_is_refused(thing) -> None:
    assert refusal(thing) == f"{thing!r} is no middleware. {FORM}"
