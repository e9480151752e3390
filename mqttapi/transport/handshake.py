"""From options to a standing socket, and from a CONNACK to a value or an error. Everything that blocks is here."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqttapi.config import tls_failure
from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mqttapi.config.broker import Broker
    from mqttapi.publisher import Publish

__all__ = [
    "Connack",
    "ConnectionOptions",
    "connect_socket",
    "decode_connack",
    "header_size",
    "in_thread",
    "make_properties",
    "missing_bytes",
    "reason_text",
]

_FOR_GOOD: Final = frozenset((0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C))
_MAX_CONNACK: Final = 2**20  # bytes; real ones have some hundred
_MQTT_311_CODES: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}  # CONNACK return codes as MQTT 5 says them
_ADVICE: Final = {
    0x84: "it does not speak this version of MQTT",
    0x85: "choose another client id",
    0x86: "check the user name and the password",
    0x87: "check the user name, the password and the broker's access list",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """What one connection asks for."""

    broker: Broker
    client_id: str
    protocol: Literal["5", "3.1.1"] = "5"
    clean_start: bool = True
    session_expiry: int = 0
    """Seconds that the session outlives the connection. On 3.1.1: 0, or as long as the broker likes."""
    receive_maximum: int | None = None
    """1 to 65,535 unacknowledged QoS 1 and 2 messages at once. MQTT 5."""
    maximum_packet: int | None = None
    """The size in bytes above which the broker drops a packet for us. MQTT 5."""
    keepalive: int = 60
    """Seconds, 0 to 65,535; 0 switches the detection of dead peers off."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """Of a broker with TLS; None: the system's defaults."""
    ca_file: Path | None = None
    """What `tls` trusts, for the texts of errors."""
    credentials: Callable[[], Awaitable[object]] | None = field(default=None, repr=False)
    """Asked for user name and password at every connect, in place of those in `broker`."""
    will: Publish | None = None
    """Published by the broker when the connection ends without DISCONNECT; its payload is bytes."""
    will_delay: int = 0
    """Seconds. MQTT 5."""
    timeout: float = 10.0
    """Seconds for connecting, and for the answers to CONNECT, SUBSCRIBE and UNSUBSCRIBE."""

    @property
    def mqtt5(self) -> bool:
        return self.protocol == "5"

    @property
    def where(self) -> str:
        """The broker, for messages: `mqtt://host:1883`, never with a password."""
        return f"{self.broker.scheme}://{self.broker.address}"

    def client_arguments(self) -> dict[str, Any]:
        """What aiomqtt's client takes; the socket is made by `connect_socket`."""
        broker = self.broker
        nameless = broker.username is None and broker.password is not None and self.mqtt5
        arguments: dict[str, Any] = {
            "hostname": broker.host or "localhost",
            "port": broker.port or 1883,
            # paho leaves a password without a user name out, which MQTT 5 allows.
            "username": "" if nameless else broker.username,
            "password": broker.password.get_secret_value() if broker.password is not None else None,
            "identifier": self.client_id,
            "keepalive": self.keepalive,
            "timeout": self.timeout,
            "will": self._will(),
        }
        if not self.mqtt5:
            return arguments | {
                "protocol": aiomqtt.ProtocolVersion.V311,
                "clean_session": self.clean_start or not self.session_expiry,
            }
        properties = make_properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self.session_expiry,
            ReceiveMaximum=self.receive_maximum,
            MaximumPacketSize=self.maximum_packet,
        )
        return arguments | {
            "protocol": aiomqtt.ProtocolVersion.V5,
            "clean_start": self.clean_start,
            "properties": properties,
        }

    def _will(self) -> aiomqtt.Will | None:
        will = self.will
        if will is None:
            return None
        properties = None
        if self.mqtt5:
            properties = make_properties(
                PacketTypes.WILLMESSAGE,
                WillDelayInterval=self.will_delay,
                MessageExpiryInterval=None if will.expiry is None else math.ceil(will.expiry),
                ContentType=will.content_type,
                ResponseTopic=will.response_topic,
                CorrelationData=will.correlation_data,
                UserProperty=list(will.user_properties) or None,
            )
        return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


@dataclass(frozen=True, slots=True)
class Connack:
    """What the broker said when it accepted [MQTT5 §3.2.2]; absent properties have the specification's defaults."""

    session_present: bool = False
    receive_maximum: int = 65_535
    maximum_packet_size: int | None = None
    maximum_qos: int = 2
    retain_available: bool = True
    wildcard_available: bool = True
    subscription_ids_available: bool = True
    """Never on MQTT 3.1.1, which has none."""
    shared_available: bool = True
    session_expiry: int | None = None
    """Seconds, where the broker wants another one than we asked for."""
    server_keep_alive: int | None = None
    assigned_client_id: str | None = None
    topic_alias_maximum: int = 0
    reason: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()


