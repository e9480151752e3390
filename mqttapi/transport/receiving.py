"""From a readable socket to the intake: our own splitter, or paho where its internals are not what we know."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from paho.mqtt.enums import MQTTErrorCode

from mqttapi.errors import ConfigurationError
from mqttapi.message import NO_PROPERTIES, HeavyProperties, Properties
from mqttapi.transport.connection import internals_available
from mqttapi.transport.packets import PUBREL, MalformedPacket, Refused, Splitter, decode_topic, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import Client, MQTTMessage

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
    return PlainReceiver(connection, intake, max_payload)


class SplittingReceiver:
    """The fast path: one system call for as much as the socket holds, PUBLISH and PUBREL handled here."""

    def __init__(self, connection: Connection, intake: Intake, max_payload: int) -> None:
        options = connection.options
        connection.reads_only_if_read = True
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

    def __init__(self, connection: Connection, intake: Intake, max_payload: int) -> None:
        connection.reads_only_if_read = True
        self._connection = connection
        self._intake = intake
        self._max_payload = max_payload
        self._decoded = False  # whether paho has got through the PUBLISH at hand
        connection.on_message = self._on_message
        client = connection._client
        if hasattr(client, "_handle_publish") and hasattr(client, "_in_packet"):
            client._handle_publish = partial(self._handle, client, client._handle_publish)  # type: ignore[method-assign]  # what does not decode would end the connection, again and again

    def start(self) -> None:
        self._connection.start()

    def pause(self) -> None:
        self._connection.pause_reading()

    def resume(self) -> None:
        self._connection.resume_reading()

    def _on_message(self, received: MQTTMessage) -> None:
        self._decoded = True
        raw, size = bytes(received._topic), len(received.payload)
        try:
            topic = decode_topic(raw)
            if size > self._max_payload:
                raise ValueError(f"its payload of {size:,} bytes is over max_payload ({self._max_payload:,})")
        except ValueError as error:
            self._intake.refuse(shown(raw), received.mid, received.qos, str(error))
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

    def _handle(self, client: Client, handle: Callable[[], MQTTErrorCode]) -> MQTTErrorCode:
        """Stands in for paho's handling of a PUBLISH: refuses one whose properties it cannot decode."""
        self._decoded = False
        try:
            return handle()
        except Exception as error:
            packet, qos = bytes(client._in_packet["packet"]), client._in_packet["command"] >> 1 & 0x03
            end = 2 + int.from_bytes(packet[:2], "big")
            packet_id = int.from_bytes(packet[end : end + 2], "big") if qos else 0
            if self._decoded or qos == 3 or end > len(packet) or (qos and not packet_id):
                raise  # it is something else, or nobody can tell what to acknowledge
            self._intake.refuse(shown(packet[2:end]), packet_id, qos, f"it does not decode ({type(error).__name__})")
            return MQTTErrorCode.MQTT_ERR_SUCCESS


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
