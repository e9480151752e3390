"""Names for middleware, with parameters and in groups, and what leaves them out."""

from __future__ import annotations

from typing import Any

import pytest

from mqttapi import App, ConfigurationError, Context, Middleware, RouteOptions, Router
from mqttapi.middleware import Endpoint, MiddlewareFunction, RateLimit
from mqttapi.testing import TestClient


class Limit(Middleware):
    made: list[Limit] = []

    def __init__(self, most: int = 1, seconds: float = 60, *, strict: bool = False) -> None:
        self.most, self.seconds = most, seconds
        self.made.append(self)

    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        note(context, f"limit {self.most} {self.seconds}")
        return await next_handler(context)


class Roles(Middleware):
    def __init__(self, first: str, *others: str) -> None:
        self.roles = (first, *others)

    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        note(context, "|".join(self.roles))
        return await next_handler(context)


def note(context: Context, text: str) -> None:
    context.app.state.log = [*vars(context.app.state).get("log", []), text]


async def auth(context: Context, call_next: Endpoint) -> Any:
    note(context, "auth")
    return await call_next(context)


def tagged(tag: str) -> MiddlewareFunction:
    async def mw(context: Context, call_next: Endpoint) -> Any:
        note(context, tag)
        return await call_next(context)

    return mw


async def handler() -> None: ...


async def other() -> None: ...


def make_app() -> App:
    app = App()
    app.middleware_alias("throttle", Limit)
    app.middleware_alias("role", Roles)
    app.middleware_alias("tag", tagged)
    app.middleware_alias("auth", auth)
    app.middleware_group("api", ["auth", "throttle:60,1", tagged("plain")])
    app.middleware_group("all", ["api", "role:admin"])
    return app


async def ran(app: App, *topics: str) -> list[str]:
    async with TestClient(app) as client:
        for topic in topics or ("x",):
            await client.publish(topic)
    found: list[str] = vars(app.state).get("log", [])
    return found


def refusal(make: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


# -- what a name stands for


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auth", ["auth"]),
        ("throttle", ["limit 1 60"]),
        ("throttle:5", ["limit 5 60"]),
        ("throttle: 5 , 0.5", ["limit 5 0.5"]),
        ("role:editor,admin", ["editor|admin"]),
        ("tag:hello", ["hello"]),
        ("api", ["auth", "limit 60 1.0", "plain"]),
        ("all", ["auth", "limit 60 1.0", "plain", "admin"]),
    ],
)
async def test_a_name_stands_for_middleware_made_of_its_parameters(text: str, expected: list[str]) -> None:
    app = make_app()
    app.on("x", handler, middleware=[text])
    assert await ran(app) == expected


async def test_names_work_at_every_level() -> None:
    app = make_app()
    app.add_middleware("tag:app")
    router = Router(middleware=["tag:router"])
    with router.group(middleware=["tag:group"]) as group:
        group.on("x", handler, middleware=["tag:route"])
    app.include_router(router, middleware=["tag:include"])
    assert await ran(app) == ["app", "include", "router", "group", "route"]


async def test_names_on_the_app_itself_are_resolved_when_a_route_comes() -> None:
    app = App(middleware=["auth"])
    app.middleware_alias("auth", auth)
    app.on("x", handler)
    assert await ran(app) == ["auth"]


async def test_the_routes_of_a_router_share_the_object_that_its_text_makes() -> None:
    app = make_app()
    Limit.made = []
    router = Router(middleware=["throttle:3"])
    router.on("x", handler)
    router.on("y", other)
    app.include_router(router)
    await ran(app, "x", "y")
    assert len(Limit.made) == 1


async def test_each_place_where_a_text_stands_makes_an_object_of_its_own() -> None:
    app = make_app()
    Limit.made = []
    app.on("x", handler, middleware=["throttle:3"])
    app.on("y", other, middleware=["throttle:3"])
    await ran(app, "x", "y")
    assert len(Limit.made) == 2


async def test_a_router_may_be_in_two_apps_that_know_the_name_as_different_things() -> None:
    router = Router(middleware=["who"])
    router.on("x", handler)
    for name in ("a", "b"):
        app = App()
        app.middleware_alias("who", tagged(name))
        app.include_router(router)
        assert await ran(app) == [name]


