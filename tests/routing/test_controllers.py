"""Controllers: methods as handlers, and where their objects come from."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any

import pytest

from mqttapi import App, ConfigurationError, Context, Controller, Depends, Middleware, Publisher, Router, topic
from mqttapi.config import Settings
from mqttapi.errors import ResourceUnavailable
from mqttapi.middleware import Deduplicate, Endpoint, RateLimit
from mqttapi.testing import TestClient
from tests.support.redis import RedisServer


def refusal(make: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


class Plain:
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.seen: list[str] = []

    async def data(self, device_id: str) -> None:
        self.seen.append(device_id)

    async def objects(self, context: Context) -> None:
        context.app.state.objects = [*vars(context.app.state).get("objects", []), self]

    def synchronous(self, device_id: str) -> None:
        self.seen.append(device_id)

    @staticmethod
    async def static(context: Context) -> None:
        context.app.state.static = True

    @classmethod
    async def of_class(cls, context: Context) -> None:
        context.app.state.cls = cls

    class Inner:
        async def handle(self) -> None: ...


class Child(Plain): ...


class Needing:
    """Its constructor asks for things, so each attempt has an object of its own."""

    def __init__(self, publisher: Publisher, device_id: str) -> None:
        self.publisher = publisher
        self.device_id = device_id

    async def handle(self, context: Context) -> None:
        context.app.state.objects = [*vars(context.app.state).get("objects", []), self]


# -- on


async def test_the_method_of_a_class_gets_an_object() -> None:
    app = App()
    app.on("a/<device_id>", Plain.data)
    app.on("b", Plain.objects)
    async with TestClient(app) as client:
        await client.publish("a/7")
        await client.publish("b")
    (found,) = app.state.objects
    assert found.seen == ["7"]


async def test_a_class_whose_constructor_takes_nothing_has_one_object_for_all_its_routes() -> None:
    app = App()
    app.on("a", Plain.objects)
    app.on("b", Plain.objects)
    Plain.made = 0
    async with TestClient(app) as client:
        for _ in range(3):
            await client.publish("a")
            await client.publish("b")
    assert len(set(app.state.objects)) == 1
    assert Plain.made == 1


async def test_each_run_of_the_app_has_its_own_object() -> None:
    app = App()
    app.on("a", Plain.objects)
    for _ in range(2):
        async with TestClient(app) as client:
            await client.publish("a")
    assert len(set(app.state.objects)) == 2


async def test_a_constructor_that_asks_for_something_runs_for_each_message() -> None:
    app = App()
    app.on("a/<device_id>", Needing.handle)
    async with TestClient(app) as client:
        await client.publish("a/7")
        await client.publish("a/8")
    first, second = app.state.objects
    assert (first.device_id, second.device_id) == ("7", "8")
    assert first.publisher is app.publisher


async def test_a_constructor_runs_for_each_attempt() -> None:
    made = []

    class Flaky:
        def __init__(self, context: Context) -> None:
            made.append(context.attempt)

        async def handle(self) -> None:
            if len(made) < 3:
                raise OSError

    app = App()
    app.on("a", Flaky.handle, retry=3)
    async with TestClient(app) as client:
        assert (await client.publish("a")).outcome == "done"
    assert made == [1, 2, 3]


async def test_a_pair_of_class_and_name_is_for_inherited_methods() -> None:
    app = App()
    app.on("a", (Child, "objects"))
    app.on("b", (Plain, "objects"))
    async with TestClient(app) as client:
        await client.publish("a")
        await client.publish("b")
    assert [type(found) for found in app.state.objects] == [Child, Plain]


async def test_a_plain_def_method_runs_in_a_thread() -> None:
    app = App()
    app.on("a/<device_id>", Plain.synchronous)
    app.on("b", Plain.objects)
    async with TestClient(app) as client:
        await client.publish("a/7")
        await client.publish("b")
    assert app.state.objects[0].seen == ["7"]


async def test_static_and_class_methods_need_no_object() -> None:
    app = App()
    app.on("a", Plain.static)
    app.on("b", (Plain, "static"))
    app.on("c", Child.of_class)
    app.on("d", (Child, "of_class"))
    Plain.made = 0
    async with TestClient(app) as client:
        for name in "abcd":
            await client.publish(name)
    assert app.state.static
    assert app.state.cls is Child
    assert Plain.made == 0


async def test_a_class_with_a_single_action() -> None:
    class Action:
        async def __call__(self, context: Context) -> None:
            context.app.state.calls = [*vars(context.app.state).get("calls", []), type(self)]

    app = App()
    app.on("a", (Action, "__call__"))
    app.on("b", Action())
    async with TestClient(app) as client:
        await client.publish("a")
        await client.publish("b")
    assert app.state.calls == [Action, Action]


async def test_a_class_within_a_class_or_a_function_is_found() -> None:
    class Local:
        class Inner:
            async def handle(self, context: Context) -> None:
                context.app.state.inner = type(self)

    app = App()
    app.on("a", Local.Inner.handle)
    app.on("b", Plain.Inner.handle)
    async with TestClient(app) as client:
        assert (await client.publish("a")).outcome == "done"
        assert (await client.publish("b")).outcome == "done"
    assert app.state.inner is Local.Inner


async def test_an_object_can_be_overridden_by_class() -> None:
    class Fake(Plain): ...

    app = App()
    app.on("a", Plain.objects)
    app.dependency_overrides[Plain] = fake = Fake()
    async with TestClient(app) as client:
        await client.publish("a")
    assert app.state.objects == [fake]


class Overridden:
    async def handle(self, context: Context, payload: str) -> None:
        context.app.state.handled = f"real {payload}"


class WithConstructor(Overridden):
    def __init__(self, context: Context) -> None: ...


class Stand:
    """Stands in for a controller, and is none of its classes."""

    async def handle(self, context: Context, payload: str) -> None:
        context.app.state.handled = f"fake {payload}"


@pytest.mark.parametrize("cls", [Overridden, WithConstructor])
@pytest.mark.parametrize("fake", [Stand(), Stand, functools.partial(Stand)])
async def test_the_method_of_what_overrides_a_controller_is_called(cls: type, fake: object) -> None:
    app = App()
    app.on("a", (cls, "handle"))
    app.dependency_overrides[cls] = fake
    async with TestClient(app) as client:
        await client.publish("a", "x")
    assert app.state.handled == "fake x"


async def test_a_dependency_of_a_constructor_can_be_overridden() -> None:
    def limit() -> int:
        return 1

    class Ctl:
        def __init__(self, limit: Annotated[int, Depends(limit)]) -> None:
            self.limit = limit

        async def handle(self, context: Context) -> None:
            context.app.state.limit = self.limit

    app = App()
    app.on("a", Ctl.handle)
    app.dependency_overrides[limit] = lambda: 2
    async with TestClient(app) as client:
        await client.publish("a")
    assert app.state.limit == 2


def test_a_route_of_a_method_is_named_after_the_class_it_was_given_for() -> None:
    app = App()
    app.on("a", (Child, "objects"))
    assert app.routes[0].name == f"{__name__}.Child.objects"
    assert re.fullmatch(r"test_controllers\.py:\d+", app.routes[0].source)


def test_the_same_method_twice_on_one_filter_is_refused() -> None:
    app = App()
    app.on("a", Plain.objects)
    assert "it would run twice for each message" in refusal(lambda: app.on("a", (Plain, "objects")))
    app.on("a", (Child, "objects"))


def test_a_parameter_of_a_method_that_is_nowhere_is_named_with_its_class() -> None:
    assert refusal(lambda: App().on("a", Plain.data)).startswith("Plain.data(): 'device_id' is neither in 'a'")


def test_a_parameter_of_a_constructor_that_is_nowhere_is_named_with_its_class() -> None:
    assert refusal(lambda: App().on("a", Needing.handle)).startswith(
        "Needing() for Needing.handle(): 'device_id' is neither in 'a'"
    )


def test_a_method_that_is_not_there_is_named_with_the_nearest() -> None:
    assert refusal(lambda: App().on("a", (Plain, "dat"))) == "Plain has no method 'dat'. Did you mean 'data'?"
    assert refusal(lambda: App().on("a", (Plain.Inner, "xyz"))) == "Inner has no method 'xyz'. It has: handle."


def test_a_pair_of_something_else_is_refused() -> None:
    assert refusal(lambda: App().on("a", (1, 2, 3))) == "(1, 2, 3) is no handler. Write (Controller, 'method')"  # type: ignore[arg-type]


def test_a_router_cannot_decorate_a_method_while_its_class_is_written() -> None:
    router = Router()

    def write() -> None:
        class Late:
            @router.topic("a")
            async def handle(self) -> None: ...

    assert refusal(write) == (
        "Late.handle() is a method, and its class Late is not there yet, or not by this name. Mark it with @topic(...) "
        "from mqttapi and register the class with router.controller(...), or write router.on(..., (Late, 'handle'))"
    )


# -- controller


class Devices:
    @topic("data", qos=0, name="data")
    async def data(self, device_id: str) -> None: ...

    @topic("state", name="state")
    @topic("status", name="status")
    async def state(self, device_id: str) -> None: ...

    @topic("")
    @staticmethod
    async def itself(device_id: str) -> None: ...

    async def unmarked(self) -> None: ...


def test_the_marked_methods_of_a_controller_are_registered_in_their_order() -> None:
    app = App()
    app.controller("devices/<device_id>", Devices, name="devices.", timeout=3)
    assert [route.template.text for route in app.routes] == [
        "devices/<device_id>/data",
        "devices/<device_id>/state",
        "devices/<device_id>/status",
        "devices/<device_id>",
    ]
    assert [route.name for route in app.routes][:3] == ["devices.data", "devices.state", "devices.status"]
    assert [(route.qos, route.timeout) for route in app.routes][:2] == [(0, 3), (1, 3)]


def test_marks_are_inherited_and_an_override_without_one_takes_it_away() -> None:
    class Base:
        @topic("a")
        async def a(self) -> None: ...

        @topic("b")
        async def b(self) -> None: ...

    class Derived(Base):
        async def a(self) -> None: ...

        @topic("c")
        async def c(self) -> None: ...

    app = App()
    app.controller("x", Derived)
    assert [route.template.text for route in app.routes] == ["x/b", "x/c"]


async def test_an_object_may_be_a_controller() -> None:
    class Ctl:
        def __init__(self, limit: int) -> None:
            self.limit = limit

        @topic("a")
        async def a(self, context: Context) -> None:
            context.app.state.limit = self.limit

    app = App()
    router = Router()
    router.controller("x", Ctl(3))
    app.include_router(router)
    async with TestClient(app) as client:
        await client.publish("x/a")
    assert app.state.limit == 3


def test_a_mark_leaves_the_function_as_it_is() -> None:
    async def method(self: object) -> None: ...

    assert topic("a")(method) is method


def test_a_controller_without_marks_is_refused() -> None:
    assert refusal(lambda: App().controller("x", Plain)) == (
        "controller Plain has no method that is marked: write @topic('data') above one, with 'from mqttapi import "
        "topic', or register methods with router.on(...)"
    )


def test_a_wrong_option_of_a_mark_is_refused_where_it_is_written() -> None:
    def write() -> None:
        class Ctl:
            @topic("a", timeout=-1)
            async def a(self) -> None: ...

    assert refusal(write) == (
        "Ctl.a() on 'a': timeout must be a number of seconds above 0, or None for no limit, got -1"
    )


def test_a_mark_needs_a_template() -> None:
    async def method() -> None: ...

    assert refusal(lambda: topic(method)) == "@topic needs a topic template: write @topic('data') above method"  # type: ignore[arg-type]


def test_a_mark_is_for_methods() -> None:
    assert refusal(lambda: topic("a")(property(str))) == (  # type: ignore[type-var]
        "@topic('a') marks methods, and this is a property: put it above a 'def'"
    )


# -- the base


async def test_a_controller_can_publish() -> None:
    class Ctl(Controller):
        async def handle(self, device_id: str) -> None:
            await self.publish("alerts/device", {"id": device_id}, qos=0)

    app = App()
    app.on("a/<device_id>", Ctl.handle)
    async with TestClient(app) as client:
        await client.publish("a/7")
    assert [(sent.topic, sent.payload, sent.qos) for sent in client.published] == [("alerts/device", b'{"id":"7"}', 0)]


def test_the_logger_of_a_controller_has_its_name() -> None:
    class Ctl(Controller): ...

    assert Ctl().logger.name == f"{__name__}.{Ctl.__qualname__}"


async def test_outside_of_a_running_app_there_are_no_resources() -> None:
    with pytest.raises(ConfigurationError) as caught:
        await Controller().publish("a")
    assert str(caught.value) == ("Controller.publish is there while an app runs: use it when a message is handled")
    assert refusal(lambda: Controller().redis).startswith("Controller.redis is there while an app runs")


async def test_a_resource_that_the_app_has_not_is_named() -> None:
    class Ctl(Controller):
        async def handle(self) -> None:
            await self.redis.get("x")

    app = App()
    app.on("a", Ctl.handle)
    async with TestClient(app) as client:
        with pytest.raises(ConfigurationError, match=r"Ctl.redis is not available: REDIS_URL is not set\. "):
            await client.publish("a")


async def test_a_resource_can_be_given_in_a_test() -> None:
    from redis.asyncio import Redis

    class Ctl(Controller):
        def __init__(self) -> None:
            self.at_start = self.redis

        async def handle(self, context: Context) -> None:
            context.app.state.redis = (self.redis, self.at_start)

    app = App()
    app.on("a", Ctl.handle)
    app.dependency_overrides[Redis] = "a fake"
    async with TestClient(app) as client:
        await client.publish("a")
    assert app.state.redis == ("a fake", "a fake")


async def test_redis_that_is_configured_and_not_there_stops_the_start_of_an_app_with_a_controller() -> None:
    class Ctl(Controller):
        async def handle(self) -> None: ...

    app = App(settings=Settings(redis_url="redis://127.0.0.1:1/0"))
    app.on("a", Ctl.handle)
    with pytest.raises(ResourceUnavailable, match=r"Redis at 127\.0\.0\.1:1 .*is not available"):
        async with TestClient(app):
            pytest.fail("started")


async def test_what_uses_no_database_does_not_ask_for_one(redis_server: RedisServer) -> None:
    """Though `DATABASE_URL` is set: a rate limit has no use for it, nor for Redis where it counts in memory."""
    settings = Settings(redis_url=redis_server.url, database_url="sqlite:////nowhere/at/all/x.db")
    app = App(settings=settings, middleware=[RateLimit(5), Deduplicate("property.id", store="memory")])

    @app.topic("a")
    async def handle() -> None: ...

    async with TestClient(app) as client:
        assert (await client.publish("a")).outcome == "done"


async def test_a_controller_and_a_middleware_use_the_redis_and_the_database_that_are_configured(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    class Counting(Middleware):
        async def handle(self, context: Context, next_handler: Endpoint) -> Any:
            context["rows"] = await self.db.query("SELECT :id AS id", id=context["device_id"])
            return await next_handler(context)

    class Ctl(Controller):
        async def handle(self, device_id: str, context: Context) -> None:
            await self.redis.set("last", device_id)
            context.app.state.seen = (await self.redis.get("last"), context["rows"])

    settings = Settings(redis_url=redis_server.url, database_url=f"sqlite:///{tmp_path}/x.db")
    app = App(settings=settings, middleware=[Counting()])
    app.on("a/<device_id>", Ctl.handle)
    async with TestClient(app) as client:
        await client.publish("a/7")
    assert app.state.seen == (b"7", [{"id": "7"}])


class Unfinished(Controller, ABC):
    @abstractmethod
    async def work(self) -> None: ...

    @topic("x")
    async def handle(self) -> None: ...


async def test_an_abstract_controller_is_refused_at_the_start_unless_it_is_replaced() -> None:
    app = App()
    app.on("x", Unfinished.handle, name="x")
    with pytest.raises(ConfigurationError) as caught:
        async with TestClient(app):
            pytest.fail("started")
    assert str(caught.value).startswith("the controller Unfinished of 'x' (")
    assert str(caught.value).endswith(" is abstract: it lacks work(). Register a class that has it all")
    app.dependency_overrides[Unfinished] = type("Finished", (Unfinished,), {"work": None})
    async with TestClient(app) as client:
        assert (await client.publish("x")).outcome == "done"


@pytest.mark.parametrize("stand_in", [object(), int])
async def test_what_stands_in_for_a_controller_has_its_method(stand_in: object) -> None:
    app = App()
    app.on("x", Unfinished.handle)
    app.dependency_overrides[Unfinished] = stand_in
    with pytest.raises(ConfigurationError) as caught:
        async with TestClient(app):
            pytest.fail("started")
    assert str(caught.value) == (
        f"the override of Unfinished is {stand_in!r}, which has no method 'handle'. Give an object or a class that has it"
    )
