"""What is wrong with a route is said where it is written, word for word. Signatures: see injection; templates: topics."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mqttapi import App, ConfigurationError, Context, Depends, RouteOptions, Router
from mqttapi.middleware import Endpoint


async def handler() -> None: ...


async def other() -> None: ...


async def passing(context: Context, call_next: Endpoint) -> object:
    return await call_next(context)


def said(options: dict[str, Any], template: str = "a/<x>") -> str:
    with pytest.raises(ConfigurationError) as caught:
        App().topic(template, **options)(handler)
    return str(caught.value)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"workers": 3},
        (
            "workers=3 without shared: every worker would get every message. "
            "Add shared=True (or shared='group') so that the workers share them, or leave workers out."
        ),
    ),
    ({"workers": 0, "shared": True}, "workers must be a whole number from 1 to 512, got 0"),
    ({"workers": True, "shared": True}, "workers must be a whole number from 1 to 512, got True"),
    ({"qos": 3}, "qos must be 0, 1 or 2, got 3"),
    ({"qos": "1"}, "qos must be 0, 1 or 2, got '1'"),
    ({"qos": True}, "qos must be 0, 1 or 2, got True"),
    ({"concurrency": 0}, "concurrency must be a whole number from 1 to 65,535, got 0"),
    ({"timeout": 0}, "timeout must be a number of seconds above 0, or None for no limit, got 0"),
    ({"timeout": "1"}, "timeout must be a number of seconds above 0, or None for no limit, got '1'"),
    ({"ordered_by": "y"}, "ordered_by='y' is neither 'topic' nor a path parameter (x)"),
    (
        {"ordered_by": 3},
        "ordered_by must be 'topic', the name of a path parameter, a function of the message or None, got 3",
    ),
    ({"retained": "none"}, "retained must be 'all', 'new', 'skip' or 'only', got 'none'"),
    ({"retained": True}, "retained must be 'all', 'new', 'skip' or 'only', got True"),
    (
        {"retained": "skip", "options": RouteOptions(retain_as_published=True)},
        (
            "retained='skip' with retain_as_published: the flag says then how a message was published, not whether it "
            "was retained. Leave one of the two out."
        ),
    ),
    (
        {"overflow": "drop"},
        "overflow must be 'block', 'drop_oldest', 'drop_newest' or 'latest', got 'drop'",
    ),
    (
        {"overflow": "latest", "ordered_by": None},
        (
            "overflow='latest' with ordered_by=None: without keys there is no latest of a key. "
            "Use 'drop_oldest', or give ordered_by."
        ),
    ),
    ({"isolate": 1}, "isolate must be True or False, got 1"),
    ({"ack": "late"}, "ack must be 'handled' or 'received', got 'late'"),
    ({"name": ""}, "name must be a text, got ''"),
    ({"where": 3}, "where must map names of path parameters to a pattern or a set of values, got 3"),
    ({"middleware": passing}, "middleware must be a list, such as [log_it], got passing(): write [passing]"),
    (
        {"dependencies": handler},
        "dependencies must be a list, such as [Depends(check)], got handler(): write [Depends(handler)]",
    ),
    ({"dependencies": [handler]}, "dependencies takes Depends(...) only, got handler(): write Depends(handler)"),
    ({"options": {}}, "options must be a RouteOptions(...), got {}"),
    ({"worker": 3}, "unknown option 'worker'. Did you mean 'workers'?"),
    ({"tags": ["a"]}, "unknown option 'tags'. Write options=RouteOptions(tags=...)"),
    (
        {"shared": True, "options": RouteOptions(no_local=True)},
        "no_local with shared is a protocol error [MQTT-3.8.3-4]. Leave one of the two out.",
    ),
]


@pytest.mark.parametrize(("options", "text"), OPTIONS)
def test_a_wrong_option_is_named_with_its_value_its_rule_and_the_way_out(options: dict[str, Any], text: str) -> None:
    assert said(options) == f"handler() on 'a/<x>': {text}"


def test_a_wrong_group_name_says_the_rule() -> None:
    assert "'a/b'" in said({"shared": "a/b"})
    assert "MQTT-4.8.2" in said({"shared": "a/b"})


def test_an_invalid_filter_shows_where() -> None:
    assert said({}, "a/#/b") == (
        "handler() on 'a/#/b': 'a/#/b' is not a topic template: "
        "column 3: '#' must be the last level [MQTT-4.7.1-1]. Write '+' for one level.\n"
        "    a/#/b\n"
        "      ^"
    )


def test_a_constraint_on_an_unknown_parameter_is_refused() -> None:
    assert said({"where": {"y": "[a-z]+"}}).startswith(
        "handler() on 'a/<x>': where={'y': ...}: 'a/<x>' has no parameter 'y'"
    )


def test_an_explicit_name_is_unique_and_both_places_are_named() -> None:
    app = App()
    app.topic("a", name="n")(handler)
    with pytest.raises(ConfigurationError) as caught:
        app.topic("b", name="n")(other)
    text = re.sub(r":\d+", ":LINE", str(caught.value))
    assert text == (
        "other() on 'b' (test_registration.py:LINE): the name 'n' is taken by handler() (test_registration.py:LINE); "
        "names of routes are unique. Give one another name, or its group or include_router(...) a name=, which stands "
        "before those of its routes"
    )


def test_names_are_made_of_module_and_function_and_counted_where_they_repeat() -> None:
    app = App()
    app.topic("a")(handler)
    app.topic("b")(handler)
    assert [route.name for route in app.routes] == [f"{__name__}.handler", f"{__name__}.handler:2"]


def test_the_same_handler_twice_on_one_filter_is_refused() -> None:
    app = App()
    app.topic("a/<x>")(handler)
    with pytest.raises(ConfigurationError, match="it would run twice for each message"):
        app.topic("a/{y}")(handler)
    app.topic("a/<x>", shared=True)(handler)  # another subscription


def test_the_decorator_needs_a_template() -> None:
    with pytest.raises(ConfigurationError, match=r"write @topic\('some/topic'\) above handler"):
        App().topic(handler)  # type: ignore[arg-type]


def test_the_decorator_gives_back_the_function_unchanged() -> None:
    assert App().topic("a")(handler) is handler


def test_a_middleware_that_is_none_is_refused_where_it_is_added() -> None:
    with pytest.raises(ConfigurationError, match="Middleware is 'async def mw"):
        App().add_middleware(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dispatch": "some"}, "App('x'): dispatch must be 'all' or 'first', got 'some'"),
        ({"overlap": "link"}, "App('x'): overlap must be 'ids' or 'links', got 'link'"),
        ({"ack_order": "any"}, "App('x'): ack_order must be 'arrival' or 'completed', got 'any'"),
        ({"session": "long"}, "App('x'): session must be a Session(...) or None, got 'long'"),
        (
            {"broker": b"mqtt://u:s3cret@h"},
            "App('x'): broker must be a URL, such as 'mqtt://localhost:1883', or None, got bytes",  # and no password
        ),
        ({"brokr": "x"}, "App('x'): unknown option 'brokr'. Did you mean 'broker'?"),
        ({"former_filters": "a/b"}, "App('x'): former_filters must be a list, such as ['a/b']"),
        ({"qos": 7}, "App('x'): qos must be 0, 1 or 2, got 7"),
    ],
)
def test_wrong_arguments_of_the_app_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App("x", **arguments)
    assert str(caught.value) == text


def test_the_name_of_an_app_is_a_text() -> None:
    with pytest.raises(ConfigurationError, match=r"^App\(3\): name must be a text or None, got 3$"):
        App(3)  # type: ignore[arg-type]


# -- inheritance


def test_what_is_not_given_is_inherited_from_router_including_router_and_app() -> None:
    app = App(timeout=1, qos=0, concurrency=9)
    outer, inner = Router(prefix="outer", timeout=2), Router(prefix="inner", concurrency=3)
    inner.topic("t", timeout=None)(handler)
    inner.topic("u")(other)
    outer.include_router(inner)
    app.include_router(outer, prefix="p", concurrency=5)
    first, second = app.routes
    assert (first.template.text, first.qos, first.timeout, first.concurrency) == ("p/outer/inner/t", 0, None, 3)
    assert (second.template.text, second.qos, second.timeout, second.concurrency) == ("p/outer/inner/u", 0, 2, 3)


@pytest.mark.parametrize(("prefix", "template"), [("p", "x"), ("p/", "x"), ("p", "/x"), ("/p/", "/x"), ("p//", "x")])
def test_prefix_and_template_are_joined_with_exactly_one_slash(prefix: str, template: str) -> None:
    app = App()
    router = Router(prefix=prefix)
    router.topic(template)(handler)
    app.include_router(router)
    assert app.routes[0].template.text.strip("/") == "p/x"


def test_a_parameter_of_the_prefix_reaches_the_handler() -> None:
    app = App()
    router = Router()

    @router.topic("data")
    async def data(device_id: str) -> None: ...

    app.include_router(router, prefix="devices/<device_id>")
    assert app.routes[0].template.names == ("device_id",)


def test_where_and_dependencies_add_up() -> None:
    async def first() -> None: ...
    async def second() -> None: ...

    app = App(dependencies=[Depends(first)])
    router = Router(prefix="<a>", where={"a": {"1"}})
    router.topic("<b>", where={"b": {"2"}}, dependencies=[Depends(second)])(handler)
    app.include_router(router)
    route = app.routes[0]
    assert [depends.dependency for depends in route.dependencies] == [first, second]
    assert route.template.match("1/2") is not None
    assert route.template.match("2/2") is None
    assert route.template.match("1/1") is None


def test_routes_of_an_included_router_arrive_later_too() -> None:
    app, router = App(), Router()
    app.include_router(router, prefix="p")
    router.topic("late")(handler)
    assert [route.template.text for route in app.routes] == ["p/late"]


def test_a_router_cannot_include_itself() -> None:
    router = Router()
    with pytest.raises(ConfigurationError, match="cannot include itself"):
        router.include_router(router)


def test_topic_for_builds_a_topic_and_names_the_routes_it_knows() -> None:
    app = App()
    app.topic("sensors/<device_id>/data", name="reading")(handler)
    assert app.topic_for("reading", device_id=7) == "sensors/7/data"
    with pytest.raises(ConfigurationError, match="there is no route called 'x': the app has no routes yet"):
        App().topic_for("x")
    with pytest.raises(ConfigurationError) as caught:
        app.topic_for("reading")
    assert str(caught.value) == (
        "topic_for('reading'): 'sensors/<device_id>/data' needs a value for 'device_id'. Write device_id=value."
    )
    with pytest.raises(ConfigurationError, match="there is no route called 'readng': known are 'reading'"):
        app.topic_for("readng")


def test_the_filters_of_a_shared_route_have_its_group() -> None:
    app = App("plant")
    app.topic("a/<x>", shared=True)(handler)
    app.topic("b/<x>", shared="g")(handler)
    assert [route.filters("plant") for route in app.routes] == [("$share/plant/a/+",), ("$share/g/b/+",)]
