"""`on`, names, constraints, optional parameters and enums, on `Router` and `App`."""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import pytest

from mqttapi import App, ConfigurationError, InvalidTemplate, RouteOptions, Router
from mqttapi.testing import TestClient
from mqttapi.topics import TopicTemplate


class Kind(Enum):
    TEMPERATURE = "temperature"
    HUMIDITY = "humidity"


async def handler() -> None: ...


async def other() -> None: ...


def refusal(make: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


# -- on


@pytest.mark.parametrize("make", [App, Router])
def test_on_with_a_handler_registers_it(make: type[App | Router]) -> None:
    place: Any = make()
    assert place.on("a/<id>", handler, qos=0, name="a") is None
    declared = place.routes[0] if isinstance(place, App) else place.declarations[0]
    assert declared.handler is handler


@pytest.mark.parametrize("make", [App, Router])
def test_on_without_a_handler_decorates(make: type[App | Router]) -> None:
    place: Any = make()
    assert place.on("a/<id>")(handler) is handler


def test_one_router_serves_both_styles() -> None:
    app = App()
    router = Router(prefix="p")
    router.topic("a")(handler)
    router.on("b", handler)
    app.include_router(router)
    assert [route.template.text for route in app.routes] == ["p/a", "p/b"]


def test_worker_count_is_workers() -> None:
    app = App()
    app.on("a", handler, shared=True, worker_count=3)
    assert app.routes[0].workers == 3


def test_worker_count_beside_workers_is_refused() -> None:
    assert refusal(lambda: App().on("a", handler, shared=True, worker_count=3, workers=3)) == (
        "on('a'): workers and worker_count are the same: give one of them"
    )


def test_worker_count_needs_shared_as_workers_does() -> None:
    assert "workers=3 without shared" in refusal(lambda: App().on("a", handler, worker_count=3))


def test_on_takes_the_method_of_an_object() -> None:
    class Ctl:
        async def handle(self) -> None: ...

    app, ctl = App(), Ctl()
    app.on("a", ctl.handle)
    assert app.routes[0].handler == ctl.handle


def test_the_same_method_of_one_object_twice_is_refused() -> None:
    class Ctl:
        async def handle(self) -> None: ...

    app, ctl = App(), Ctl()
    app.on("a", ctl.handle)
    assert "it would run twice for each message" in refusal(lambda: app.on("a", ctl.handle))


def test_on_takes_a_partial() -> None:
    async def scaled(factor: int, payload: bytes) -> None: ...

    app = App()
    app.on("a", functools.partial(scaled, 3), name="a")
    assert app.routes[0].name == "a"


def test_what_is_no_handler_is_named() -> None:
    assert refusal(lambda: App().on("a", 3)) == (  # type: ignore[call-overload]
        "3 is of type int. A handler is a function: 'async def', or plain 'def'."
    )


def test_a_pair_in_square_brackets_or_of_texts_says_how_to_write_it() -> None:
    assert refusal(lambda: App().on("a", [Kind, "x"])).endswith(  # type: ignore[call-overload]
        "is a list. Write a pair in round brackets: (Controller, 'method')"
    )
    assert refusal(lambda: App().on("a", ("Kind", "x"))) == (  # type: ignore[arg-type]
        "('Kind', 'x') is no handler. Write (Controller, 'method')"
    )


@pytest.mark.parametrize("make", [App, Router])
@pytest.mark.parametrize("name", ["on", "topic"])
def test_a_decorator_without_brackets_is_named(make: type[App | Router], name: str) -> None:
    assert refusal(lambda: getattr(make(), name)(handler)) == (
        f"@{name} needs a topic template: write @{name}('some/topic') above handler"
    )


def test_a_function_for_the_order_takes_the_message() -> None:
    assert refusal(lambda: App().on("a", handler, ordered_by=lambda: 1)) == (  # type: ignore[arg-type, misc]
        "handler() on 'a': ordered_by: <lambda>() must take one argument, the message"
    )


# -- names


def test_names_get_the_prefixes_of_their_routers_from_the_outside_in() -> None:
    app = App()
    inner = Router(name="b.")
    inner.on("x", handler, name="c")
    outer = Router(name="a.")
    outer.include_router(inner)
    app.include_router(outer, prefix="p", name="site.")
    assert app.routes[0].name == "site.a.b.c"
    assert app.topic_for("site.a.b.c") == "p/x"


def test_an_automatic_name_gets_no_prefix() -> None:
    app = App()
    router = Router(name="a.")
    router.on("x", handler)
    app.include_router(router)
    assert app.routes[0].name == f"{__name__}.handler"


@pytest.mark.parametrize(("argument", "value"), [("prefix", 3), ("name", None)])
@pytest.mark.parametrize("kind", ["Router", "group", "include_router"])
def test_prefixes_are_texts(kind: str, argument: str, value: object) -> None:
    given: Any = {argument: value}
    make: dict[str, Any] = {
        "Router": lambda: Router(**given),
        "group": lambda: Router().group(**given).__enter__(),
        "include_router": lambda: Router().include_router(Router(), **given),
    }
    assert (
        refusal(make[kind]) == f"{kind}(prefix={given.get('prefix', '')!r}): {argument} must be a text, got {value!r}"
    )


# -- where, patterns, optional parameters, enums


def test_a_pattern_holds_for_every_route_with_that_parameter() -> None:
    app = App()
    app.pattern("id", r"[0-9]+")
    app.on("a/<id>", handler)
    app.on("b/<name>", handler)
    with app.group(prefix="c/{id}") as group:
        group.on("x", handler)
    first, second, third = app.routes
    assert first.template.match("a/7") == ("7",)
    assert first.template.match("a/x") is None
    assert second.template.match("b/x") == ("x",)
    assert third.template.match("c/x/x") is None


def test_where_comes_before_a_pattern() -> None:
    app = App()
    app.pattern("id", r"[0-9]+")
    app.on("a/<id>", handler, where={"id": "[a-z]+"})
    assert app.routes[0].template.match("a/x") == ("x",)
    assert app.routes[0].template.match("a/7") is None


def test_the_nearest_where_wins() -> None:
    app = App(where={"id": {"1"}})
    with app.group(where={"id": {"2"}}) as group:
        group.on("a/<id>", handler)
        group.on("b/<id>", handler, where={"id": {"3"}})
    assert app.routes[0].template.match("a/2") == ("2",)
    assert app.routes[0].template.match("a/1") is None
    assert app.routes[1].template.match("b/3") == ("3",)


def test_where_of_a_group_may_name_parameters_that_some_routes_have_not() -> None:
    app = App()
    with app.group(where={"id": "[0-9]+"}) as group:
        group.on("a", handler)
        group.on("a/<id>", other)
    assert [route.template.match("a/x") for route in app.routes] == [None, None]


def test_where_of_a_route_must_name_a_parameter_also_one_of_the_prefix() -> None:
    app = App()
    with app.group(prefix="<site>") as group:
        group.on("a", handler, where={"site": {"north"}})
        assert "'<site>/b' has no parameter 'syte'" in refusal(
            lambda: group.on("b", handler, where={"syte": {"north"}})
        )
    assert app.routes[0].template.match("south/a") is None


def test_a_pattern_after_a_route_with_that_parameter_is_refused() -> None:
    app = App()
    app.on("a/<id>", handler, name="a")
    assert refusal(lambda: app.pattern("id", "[0-9]+")).startswith("pattern('id'): the route 'a' (test_on.py:")
    app.pattern("name", "[0-9]+")


def test_a_pattern_that_is_none_is_refused_at_once() -> None:
    assert "where={'id': ...} of 'pattern/<id>'" in refusal(lambda: App().pattern("id", "[0-9"))


async def test_an_enum_as_constraint_decides_whether_the_route_matches() -> None:
    app = App()
    seen: list[Kind] = []

    @app.on("a/<kind>", where={"kind": Kind})
    async def read(kind: Kind) -> None:
        seen.append(kind)

    async with TestClient(app) as client:
        assert (await client.publish("a/humidity")).outcome == "done"
        assert (await client.publish("a/colour")).outcome == "unmatched"
    assert seen == [Kind.HUMIDITY]


async def test_an_enum_as_hint_decides_whether_the_message_is_valid() -> None:
    app = App()

    @app.on("a/<kind>")
    async def read(kind: Kind) -> None: ...

    async with TestClient(app) as client:
        assert (await client.publish("a/humidity")).outcome == "done"
        assert (await client.publish("a/colour")).outcome == "rejected"


async def test_an_optional_parameter_at_the_end_of_a_group() -> None:
    app = App()
    seen: list[str | None] = []
    with app.group(prefix="devices") as group:

        @group.on("<id?>")
        async def read(id: str | None = None) -> None:
            seen.append(id)

    async with TestClient(app) as client:
        await client.publish("devices")
        await client.publish("devices/7")
    assert seen == [None, "7"]


# -- republish


async def test_republish_sends_a_message_on_as_it_came() -> None:
    app = App()
    app.republish("legacy/<id>/temp", "devices/<id>/temperature", retain=True)
    async with TestClient(app) as client:
        await client.publish(
            "legacy/7/temp",
            b"\x00\xff",
            content_type="x/y",
            user_properties=[("a", "1"), ("a", "2")],
            response_topic="r",
            correlation_data=b"\xfe",
            payload_format_indicator=1,
        )
    (sent,) = client.published
    assert (sent.topic, sent.payload, sent.qos, sent.retain) == ("devices/7/temperature", b"\x00\xff", 1, True)
    assert sent.user_properties == (("a", "1"), ("a", "2"))
    assert (sent.content_type, sent.response_topic, sent.correlation_data) == ("x/y", "r", b"\xfe")
    assert sent.payload_format_indicator == 1


async def test_one_topic_may_be_republished_to_several() -> None:
    app = App()
    app.republish("a/<id>", "b/<id>")
    app.republish("a/<id>", "c/<id>")
    async with TestClient(app) as client:
        await client.publish("a/7", b"x")
    assert sorted(sent.topic for sent in client.published) == ["b/7", "c/7"]


def test_republish_to_a_parameter_that_is_not_there_is_refused() -> None:
    assert refusal(lambda: App().republish("a/<id>", "b/<device>")) == (
        "republish() on 'a/<id>': publish_to: 'b/<device>' has a parameter 'device', which is none of the route's. "
        "There are: id, topic, route"
    )


async def test_republish_never_sends_a_message_round_in_a_circle() -> None:
    app = App()
    app.republish("a/<id>", "a/<id>")
    async with TestClient(app, raise_exceptions=False) as client:
        delivery = await client.publish("a/7", b"x")
    assert (delivery.outcome, client.published) == ("rejected", [])
    assert delivery.reason == "republished to 'a/7' it would come back, for ever"


def test_the_prefix_stands_before_the_source_and_not_before_the_target() -> None:
    app = App()
    router = Router(prefix="p")
    router.republish("a/<id>", "b/<id>")
    app.include_router(router)
    route = app.routes[0]
    assert route.template.text == "p/a/<id>"
    assert route.publish_to is not None
    assert route.publish_to.text == "b/<id>"


async def test_qos_2_is_republished_as_such_where_the_route_says_so() -> None:
    app = App()
    app.republish("a/<id>", "b/<id>", qos=2)
    async with TestClient(app) as client:
        await client.publish("a/7", b"x", qos=2)
    assert [sent.qos for sent in client.published] == [2]


# -- what is refused


@pytest.mark.parametrize("make", [lambda: App().fallback, lambda: Router().fallback])
def test_the_filter_of_a_fallback_is_given_by_name(make: Any) -> None:
    said = "fallback('#'): what it subscribes to is given by name: write fallback(filter='#')"
    assert refusal(lambda: make()("#")(handler)) == said


@pytest.mark.parametrize("where", [{5: "x"}, {"id": "x", 5: "x"}])
def test_a_constraint_is_for_the_name_of_a_parameter(where: Any) -> None:
    said = "where: the name of a path parameter is a text, got 5"
    assert refusal(lambda: App("x", where=where)) == f"App('x'): {said}"
    assert refusal(lambda: App().group(where=where)) == f"group(prefix=''): {said}"
    assert refusal(lambda: App().on("a/<id>", handler, where=where)) == f"handler() on 'a/<id>': {said}"
    with pytest.raises(InvalidTemplate, match="'a/<id>' has no parameter 5"):
        TopicTemplate("a/<id>", where={5: "x"})  # type: ignore[dict-item]  # that is the point


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda app: app.fallback(filter="a/<id>", where={"id": "[0-9]+"})(handler),
            "handler() on '#': a fallback has no path parameters, got where={'id': '[0-9]+'}. Leave it out, or write a route",
        ),
        (
            lambda app: app.on("a/<id>", handler, missing="drop"),
            (
                "handler() on 'a/<id>': missing='drop', and no path parameter is a table whose row could be missing. "
                "Leave it out, or give a parameter a SQLModel table as its hint"
            ),
        ),
        (
            lambda app: [app.pattern("id", "[0-9]+"), app.pattern("id", "[0-9]+"), app.pattern("id", "[a-z]+")],
            (
                "pattern('id'): it has the pattern '[0-9]+' already, got '[a-z]+'. Keep one of them; "
                "where= of a route or a group comes before it"
            ),
        ),
        (lambda app: app.republish("a", "b", retain="x"), "republish('a', 'b'): retain must be True or False, got 'x'"),
        (
            lambda app: app.republish("a", "b", publish_to="c"),
            "republish('a', 'b'): publish_to='c' is what its second argument says. Leave it out",
        ),
        (
            lambda app: app.on("a", handler, options=RouteOptions(description=5)),  # type: ignore[arg-type]
            "handler() on 'a': RouteOptions: description must be a text or None, got 5",
        ),
        (
            lambda app: app.on("a", handler, options=RouteOptions(tags=["x", 1])),  # type: ignore[list-item]
            "handler() on 'a': RouteOptions: tags must be texts, got 1",
        ),
    ],
)
def test_what_would_have_no_effect_or_no_sense_is_refused(make: Any, said: str) -> None:
    assert refusal(lambda: make(App())) == said


def test_a_group_may_say_missing_for_routes_without_a_row() -> None:
    with App().group(missing="drop") as group:
        group.on("a/<id>", handler)


def test_a_key_is_not_awaited() -> None:
    async def handler() -> None: ...

    async def key(message: object) -> int:
        return 1

    assert refusal(lambda: App().on("a", handler, ordered_by=key)).endswith(  # type: ignore[arg-type]
        "key() is an 'async def', and a key has to be there at once: make it a 'def'"
    )
