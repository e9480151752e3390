"""`retry`, `dead_letter` and `publish_to`: what is wrong with them is said where they are written, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from mqttapi import App, ConfigurationError, Retry, Router
from mqttapi.topics import register_converter


async def handler() -> None: ...


def said(template: str = "a/<x>", **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        App().topic(template, **options)(handler)
    prefix = f"handler() on {template!r}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retry": 0}, "retry must be a Retry(...), the number of attempts from 1 to 100, or None, got 0"),
        ({"retry": True}, "retry must be a Retry(...), the number of attempts from 1 to 100, or None, got True"),
        ({"retry": "3"}, "retry must be a Retry(...), the number of attempts from 1 to 100, or None, got '3'"),
        ({"dead_letter": ""}, "dead_letter must be a template, such as 'dead/<topic>', or None, got ''"),
        ({"dead_letter": 3}, "dead_letter must be a template, such as 'dead/<topic>', or None, got 3"),
        ({"publish_to": 3}, "publish_to must be a template, such as 'publish/<topic>', or None, got 3"),
        ({"dead_leter": "x"}, "unknown option 'dead_leter'. Did you mean 'dead_letter'?"),
        (
            {"dead_letter": "dead/<y>"},
            "dead_letter: 'dead/<y>' has a parameter 'y', which is none of the route's. There are: x, topic, route",
        ),
        ({"dead_letter": "dead/#"}, "dead_letter: 'dead/#' holds a wildcard: a message goes to one topic"),
        ({"dead_letter": "$dead"}, "dead_letter: '$dead' begins with '$': such topics belong to the broker"),
        (
            {"dead_letter": "<topic>/dead"},
            (
                "dead_letter: '<topic>/dead' begins with a parameter, which might begin with '$' [MQTT5 §4.7.2]. "
                "Start it with a literal"
            ),
        ),
        (
            {"publish_to": "out/x-<topic>"},
            "publish_to: 'out/x-<topic>' has <topic> as a part of a level. Make it a level of its own",
        ),
        (
            {"publish_to": "out/<route:slug>"},
            "publish_to: 'out/<route:slug>' restricts <route>, which is given as it is. Write <route>",
        ),
        (
            {"dead_letter": "dead/<route>", "name": "a/b"},
            (
                "dead_letter: 'dead/<route>' cannot hold the route's name 'a/b'. "
                "Give the route a name without '/', '+' and '#'"
            ),
        ),
        (
            {"template": "a/<x?>", "dead_letter": "dead/<x>"},
            "dead_letter: 'dead/<x>' needs a value for 'x', which is optional in 'a/<x?>'. Leave it out, or write <x?>",
        ),
        (
            {"template": "a/<x:path>", "publish_to": "out/<x>"},
            (
                "publish_to: 'out/<x>' takes one level for 'x', which has several in 'a/<x:path>'. "
                "Write <x:path> at its end"
            ),
        ),
        (
            {"template": "a/<x:point>", "dead_letter": "dead/<x>"},
            "dead_letter: 'dead/<x>' cannot hold 'x', which is a complex. Write <x:point>",
        ),
    ],
)
def test_a_wrong_option_is_named_with_its_value_its_rule_and_the_way_out(options: dict[str, Any], text: str) -> None:
    register_converter("point", r"[0-9j+]+", complex, complex)
    assert said(**options) == text


def test_what_is_no_template_shows_where() -> None:
    assert said(dead_letter="dead/<").startswith("dead_letter: 'dead/<' is not a topic template: column ")


@pytest.mark.parametrize(
    ("template", "destination", "topic", "rendered"),
    [
        ("a/<x>", "dead/<topic>", "a/1", "dead/a/1"),
        ("a/#", "dead/{topic}/of/<route>", "a//", "dead/a///of/r"),
        ("a/<x:int>", "out/<x>/y", "a/7", "out/7/y"),
        ("a/<x:path>", "out/<x:path>", "a/1/2", "out/1/2"),
        ("a/<x?>", "out/<x?>", "a", "out"),
        ("a/<x?>", "out/<x?>", "a/1", "out/1"),
        ("a/dev-<x>", "out/<x>-dev", "a/dev-1", "out/1-dev"),
        ("a/<topic>", "dead/<topic>", "a/1", "dead/1"),
        ("a/#", "<route>/x", "a/1", "r/x"),
    ],
)
def test_a_destination_is_made_of_the_routes_parameters(
    template: str, destination: str, topic: str, rendered: str
) -> None:
    """Its own parameters come before `<topic>` and `<route>`."""
    app = App()
    app.topic(template, name="r", dead_letter=destination)(handler)
    route = app.routes[0]
    values = route.template.match(topic)
    assert values is not None
    assert route.dead_letter is not None
    assert route.dead_letter.topic(values, topic) == rendered


def test_retry_is_inherited_as_other_options_are() -> None:
    app, router = App(retry=5), Router(retry=Retry(attempts=2))
    router.topic("a")(handler)
    router.topic("b", retry=None)(handler)
    app.include_router(router)
    app.topic("c")(handler)
    app.topic("d", retry=1)(handler)
    assert {route.template.text: route.retry for route in app.routes} == {
        "a": Retry(attempts=2),
        "b": None,
        "c": Retry(attempts=5),
        "d": None,
    }
