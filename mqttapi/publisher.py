"""What goes out: `Publish`, its `PublishResult`, and the `Publisher` that handlers ask for."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypedDict

from mqttapi.errors import ConfigurationError, InvalidTopic, NotConnected
from mqttapi.message import printable
from mqttapi.payloads import encode_payload
from mqttapi.topics import TopicTemplate, validate_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Unpack

__all__ = ["NO_REPLY", "Outgoing", "Publish", "PublishOptions", "PublishResult", "Publisher", "encode_payload"]

_MAX_U16: Final = 0xFFFF
_MAX_U32: Final = 0xFFFF_FFFF


class _NoReply:
    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY: Final = _NoReply()
"""Returned by a handler that does not answer a Response Topic."""


class PublishResult(NamedTuple):
    """What became of a publish."""

    topic: str
    qos: int
    packet_id: int = 0
    """1 to 65,535, and 0 for QoS 0."""
    reason_code: int = 0
    """Of PUBACK or PUBREC: 0, or 0x10 when nobody has subscribed; always 0 for QoS 0 and on MQTT 3.1.1."""
    reason: str = ""
    """What the broker says beside the code; mostly empty."""


class PublishOptions(TypedDict, total=False):
    """The options of `publish` and `publish_nowait`, wherever they are."""

    qos: int
    """0, 1 or 2 [MQTT5 §4.3]. Default 1."""
    retain: bool
    """Whether the broker keeps the message for subscribers to come. Default False."""
    expiry: float | None
    """Seconds (0 to 4,294,967,295, rounded up) after which the broker forgets the message. Default None: never. MQTT 5."""
    content_type: str | None
    """Such as `application/json`. MQTT 5."""
    user_properties: Mapping[str, str] | Iterable[tuple[str, str]]
    """Names and values, kept in order; a name may be there more than once. MQTT 5."""
    response_topic: str | None
    """Where the answer is to go. MQTT 5."""
    correlation_data: bytes | None
    """Comes back with the answer, byte for byte. MQTT 5."""
    params: Mapping[str, object] | None
    """Values for the parameters of the topic, which is a template then, such as `alerts/<id>`."""
    payload_format_indicator: int
    """1: the payload is UTF-8 text, and brokers and receivers may check that; 0 (default): it is bytes. MQTT 5."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A message to send. A handler may return one, or several in a list or tuple.

    Raises:
        InvalidTopic: `topic` is no topic name [MQTT-3.3.2-2, MQTT-4.7.3]; with `params` that shows when it is rendered.
        ConfigurationError: another argument breaks a rule; the text says which.
    """

    topic: str
    """A topic name, or with `params` a template such as `alerts/<id>`."""
    payload: Any = None
    """Bytes go as they are, `str` as UTF-8, None as nothing, anything else as JSON."""
    qos: int = 1
    retain: bool = False
    expiry: float | None = None
    """Seconds (0 to 4,294,967,295, rounded up) after which the broker forgets the message; None: never. MQTT 5."""
    content_type: str | None = None
    """Such as `application/json`. MQTT 5."""
    user_properties: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    """Names and values, kept in order; a name may be there more than once. MQTT 5."""
    response_topic: str | None = None
    """Where the answer is to go. MQTT 5."""
    correlation_data: bytes | None = None
    """Comes back with the answer, byte for byte. MQTT 5."""
    params: Mapping[str, object] | None = None
    """Values for the parameters of `topic`."""
    payload_format_indicator: int = 0
    """1: the payload is UTF-8 text, and brokers and receivers may check that; 0: it is bytes. MQTT 5."""

    def __post_init__(self) -> None:
        if self.params is None:
            _check_topic(self.topic)
        if type(self.qos) is not int or not 0 <= self.qos <= 2:
            _refuse_qos(self.qos)
        if self.retain is not True and self.retain is not False:
            raise ConfigurationError(f"retain must be True or False, got {self.retain!r}")
        if self.expiry is not None:
            _check_expiry(self.expiry)
        if self.user_properties:
            object.__setattr__(self, "user_properties", _pairs(self.user_properties))
        if self.content_type is not None:
            _check_text("content_type", self.content_type)
        if self.response_topic is not None:
            _check_topic(self.response_topic)
        if self.correlation_data is not None:
            _check_correlation_data(self.correlation_data)
        if self.payload_format_indicator != 0:
            _check_format_indicator(self.payload_format_indicator)

    def rendered(self) -> Publish:
        """This message with its topic rendered from `params`.

        Raises:
            InvalidTopic: a value does not fit: it would add a level, say.
        """
        if self.params is None:
            return self
        return dataclasses.replace(self, topic=_template(self.topic).render(self.params), params=None)


class Outgoing(Protocol):
    """What a transport offers to the `Publisher`."""

    @property
    def has_properties(self) -> bool:
        """Whether message properties reach the broker: not on MQTT 3.1.1."""
        ...

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        """Send a message whose payload is bytes and whose topic is rendered.

        `reserved` room is for dead letters: they wait where others find the queue full. May be called from any thread, but only the loop's own may use the future. It ends when the broker has
        acknowledged (QoS 0: when the message is written), or with `PublishRefused`. Cancelling it withdraws a message
        that has not been written.

        Raises:
            PublishQueueFull: at once, when the bound on waiting messages is reached.
        """
        ...


class Publisher:
    """Sends messages; a handler gets it by naming the type."""

    __slots__ = ("mark", "outgoing", "system_topics")

    def __init__(self, outgoing: Outgoing | None = None, *, system_topics: bool = False) -> None:
        self.outgoing = outgoing
        self.mark: Callable[[Publish], Publish] | None = None
        """Makes the message that goes out, where the app has to know its own again."""
        self.system_topics = system_topics
        """Whether topics may begin with `$` ($SYS, $CONTROL …): brokers keep them for themselves."""

    @property
    def has_properties(self) -> bool:
        """Whether user properties, content type and the like reach the broker: not on MQTT 3.1.1."""
        return self.outgoing is None or self.outgoing.has_properties

    async def publish(
        self, topic: str, payload: Any = None, *, timeout: float | None = None, **options: Unpack[PublishOptions]
    ) -> PublishResult:
        """Publish, and wait until the broker has acknowledged (QoS 0: until it is written).

        Args:
            topic: A topic name; with `params` a template such as `alerts/<id>`.
            payload: Bytes go as they are, `str` as UTF-8, None as nothing, anything else as JSON by pydantic.
            timeout: Seconds to wait at most; None: for ever. While the broker is away, publishes wait.
            options: See `PublishOptions`.

        Raises:
            InvalidTopic: the topic, or a value put into it, is not valid.
            ConfigurationError: the payload cannot be serialised, or an option is unknown or breaks a rule.
            NotConnected: no answer within `timeout`, or the app is not running.
            PublishRefused: the broker, or a limit it announced, refuses the message.
            PublishQueueFull: too many messages wait already.
        """
        return await self.answer(topic, payload, timeout, options)

    def publish_nowait(
        self, topic: str, payload: Any = None, **options: Unpack[PublishOptions]
    ) -> asyncio.Future[PublishResult]:
        """Publish without waiting. May be called from a handler's thread, which must not touch the future.

        Takes what `publish` takes, but for `timeout`, and raises what it raises; a refusal by the broker shows in the
        future only.
        """
        return self._submit(message_of(topic, encode_payload(payload), options))

    def answer(
        self, topic: str, payload: Any, timeout: float | None, options: PublishOptions
    ) -> Awaitable[PublishResult]:
        """What `publish` awaits: for others that are called so, and hand on what they got."""
        publish = message_of(topic, encode_payload(payload), options)
        future = self._submit(publish)
        return future if timeout is None else _in_time(future, timeout, publish.topic)

    def send(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        """`publish_nowait` for a `Publish` that a handler has returned; `reserved` room is for dead letters."""
        publish = publish.rendered()
        return self._submit(dataclasses.replace(publish, payload=encode_payload(publish.payload)), reserved=reserved)

    def check(self, publish: Publish) -> None:
        """Refuse a message for a topic of the broker.

        Raises:
            InvalidTopic: It begins with `$`, and the app does not allow that.
        """
        if publish.topic.startswith("$") and not self.system_topics:
            raise InvalidTopic(
                f"publish to {printable(publish.topic)!r}: topics that begin with '$' belong to the broker; "
                "App(system_topics=True) allows them"
            )

    def _submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        if publish.topic[0] == "$":
            self.check(publish)
        if self.outgoing is None:
            raise NotConnected(
                f"publish to {printable(publish.topic)!r}: the app is not running. "
                "Publish from a handler or the lifespan, or inside `async with app.running():`"
            )
        if self.mark is not None and self.outgoing.has_properties:
            publish = self.mark(publish)
        return self.outgoing.submit(publish, reserved=reserved)


async def _in_time(future: asyncio.Future[PublishResult], timeout: float, topic: str) -> PublishResult:
    try:
        async with asyncio.timeout(timeout):
            return await future
    except TimeoutError:
        raise NotConnected(f"publish to {printable(topic)!r}: no answer from the broker in {timeout:g} s") from None


def message_of(topic: str, payload: Any, options: PublishOptions) -> Publish:
    """A message, its topic rendered.

    Raises:
        InvalidTopic: The topic, or a value put into it, is not valid.
        ConfigurationError: An option is unknown or breaks a rule.
    """
    params = options.pop("params", None)
    if params is not None:
        topic = _template(topic).render(params)
    try:
        return Publish(topic, payload, **options)
    except TypeError:
        _refuse_unknown(topic, options)
        raise


def _refuse_unknown(topic: str, options: Mapping[str, object]) -> None:
    known = PublishOptions.__annotations__
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}."
            raise ConfigurationError(f"publish to {printable(topic)!r}: unknown option {name!r}. {hint}") from None


def _check_topic(topic: str) -> None:
    # A Response Topic is a stranger's choice: long ones would fill the memory.
    (_check_again if type(topic) is str and len(topic) <= 256 else validate_topic)(topic)


_check_again = lru_cache(maxsize=4096)(validate_topic)  # applications publish to the same topics again and again


@lru_cache(maxsize=1024)
def _template(text: str) -> TopicTemplate:
    return TopicTemplate(text)


def _refuse_qos(qos: object) -> None:
    if isinstance(qos, int) and not isinstance(qos, bool) and 0 <= qos <= 2:
        return  # somebody's IntEnum
    raise ConfigurationError(f"qos must be 0, 1 or 2, got {qos!r}")


def _check_expiry(expiry: object) -> None:
    if (
        isinstance(expiry, bool)
        or not isinstance(expiry, int | float)
        or not math.isfinite(expiry)
        or not 0 <= expiry <= _MAX_U32
    ):
        raise ConfigurationError(f"expiry must be 0 to {_MAX_U32} seconds, or None for never, got {expiry!r}")


def _pairs(properties: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs: tuple[Any, ...] = tuple(properties.items() if isinstance(properties, Mapping) else properties)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConfigurationError(f"user_properties must be (name, value) pairs of str, got {pair!r}")
        name, value = pair
        _check_text("the name of a user property", name)
        _check_text(f"user property {name!r}", value)
    return pairs


def _check_text(what: str, text: object) -> None:
    """A UTF-8 Encoded String [MQTT-1.5.4]: at most 65,535 bytes, no NUL, no surrogate."""
    if not isinstance(text, str):
        raise ConfigurationError(f"{what} must be a str, got {text!r}: write str(…)")
    if "\0" in text:
        raise ConfigurationError(f"{what} must not hold the character U+0000 [MQTT-1.5.4-2]: {printable(text[:80])!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{what} must not hold a surrogate [MQTT-1.5.4-1]: U+{ord(text[error.start]):04X} at {error.start}"
        ) from None
    if size > _MAX_U16:
        raise ConfigurationError(f"{what} must be at most {_MAX_U16} bytes of UTF-8, got {size}")


def _check_correlation_data(data: object) -> None:
    if not isinstance(data, bytes):
        raise ConfigurationError(f"correlation_data must be bytes, got {type(data).__name__}")
    if len(data) > _MAX_U16:
        raise ConfigurationError(f"correlation_data must be at most {_MAX_U16} bytes, got {len(data)}")


def _check_format_indicator(indicator: object) -> None:
    if type(indicator) is not int or indicator != 1:
        raise ConfigurationError(
            f"payload_format_indicator must be 0 (bytes) or 1 (UTF-8 text) [MQTT5 §3.3.2.3.2], got {indicator!r}"
        )
