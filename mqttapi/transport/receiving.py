"""From a readable socket to the intake: our own splitter, or paho where its internals are not what we know."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from mqttapi.errors import ConfigurationError
from mqttapi.message import NO_PROPERTIES, HeavyProperties, Properties
from mqttapi.transport.connection import internals_available
from mqttapi.transport.packets import PUBREL, MalformedPacket, Refused, Splitter

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

    from mqttapi.runtime.intake import Intake
    from mqttapi.transport.connection import Connection

__all__ = ["Receiver", "receiver_of"]

log = logging.getLogger("mqttapi.link")


class Receiver(Protocol):
    """Reads one connection."""

    def start(self) -> None:
        """Begin to read."""

    def pause(self) -> None:
        """Stop to parse and to read."""

    def resume(self) -> None:
        """Go on with what was read, then read."""


def receiver_of(connection: Connection, intake: Intake, max_payload: int) -> Receiver:
    """The fast path, or the plain one, with a warning, where the installed paho-mqtt lacks what the fast one needs.

    Raises:
        ConfigurationError: The plain one would have to serve a route of QoS 2.
    """
    missing = internals_available()
    if not missing:
        return SplittingReceiver(connection, intake, max_payload)
    exactly_once = [each.routes for each in intake.dispatcher.own if each.qos == 2]
    if exactly_once:
        raise ConfigurationError(
            f"qos=2 of {', '.join(exactly_once)}: the installed paho-mqtt has no {', '.join(missing)}, and without "
            "these it sends PUBREC before a handler has run. Install paho-mqtt 2.2, or use qos=1"
        )
    log.warning("paho-mqtt has no %s: messages are read by paho, many times slower", ", ".join(missing))
    return PlainReceiver(connection, intake)


class SplittingReceiver:
    """The fast path: one system call for as much as the socket holds, PUBLISH and PUBREL handled here."""

    def __init__(self, connection: Connection, intake: Intake, max_payload: int) -> None:
        options = connection.options
        self._connection = connection
        self._intake = intake
        self._splitter = Splitter(
            mqtt5=options.mqtt5,
            on_publish=intake.receive,
            on_refused=self._refused,
            on_ack=self._on_ack,
            on_other=connection.feed_packet,
            max_payload=max_payload,
            max_packet=options.maximum_packet or 1 << 28,
        )

    def start(self) -> None:
        self._connection.start(self._receive)

    def pause(self) -> None:
        self._splitter.paused = True
        self._connection.pause_reading()

    def resume(self) -> None:
        self._walk(None)
        if not self._splitter.paused:
            self._connection.resume_reading()

    def _receive(self) -> None:
        data = self._connection.read()
        if data:
            self._walk(data)
        elif data is not None:
            self._connection.connection_lost()

    def _walk(self, data: bytes | None) -> None:
        self._intake.batch_begin()
        try:
            if data is None:
                self._splitter.resume()
            else:
                self._splitter.feed(data)
        except MalformedPacket as error:
            self._connection.abort(error.reason_code, str(error))
        self._intake.batch_end()

    def _refused(self, refused: Refused) -> None:
        self._intake.refuse(refused.topic, refused.packet_id, refused.qos, refused.reason)

    def _on_ack(self, kind: int, packet_id: int, reason_code: int) -> None:
        if kind == PUBREL:
            self._intake.release(packet_id)


class PlainReceiver:
    """The fallback: paho reads and decodes. Not for QoS 2: paho sends PUBREC before the handlers have run."""

    def __init__(self, connection: Connection, intake: Intake) -> None:
        self._connection = connection
        self._intake = intake
        connection.on_message = self._on_message

    def start(self) -> None:
        self._connection.start()

    def pause(self) -> None:
        self._connection.pause_reading()

    def resume(self) -> None:
        self._connection.resume_reading()

    def _on_message(self, received: MQTTMessage) -> None:
        try:
            topic = received.topic
        except UnicodeDecodeError:
            self._intake.refuse(str(received._topic), received.mid, received.qos, "its topic is not UTF-8")
            return
        self._intake.batch_begin()
        self._intake.receive(
            topic,
            bytes(received.payload),
            received.qos,
            bool(received.retain),
            bool(received.dup),
            received.mid,
            _properties(received),
        )
        self._intake.batch_end()


def _properties(received: MQTTMessage) -> Properties:
    """What paho decoded; its attributes are there only where the property was."""
    wire: dict[str, Any] = vars(received.properties) if received.properties is not None else {}
    properties = Properties(
        content_type=wire.get("ContentType"),
        response_topic=wire.get("ResponseTopic"),
        correlation_data=wire.get("CorrelationData"),
        user_properties=tuple(wire.get("UserProperty", ())),
        message_expiry_interval=wire.get("MessageExpiryInterval"),
        payload_format_indicator=wire.get("PayloadFormatIndicator", 0),
        subscription_ids=tuple(wire.get("SubscriptionIdentifier", ())),
    )
    return HeavyProperties.of(properties) if properties != NO_PROPERTIES else NO_PROPERTIES
