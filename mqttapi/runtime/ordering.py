"""The order of messages: which of them run one after the other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mqttapi.logs import RateLimited
from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from mqttapi.message import Message
    from mqttapi.routing import Route

__all__ = ["key_function"]

log = logging.getLogger("mqttapi.handlers")


def key_function(route: Route) -> Callable[[Message], Hashable] | None:
    """What makes a message's key, where the route has a function for it.

    A message for which it raises, or gives nothing hashable, has its topic as key: it was received, so it has to run.
    """
    function = route.ordered_by
    if not callable(function):
        return None
    limit: RateLimited[str] = RateLimited()

    def key_of(message: Message) -> Hashable:
        try:
            key = function(message)
            hash(key)
        except Exception:
            for name, count in limit.summaries():
                log.warning("%s: ordered_by failed for %d more messages than were logged", name, count)
            if limit.allows(route.name):
                log.exception(
                    "%s: ordered_by failed for a message on %s, which is ordered by its topic instead",
                    route.name,
                    printable(message.topic),
                )
            return message.topic
        return key

    return key_of
