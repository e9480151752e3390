"""From options to a standing socket, and from a CONNACK to a value or an error. Everything that blocks is here."""

from __future__ import annotations

import math
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected

if TYPE_CHECKING:
    from mqttapi.config.broker import Broker
    from mqttapi.publisher import Publish

__all__ = ["Connack", "ConnectionOptions", "connect_socket", "make_properties", "reason_text", "refusal"]

_FOR_GOOD: Final = frozenset((0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C))
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
    """Seconds that the session outlives the connection. MQTT 5; on 3.1.1 a session is clean or stays for ever."""
    receive_maximum: int | None = None
    """1 to 65,535 unacknowledged QoS 1 and 2 messages at once. MQTT 5."""
    maximum_packet: int | None = None
    """The size in bytes above which the broker drops a packet for us. MQTT 5."""
    keepalive: int = 60
    """Seconds, 0 to 65,535; 0 switches the detection of dead peers off."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """Of a broker with TLS; None: the system's defaults."""
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
        arguments: dict[str, Any] = {
            "hostname": broker.host or "localhost",
            "port": broker.port or 1883,
            "username": broker.username,
            "password": broker.password.get_secret_value() if broker.password is not None else None,
            "identifier": self.client_id,
            "keepalive": self.keepalive,
            "timeout": self.timeout,
            "will": self._will(),
        }
        if not self.mqtt5:
            return arguments | {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": self.clean_start}
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
    reason_code: int = 0
    receive_maximum: int = 65_535
    maximum_packet_size: int | None = None
    maximum_qos: int = 2
    retain_available: bool = True
    wildcard_available: bool = True
    subscription_ids_available: bool = True
    shared_available: bool = True
    session_expiry: int | None = None
    """Seconds, where the broker wants another one than we asked for."""
    server_keep_alive: int | None = None
    assigned_client_id: str | None = None
    topic_alias_maximum: int = 0
    reason: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()

    @classmethod
    def decode(cls, session_present: bool, reason_code: int, properties: Properties | None, mqtt5: bool) -> Connack:
        """From what paho decoded. MQTT 3.1.1 has no subscription identifiers, and says nothing about the rest."""

        def get(name: str, default: Any = None) -> Any:
            return getattr(properties, name, default)

        return cls(
            session_present=session_present,
            reason_code=reason_code,
            receive_maximum=get("ReceiveMaximum", 65_535),
            maximum_packet_size=get("MaximumPacketSize"),
            maximum_qos=get("MaximumQoS", 2),
            retain_available=bool(get("RetainAvailable", 1)),
            wildcard_available=bool(get("WildcardSubscriptionAvailable", 1)),
            subscription_ids_available=mqtt5 and bool(get("SubscriptionIdentifierAvailable", 1)),
            shared_available=bool(get("SharedSubscriptionAvailable", 1)),
            session_expiry=get("SessionExpiryInterval"),
            server_keep_alive=get("ServerKeepAlive"),
            assigned_client_id=get("AssignedClientIdentifier"),
            topic_alias_maximum=get("TopicAliasMaximum", 0),
            reason=get("ReasonString", ""),
            user_properties=tuple(get("UserProperty", ())),
        )


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
    except socket.gaierror:
        raise NotConnected(f"cannot resolve broker host {broker.host!r} ({broker.source})") from None
    except OSError as error:
        raise NotConnected(f"cannot connect to {options.where}: {error.strerror or error}") from None
    return sock


def _wrap_tls(sock: socket.socket, options: ConnectionOptions) -> ssl.SSLSocket:
    host, port = options.broker.host, options.broker.port
    context = options.tls or ssl.create_default_context()
    wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        wrapped.do_handshake()
    except ssl.SSLCertVerificationError as error:
        wrapped.close()
        raise ConnectionRefused(f"TLS: the certificate of {host!r} is not accepted: {error.verify_message}") from None
    except (ssl.SSLError, ConnectionError) as error:
        wrapped.close()
        raise ConnectionRefused(
            f"TLS handshake failed: is port {port} a plain listener? ({getattr(error, 'reason', None) or error})"
        ) from None
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def refusal(body: bytes | bytearray, options: ConnectionOptions) -> BrokerError | None:
    """The error that a CONNACK means, or None when it accepts. `body` is what is behind the length.

    The codes of MQTT 3.1.1 are given as those of MQTT 5: 1 → 0x84, 2 → 0x85, 3 → 0x88, 4 → 0x86, 5 → 0x87.
    """
    code = body[1] if len(body) > 1 else 0x81
    if not code:
        return None
    # A broker that does not know MQTT 5 answers in the form of 3.1.1, whatever was asked.
    code = _MQTT_311_CODES.get(code, code)
    advice = _reason_string(body) or _ADVICE.get(code, "")
    text = f"{options.where} refuses the connection: {reason_text(code, PacketTypes.CONNACK)}" + (
        f": {advice}" if advice else ""
    )
    return ConnectionRefused(text, reason_code=code) if code in _FOR_GOOD else NotConnected(text)


def _reason_string(body: bytes | bytearray) -> str:
    properties = make_properties(PacketTypes.CONNACK)
    try:
        properties.unpack(bytes(body[2:]))  # type: ignore[no-untyped-call]  # paho's are not typed
    except Exception:  # noqa: BLE001  the code alone will do
        return ""
    return str(getattr(properties, "ReasonString", ""))


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
