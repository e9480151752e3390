"""One publish on its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.message import printable

if TYPE_CHECKING:
    import asyncio

    from mqttapi.publisher import Publish, PublishResult

__all__ = ["Pending"]


class Pending:
    """It is not done; see `Sender` for the way that it goes."""

    __slots__ = ("deadline", "ended", "future", "packet", "packet_id", "publish", "reason_code", "received")

    def __init__(self, publish: Publish, future: asyncio.Future[PublishResult]) -> None:
        self.publish = publish
        self.future = future
        self.packet_id = 0
        self.packet = b""
        self.received = False  # QoS 2: the broker has sent PUBREC, only PUBREL may follow [MQTT-4.3.3-6]
        self.reason_code = 0
        self.deadline: float | None = None  # when it expires
        self.ended = 0  # connections that ended while it was alone on the wire

    @property
    def label(self) -> str:
        """What the texts of its errors begin with."""
        return f"publish to {printable(self.publish.topic)!r}"