# -- without


@pytest.mark.parametrize(
    ("without", "left"),
    [
        (["auth"], ["limit 60 1.0", "plain", "limit 3 60"]),
        ([auth], ["limit 60 1.0", "plain", "limit 3 60"]),
        (["throttle"], ["auth", "plain"]),
        (["throttle:60,1"], ["auth", "plain", "limit 3 60"]),
        ([Limit], ["auth", "plain"]),
        (["api"], ["limit 3 60"]),
        (["api", "throttle"], []),
    ],
)
async def test_without_middleware_leaves_out_what_routers_bring(without: list[Any], left: list[str]) -> None:
    app = make_app()
    limit = Limit(3)
    app.middleware_alias("mine", limit)
    router = Router(middleware=["api", "throttle:3"])
    router.on("x", handler, options=RouteOptions(without_middleware=without))
    router.on("y", other)
    app.include_router(router)
    assert await ran(app, "x") == left
    assert await ran(app, "y") == [*left, "auth", "limit 60 1.0", "plain", "limit 3 60"]


async def test_without_middleware_takes_the_object_itself_and_also_that_of_the_app() -> None:
    limit = Limit(4)
    app = App(middleware=[limit, auth])
    app.on("x", handler, options=RouteOptions(without_middleware=[limit]))
    assert await ran(app) == ["auth"]


async def test_without_middleware_leaves_the_routes_own_alone() -> None:
    app = make_app()
    app.on("x", handler, middleware=["auth"], options=RouteOptions(without_middleware=["auth"]))
    assert await ran(app) == ["auth"]


def test_without_middleware_must_be_a_list_of_what_is_known() -> None:
    app = make_app()
    assert refusal(lambda: app.on("x", handler, options=RouteOptions(without_middleware="auth"))) == (
        "handler() on 'x': RouteOptions: without_middleware must be a list, such as [log_it], got 'auth'"
    )
    assert refusal(lambda: app.on("x", handler, options=RouteOptions(without_middleware=["aut"]))) == (
        "handler() on 'x': without_middleware: there is no middleware called 'aut'. Did you mean 'auth'? "
        "app.middleware_alias('aut', ...) must come before what uses it."
    )


# -- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "throtle:60",
            (
                "there is no middleware called 'throtle'. Did you mean 'throttle'? "
                "app.middleware_alias('throtle', ...) must come before what uses it."
            ),
        ),
        ("throttle:many", "'throttle:many': 'most': Input should be a valid integer"),
        ("throttle:1,2,3", "'throttle:1,2,3': Limit() takes 2 parameters (most, seconds), got 3"),
        ("role", "'role': Roles(): missing a required argument: 'first'"),
        ("auth:1", "'auth:1': 'auth' is a middleware, not a class that takes parameters. Write 'auth'"),
        ("api:1", "'api:1': a group of middleware takes no parameters. Write 'api'"),
    ],
)
def test_a_wrong_text_is_refused_where_it_is_used(text: str, said: str) -> None:
    app = make_app()
    assert refusal(lambda: app.on("x", handler, middleware=[text])).startswith(f"handler() on 'x': {said}")
    router = Router(prefix="p", middleware=[text])
    router.on("x", handler)
    assert refusal(lambda: app.include_router(router)).startswith(f"handler() on 'p/x': {said}")


def test_without_any_names_the_text_says_so() -> None:
    assert "Known are: none." in refusal(lambda: App().on("x", handler, middleware=["auth"]))


def test_a_class_that_makes_no_middleware_is_refused() -> None:
    class Number: ...

    app = App()
    app.middleware_alias("number", Number)
    assert refusal(lambda: app.on("x", handler, middleware=["number"])).startswith("handler() on 'x': 'number': <")


def test_what_its_constructor_refuses_is_told_with_the_text_and_the_route() -> None:
    app = App()
    app.middleware_alias("limit", RateLimit)
    assert refusal(lambda: app.on("x", handler, middleware=["limit:0"])) == (
        "handler() on 'x': 'limit:0': RateLimit: limit must be a whole number, 1 to 10,000, got 0"
    )


