"""What `router.republish(source, to)` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.context import Context  # noqa: TC001  a handler's hints are read at run time
from mqttapi.errors import Reject
from mqttapi.publisher import Publish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["republishing"]


def republishing(*, retain: bool) -> Callable[[Context], Awaitable[Publish]]:
    """A handler that sends a message on as it came, to the topic of its route's `publish_to`."""

    async def republish(context: Context) -> Publish:
        """Sends messages on to another topic."""
        message, route = context.message, context.route
        assert route.publish_to is not None  # noqa: S101  `Router.republish` gives it
        topic = route.publish_to.topic(context.values_, message.topic)
        if route.template.match(topic) is not None:
            raise Reject(f"republished to {topic!r} it would come back, for ever")
        return Publish(
            topic,
            message.payload,
            qos=message.qos,
            retain=retain,
            expiry=message.message_expiry_interval,
            content_type=message.content_type,
            user_properties=message.user_properties,
            response_topic=message.response_topic,
            correlation_data=message.correlation_data,
            payload_format_indicator=message.properties.payload_format_indicator,
        )

    republish.__qualname__ = "republish"
    return republish
