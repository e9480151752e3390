"""What the wire said: one PUBLISH, frozen."""

from __future__ import annotations

from sys import getsizeof
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_PROPERTIES", "HeavyProperties", "Message", "Properties", "printable", "size_of"]

_PAIR: Final = 72  # bytes of a tuple of two, and its place in another one
_ID: Final = 36  # bytes of an int, and its place in a tuple


class Properties(NamedTuple):
    """The properties of an MQTT 5 PUBLISH [MQTT5 §3.3.2.3]; all empty on MQTT 3.1.1."""

    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    """In the order of the sender; a name may be there more than once [MQTT-3.3.2-17]."""
    message_expiry_interval: int | None = None
    """Seconds that were left when the broker sent the message."""
    payload_format_indicator: int = 0
    """0: bytes; 1: the sender says that the payload is UTF-8 text."""
    subscription_ids: tuple[int, ...] = ()


NO_PROPERTIES: Final = Properties()


class HeavyProperties(Properties):
    """Those that count among the bytes that are held: there is no bound on how many a sender may write."""

    weight: int
    """Bytes of memory, about."""

    @classmethod
    def of(cls, properties: Properties) -> HeavyProperties:
        """The same, weighed."""
        heavy = cls(*properties)
        texts = (text for pair in properties.user_properties for text in pair)
        heavy.weight = (
            sum(map(getsizeof, texts))
            + _PAIR * len(properties.user_properties)
            + _ID * len(properties.subscription_ids)
            + sum(map(getsizeof, (properties.content_type, properties.response_topic, properties.correlation_data)))
        )
        return heavy


def size_of(message: Message) -> int:
    """What a message counts among the bytes that are held: characters of its topic, bytes of payload and properties."""
    properties = message._properties
    weight = properties.weight if isinstance(properties, HeavyProperties) else 0
    return len(message._topic) + len(message._payload) + weight


class Message:
    """One message as it came from the broker. It cannot be changed; write to the `Context` instead.

    Its topic is what the sender wrote, and may hold control characters: use `printable` before it
    goes to a terminal or a log (MQTTAPI's own logs do).
    """

    __slots__ = ("_dup", "_packet_id", "_payload", "_properties", "_qos", "_retain", "_topic")

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        self._topic = topic
        self._payload = payload
        self._qos = qos
        self._retain = retain
        self._dup = dup
        self._packet_id = packet_id
        self._properties = properties

    @property
    def topic(self) -> str:
        """The topic name, byte for byte what the sender wrote."""
        return self._topic

    @property
    def payload(self) -> bytes:
        """The application message, as it came."""
        return self._payload

    @property
    def qos(self) -> int:
        """0, 1 or 2: the quality of service of this delivery."""
        return self._qos

    @property
    def retain(self) -> bool:
        """True when the broker sent a retained message because of a new subscription [MQTT-3.3.1-8]."""
        return self._retain

    @property
    def dup(self) -> bool:
        """True when this may be a second delivery: a hint, never a proof [MQTT5 §3.3.1.1]."""
        return self._dup

    @property
    def packet_id(self) -> int:
        """1 to 65,535 for QoS 1 and 2, and 0 for QoS 0. Not an identity: ids are used again."""
        return self._packet_id

    @property
    def properties(self) -> Properties:
        """All MQTT 5 properties."""
        return self._properties

    @property
    def content_type(self) -> str | None:
        """What the sender says the payload is, such as `application/json`."""
        return self._properties.content_type

    @property
    def response_topic(self) -> str | None:
        """Where the sender waits for an answer."""
        return self._properties.response_topic

    @property
    def correlation_data(self) -> bytes | None:
        """What the sender wants back with the answer, byte for byte."""
        return self._properties.correlation_data

    @property
    def user_properties(self) -> Sequence[tuple[str, str]]:
        """Name and value, in the order of the sender; a name may be there more than once."""
        return self._properties.user_properties

    @property
    def message_expiry_interval(self) -> int | None:
        """Seconds that the message had left when the broker sent it; None: it does not expire."""
        return self._properties.message_expiry_interval

    @property
    def subscription_ids(self) -> Sequence[int]:
        """The identifiers of the subscriptions this copy was sent for [MQTT5 §3.3.2.3.8]."""
        return self._properties.subscription_ids

    def user_property(self, name: str, default: str | None = None) -> str | None:
        """The first user property called `name`, else `default`."""
        for key, value in self._properties.user_properties:
            if key == name:
                return value
        return default

    def __repr__(self) -> str:
        flags = "".join(f" {name}" for name in ("retain", "dup") if getattr(self, name))
        return f"<Message {printable(self._topic)!r} {len(self._payload)} B qos={self._qos}{flags}>"


def printable(text: str) -> str:
    """`text` with every character that is not printable written as an escape: one line, safe in a log."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