def test_what_its_constructor_raises_is_left_as_it_is_and_noted() -> None:
    class Bad:
        def __init__(self, number: int) -> None:
            raise LookupError(number)

    app = App()
    app.middleware_alias("bad", Bad)
    with pytest.raises(LookupError) as caught:
        app.on("x", handler, middleware=["bad:7"])
    assert caught.value.__notes__ == ["raised for handler() on 'x': 'bad:7'"]


def test_what_is_no_middleware_is_told_with_the_route_or_router() -> None:
    wrong: Any = 5
    said = "5 is no middleware. "
    assert refusal(lambda: App().on("x", handler, middleware=[wrong])).startswith(f"handler() on 'x': {said}")
    assert refusal(lambda: Router(prefix="p", middleware=[wrong])).startswith(f"Router(prefix='p'): {said}")
    assert refusal(lambda: App().middleware_group("g", [wrong])).startswith(f"middleware group 'g': {said}")
    assert refusal(lambda: App("x", middleware=[wrong])).startswith(f"App('x'): {said}")
    assert refusal(lambda: App("x").add_middleware(wrong)).startswith(f"App('x'): {said}")
    assert refusal(lambda: App().group(prefix="p", middleware=[wrong])).startswith(f"group(prefix='p'): {said}")


def test_without_middleware_takes_nothing_else() -> None:
    wrong: Any = 5
    assert refusal(lambda: App().on("x", handler, options=RouteOptions(without_middleware=[wrong]))) == (
        "handler() on 'x': RouteOptions: without_middleware takes names, classes and middleware, got 5"
    )


@pytest.mark.parametrize("name", ["", " ", "a:b", "a,b", "a b", 3, None])
def test_a_wrong_name_is_refused(name: Any) -> None:
    said = f"the name of a middleware is a text without ':', ',' and spaces, got {name!r}"
    assert refusal(lambda: App().middleware_alias(name, auth)) == said
    assert refusal(lambda: App().middleware_group(name, [auth])) == said


def test_a_name_is_given_once() -> None:
    said = "there is already a middleware called 'auth'. Choose another name"
    assert refusal(lambda: make_app().middleware_alias("auth", auth)) == said
    assert refusal(lambda: make_app().middleware_group("auth", [auth])) == said


def test_what_is_no_middleware_gets_no_name() -> None:
    assert refusal(lambda: App().middleware_alias("x", 3)).startswith("3 is no middleware. ")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (type("Unfinished", (Middleware,), {}), "middleware 'x': Unfinished is abstract: it lacks handle(). "),
        (dict, "middleware 'x': dict: its parameters cannot be read: no signature found for builtin type "),
    ],
)
def test_a_class_of_which_no_middleware_can_be_made_gets_no_name(target: Any, said: str) -> None:
    text = refusal(lambda: App().middleware_alias("x", target))
    assert text.startswith(said)
    assert text.endswith("or an object with 'async def handle(self, context, next_handler)'.")


def test_a_group_is_a_list_of_what_is_known() -> None:
    app = make_app()
    assert refusal(lambda: app.middleware_group("g", "auth")) == (
        "middleware group 'g' must be a list, such as ['auth'], got 'auth'"
    )
    assert "middleware group 'g': there is no middleware called 'g'" in refusal(
        lambda: app.middleware_group("g", ["g"])
    )


# -- the base class


def test_the_base_class_needs_a_handle() -> None:
    class Nothing(Middleware): ...

    with pytest.raises(TypeError, match="abstract"):
        Nothing()  # type: ignore[abstract]


async def test_middleware_reaches_the_resources_of_the_app() -> None:
    class Telling(Middleware):
        async def handle(self, context: Context, next_handler: Endpoint) -> Any:
            await self.publish("seen", context.message.topic, qos=0)
            return await next_handler(context)

    app = App(middleware=[Telling()])
    app.on("x", handler)
    async with TestClient(app) as client:
        await client.publish("x")
    assert [(sent.topic, sent.payload) for sent in client.published] == [("seen", b"x")]


def test_the_decorator_takes_no_text() -> None:
    """FastAPI's users write `@app.middleware("http")`."""
    assert refusal(lambda: App("plant").middleware("http")) == (  # type: ignore[type-var]
        "@app.middleware takes no text, got 'http': write @app.middleware above 'async def mw(context, call_next)'. An alias "
        "is added by app.add_middleware('http')"
    )
