"""`Middleware`: a base for middleware that is a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from mqttapi.resources.access import Access

if TYPE_CHECKING:
    from mqttapi.context import Context
    from mqttapi.injection import Endpoint

__all__ = ["Middleware"]


class Middleware(Access, ABC):
    """Middleware with `self.redis`, `self.db`, `self.publish(…)` and `self.logger` at hand.

        class Known(Middleware):
            async def handle(self, context, next_handler):
                context["rows"] = await self.db.query("SELECT * FROM devices WHERE id = :id", id=context["device_id"])
                return await next_handler(context)

    One object serves all messages, many at a time: keep nothing of a message in `self`.
    """

    @abstractmethod
    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Run around what is inside: `return await next_handler(context)`. Without that the message ends here."""