def connect_socket(options: ConnectionOptions) -> Any:
    """A connected socket, TLS socket or paho's wrapper for WebSockets, all handshakes done. Blocks.

    Raises:
        ConnectionRefused: TLS failed, which waiting does not mend.
        NotConnected: anything else.
    """
    broker = options.broker
    sock = _connect(options)
    try:
        if broker.tls:
            sock = _wrap_tls(sock, options)
        if broker.scheme in {"ws", "wss"}:
            return paho._WebsocketWrapper(
                socket=sock,
                host=broker.host,
                port=broker.port,
                is_ssl=broker.tls,
                path=broker.path or "/mqtt",
                extra_headers=None,
            )
    except paho.WebsocketConnectionError as error:
        sock.close()
        raise NotConnected(
            f"WebSocket handshake with {options.where} failed: is {broker.path!r} the right path? ({error})"
        ) from None
    except OSError as error:
        sock.close()
        raise NotConnected(f"cannot connect to {options.where}: {error}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(options: ConnectionOptions) -> socket.socket:
    broker = options.broker
    try:
        if broker.scheme != "unix":
            return socket.create_connection((broker.host, broker.port), options.timeout)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(options.timeout)
            sock.connect(broker.path)
        except BaseException:
            sock.close()
            raise
    except (socket.gaierror, UnicodeError):  # which a name that is no IDNA is
        raise NotConnected(f"cannot resolve broker host {broker.host!r} ({broker.source})") from None
    except OSError as error:
        raise NotConnected(f"cannot connect to {options.where}: {error.strerror or error}") from None
    return sock


def _wrap_tls(sock: socket.socket, options: ConnectionOptions) -> ssl.SSLSocket:
    context = options.tls or ssl.create_default_context()
    wrapped = context.wrap_socket(sock, server_hostname=options.broker.host, do_handshake_on_connect=False)
    try:
        wrapped.do_handshake()
    except (ssl.SSLError, ConnectionError) as error:
        wrapped.close()
        raise ConnectionRefused(tls_failure(error, options.broker, options.ca_file)) from None
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def decode_connack(body: bytes, options: ConnectionOptions) -> Connack | BrokerError:
    """The value of a CONNACK that accepts, or the error that it means. `body` is what is behind the length.

    The codes of MQTT 3.1.1 are given as those of MQTT 5: 1 → 0x84, 2 → 0x85, 3 → 0x88, 4 → 0x86, 5 → 0x87.
    """
    where = options.where
    properties = make_properties(PacketTypes.CONNACK)
    # A broker that does not know MQTT 5 refuses in the form of 3.1.1, whatever was asked.
    old = len(body) == 2 and (not options.mqtt5 or body[1] in _MQTT_311_CODES)
    if not old:
        try:
            if len(body) < 3 or properties.unpack(body[2:])[1] != len(body) - 2:  # type: ignore[no-untyped-call]  # paho's are not typed
                raise ValueError(f"{len(body)} bytes")
        except Exception as error:  # noqa: BLE001  whatever a decoder makes of nonsense
            return NotConnected(f"{where} sent a malformed CONNACK: {error}")

    def get(name: str, default: Any = None) -> Any:
        return getattr(properties, name, default)

    code = _MQTT_311_CODES.get(body[1], body[1])
    if code:
        advice = get("ReasonString") or _ADVICE.get(code, "")
        text = f"{where} refuses the connection: {reason_text(code, PacketTypes.CONNACK)}{advice and f': {advice}'}"
        return ConnectionRefused(text, reason_code=code) if code in _FOR_GOOD else NotConnected(text)
    return Connack(
        session_present=bool(body[0] & 1),
        receive_maximum=get("ReceiveMaximum", 65_535),
        maximum_packet_size=get("MaximumPacketSize"),
        maximum_qos=get("MaximumQoS", 2),
        retain_available=bool(get("RetainAvailable", 1)),
        wildcard_available=bool(get("WildcardSubscriptionAvailable", 1)),
        subscription_ids_available=options.mqtt5 and bool(get("SubscriptionIdentifierAvailable", 1)),
        shared_available=bool(get("SharedSubscriptionAvailable", 1)),
        session_expiry=get("SessionExpiryInterval"),
        server_keep_alive=get("ServerKeepAlive"),
        assigned_client_id=get("AssignedClientIdentifier"),
        topic_alias_maximum=get("TopicAliasMaximum", 0),
        reason=get("ReasonString", ""),
        user_properties=tuple(get("UserProperty", ())),
    )


def make_properties(packet_type: int, **values: Any) -> Properties:
    """Properties as paho has them; None leaves one out."""
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho's are not typed
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def reason_text(code: int, packet_type: int) -> str:
    """`Not authorized (0x87)`."""
    try:
        return f"{ReasonCode(packet_type, identifier=code).getName()} (0x{code:02X})"
    except (KeyError, ValueError):
        return f"reason code 0x{code:02X}"


def missing_bytes(packet: bytearray) -> int:
    """How many bytes are known to be missing from a CONNACK that has come in part; -1: its length cannot be right."""
    size = header_size(packet)
    if size == 0:
        return -1 if len(packet) > 4 else 1
    remaining = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(packet[1:size]))
    return size + remaining - len(packet) if remaining <= _MAX_CONNACK else -1


def header_size(packet: bytearray) -> int:
    """The size of type and length, 2 to 5 bytes, or 0 when the length is not complete."""
    return next((index + 1 for index in range(1, min(len(packet), 5)) if packet[index] < 0x80), 0)


async def in_thread(function: Callable[[], object], name: str) -> None:
    """Run `function` in a daemon thread of its own: executors may be full of handlers, and are waited for at exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as caught:  # noqa: BLE001  handed over
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done
