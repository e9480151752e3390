"""Runs one handler for one message, without an app."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttapi.context import Context
from mqttapi.errors import ConfigurationError
from mqttapi.injection import analyse, compile_plan
from mqttapi.message import Message, Properties
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mqttapi.injection import Depends, Endpoint

TEMPLATE = "sensors/<device_id>/data"


def journey(
    payload: bytes = b"",
    *,
    template: str = TEMPLATE,
    topic: str = "sensors/7/data",
    user_properties: Sequence[tuple[str, str]] = (),
    app: object = None,
) -> Context:
    """The context of one message."""
    parsed = TopicTemplate(template)
    values = parsed.match(topic)
    assert values is not None, f"{topic} does not match {template}"
    message = Message(topic, payload, properties=Properties(user_properties=tuple(user_properties)))
    return Context(
        message, cast("Any", SimpleNamespace(template=parsed, name="test", missing=None)), values, cast("Any", app)
    )


def endpoint_of(
    handler: Callable[..., Any],
    *,
    template: str = TEMPLATE,
    dependencies: Sequence[Depends] = (),
    resources: Mapping[type[Any], Any] | None = None,
    overrides: Mapping[Any, Any] | None = None,
) -> Endpoint:
    resources = resources or {}
    signature = analyse(handler, template=TopicTemplate(template), resources=resources, dependencies=dependencies)
    return compile_plan(signature, resources=resources, overrides=overrides)


async def run(handler: Callable[..., Any], payload: bytes = b"", **given: Any) -> Any:
    """What `handler` returns for one message."""
    mine = {"template", "dependencies", "resources", "overrides"}
    endpoint = endpoint_of(handler, **{name: value for name, value in given.items() if name in mine})
    return await endpoint(journey(payload, **{n: v for n, v in given.items() if n not in mine or n == "template"}))


def refusal(handler: Any, *, template: str = TEMPLATE, resources: Collection[type[Any]] = (), **given: Any) -> str:
    """The text with which a handler is refused at registration."""
    with pytest.raises(ConfigurationError) as caught:
        analyse(handler, template=TopicTemplate(template), resources=resources, **given)
    return str(caught.value)
