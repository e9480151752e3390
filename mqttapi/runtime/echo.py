"""`no_local`: a route does not receive what its own app has published.

The broker's No Local [MQTT5 §3.8.3.1] is about what the subscribing connection has published, and ours publishes
nothing: publishing has a connection of its own. So what the app sends to a topic of such a route has a mark, a user
property, and the route takes no notice of a message with it. The mark is made of the topic as well: it means nothing
on a message that somebody has sent on to another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint
    from mqttapi.publisher import Publish
    from mqttapi.topics import TopicTemplate

__all__ = ["MARK", "Echo"]

MARK: Final = "mqttapi-from"
"""The name of the user property."""


class Echo:
    """What an app published itself, and how it is known.

    Args:
        sender: What all processes of this app on this instance have in common, and nobody else.
        templates: Of the routes with `no_local`.
    """

    def __init__(self, sender: str, templates: Sequence[TopicTemplate]) -> None:
        self._templates = templates
        self._sender = sender
        self._known = lru_cache(maxsize=1024)(self._made)

    def marked(self, publish: Publish) -> Publish:
        """The message, with the mark if a route with `no_local` would get it."""
        if not any(template.match(publish.topic) is not None for template in self._templates):
            return publish
        return dataclasses.replace(publish, user_properties=(*publish.user_properties, self._property(publish.topic)))

    def _property(self, topic: str) -> tuple[str, str]:
        return (self._known if len(topic) <= 256 else self._made)(topic)

    def _made(self, topic: str) -> tuple[str, str]:
        return (MARK, _digest(self._sender, topic))

    def around(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, for what others have published."""
        mark = self._property

        def begin(context: Context) -> Awaitable[object]:
            message = context.message
            return _nothing() if mark(message.topic) in message.user_properties else endpoint(context)

        return begin


async def _nothing() -> None:
    pass


def _digest(sender: str, topic: str) -> str:
    return hashlib.blake2b(f"{sender}\0{topic}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
