"""What `router.republish(source, to)` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.publisher import Publish
from mqttapi.topics import overlaps

if TYPE_CHECKING:
    from mqttapi.context import Context
    from mqttapi.routing.destination import Destination
    from mqttapi.topics import TopicTemplate

__all__ = ["Republish"]
