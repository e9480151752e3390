"""The connections of `mqttapi pub` and `mqttapi sub`: no session is kept, and a broker that is away is an error."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from paho.mqtt.packettypes import PacketTypes

from mqttapi.config import tls_context
from mqttapi.errors import ConnectionRefused, NotConnected
from mqttapi.message import Message, Properties
from mqttapi.transport.connection import Connection, Subscription
from mqttapi.transport.handshake import ConnectionOptions, reason_text
from mqttapi.transport.publishing import PublishingConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from paho.mqtt.client import MQTTMessage

    from mqttapi.config import Broker, Settings
    from mqttapi.publisher import Publish, PublishResult

__all__ = ["publish", "subscribe"]

_UNSUPPORTED_VERSION: Final = 0x84
_ANSWER_SECONDS: Final = 30.0
_CONNECTIONS: Final = 3  # MQTT 5, MQTT 3.1.1, and one that is lost midway


async def publish(broker: Broker, settings: Settings, message: Publish) -> PublishResult:
    """Send a message whose payload is bytes, and return when the broker has confirmed it (QoS 0: when it is written).

    Raises:
        BrokerError: The broker cannot be reached, does not answer, or refuses the connection or the message.
    """
    publishing = PublishingConnection(_options(broker, settings), protocol_fallback=True)
    result = publishing.sender.submit(message)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            for _ in range(_CONNECTIONS):
                standing = asyncio.create_task(publishing._one_connection(), name="mqttapi[pub]")
                try:
                    await asyncio.wait((result, standing), return_when=asyncio.FIRST_COMPLETED)
                    if result.done():
                        return result.result()
                    await standing
                finally:
                    standing.cancel()
    except TimeoutError:
        raise NotConnected(f"{broker} does not confirm the message within {_ANSWER_SECONDS:g} s") from None
    finally:
        result.cancel()
        await publishing._close()
    raise NotConnected(f"{broker}: {publishing.state}")


async def subscribe(
    broker: Broker,
    settings: Settings,
    filters: Sequence[str],
    *,
    qos: Literal[0, 1, 2],
    ready: Callable[[], None],
    show: Callable[[Message], bool],
) -> None:
    """Subscribe, call `ready`, and then `show` with each message until that returns False; shown is acknowledged.

    Raises:
        BrokerError: The broker cannot be reached or goes away, or refuses the connection or a filter.
    """
    async with _connected(broker, settings) as connection:
        enough: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_message(received: MQTTMessage) -> None:
            if enough.done():
                return
            try:
                more = show(_message(received))
            except OSError as error:  # whoever read our output has gone
                enough.set_exception(error)
                return
            connection.ack(received.mid, received.qos)
            if not more:
                enough.set_result(None)

        held: list[MQTTMessage] = []
        connection.on_message = held.append  # retained messages may overtake the SUBACK
        connection.start()
        codes = await connection.subscribe_all([Subscription(filter, qos) for filter in filters])
        for filter, code in zip(filters, codes, strict=True):
            if code >= 0x80:
                reason = reason_text(code, PacketTypes.SUBACK)
                raise ConnectionRefused(f"{broker} refuses {filter!r}: {reason}", reason_code=code)
        ready()
        connection.on_message = on_message
        for received in held:
            on_message(received)
        await asyncio.wait((enough, connection.closed), return_when=asyncio.FIRST_COMPLETED)
        if not enough.done():
            raise NotConnected(f"{broker}: {connection.closed.result().reason}")
        enough.result()


def _options(broker: Broker, settings: Settings) -> ConnectionOptions:
    return ConnectionOptions(
        broker=broker,
        client_id=f"mqttapi-{secrets.token_hex(4)}",
        protocol=settings.protocol,
        maximum_packet=settings.max_packet,
        keepalive=settings.keepalive,
        tls=tls_context(broker, settings),
        ca_file=settings.tls_ca_file,
    )


@contextlib.asynccontextmanager
async def _connected(broker: Broker, settings: Settings) -> AsyncIterator[Connection]:
    options = _options(broker, settings)
    connection = Connection(options)
    try:
        await connection.open()
    except ConnectionRefused as error:
        if error.reason_code != _UNSUPPORTED_VERSION or not options.mqtt5:
            raise
        connection = Connection(replace(options, protocol="3.1.1"))
        await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


def _message(received: MQTTMessage) -> Message:
    """With the properties that `sub` shows; paho has an attribute where there is one."""
    wire: dict[str, Any] = vars(received.properties) if received.properties is not None else {}
    properties = Properties(
        content_type=wire.get("ContentType"),
        response_topic=wire.get("ResponseTopic"),
        user_properties=tuple(wire.get("UserProperty", ())),
    )
    return Message(received.topic, bytes(received.payload), received.qos, received.retain, properties=properties)
