"""What a broker does not take, so that it is not sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mqttapi.errors import PublishRefused
from mqttapi.message import printable
from mqttapi.transport.encoding import has_properties
from mqttapi.transport.handshake import Connack

if TYPE_CHECKING:
    from mqttapi.publisher import Publish
    from mqttapi.transport.pending import Pending

__all__ = ["Limits"]

log = logging.getLogger("mqttapi.publishing")


class Limits:
    """What the CONNACK of the connection that stands has announced [MQTT-3.2.2-11, MQTT-3.2.2-14, MQTT-3.2.2-15]."""

    def __init__(self) -> None:
        self.any = False
        """Whether there is something to `check`."""
        self._connack = Connack()
        self._mqtt5 = True
        self._dropped_properties = False

    def announced(self, connack: Connack, *, mqtt5: bool) -> None:
        """Another connection stands, which speaks MQTT 5, or 3.1.1."""
        self._connack = connack
        self._mqtt5 = mqtt5
        self.any = (
            connack.maximum_qos < 2
            or not connack.retain_available
            or connack.maximum_packet_size is not None
            or not mqtt5
        )

    def check(self, entry: Pending) -> None:
        """Look at a publish, and its packet, before it goes.

        Raises:
            PublishRefused: The broker would not take it.
        """
        publish, packet, connack = entry.publish, entry.packet, self._connack
        if not self._mqtt5:
            self._warn_of_properties(publish)
        if publish.qos > connack.maximum_qos:
            text = f"{entry.label}: the broker takes QoS {connack.maximum_qos} at most, not {publish.qos}"
            raise PublishRefused(text, reason_code=0x9B)
        if publish.retain and not connack.retain_available:
            raise PublishRefused(f"{entry.label}: the broker does not retain messages", reason_code=0x9A)
        most = connack.maximum_packet_size
        if most is not None and len(packet) > most:
            text = f"{entry.label}: its packet of {len(packet)} bytes is larger than the broker takes ({most})"
            raise PublishRefused(text, reason_code=0x95)

    def _warn_of_properties(self, publish: Publish) -> None:
        if has_properties(publish) and not self._dropped_properties:
            self._dropped_properties = True
            log.warning(
                "MQTT 3.1.1 has no message properties: expiry, content type, user properties, response topic and "
                "correlation data are left out, such as those of a publish to %r",
                printable(publish.topic),
            )
