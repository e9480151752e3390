"""One message and one middleware, without an app."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from mqttapi.context import Context
from mqttapi.errors import Drop, Reject
from mqttapi.message import Message, Properties
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Clock", "fate", "message"]


def message(
    topic: str = "sensors/7/data",
    payload: bytes = b"",
    *,
    template: str = "sensors/<device_id>/data",
    route: str = "ingest",
    shared: bool = False,
    expiry: int | None = None,
    properties: Mapping[str, str] | None = None,
) -> Context:
    """The context of one message."""
    parsed = TopicTemplate(template)
    values = parsed.match(topic)
    assert values is not None, f"{topic} does not match {template}"
    sent = Properties(user_properties=tuple((properties or {}).items()), message_expiry_interval=expiry)
    return Context(
        Message(topic, payload, 1, properties=sent),
        cast("Any", SimpleNamespace(template=parsed, name=route, shared=shared)),
        values,
        cast("Any", SimpleNamespace(name="plant")),
    )


async def fate(middleware: Any, context: Context) -> str:
    """`passed`, `dropped: …` or `rejected: …`."""

    async def handler(context: Context) -> str:
        return "passed"

    try:
        return cast("str", await middleware.handle(context, handler))
    except Drop as drop:
        return f"dropped: {drop.reason}"
    except Reject as reject:
        return f"rejected: {reject.reason}"


class Clock:
    """A clock that goes when it is told to, and when somebody sleeps."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
