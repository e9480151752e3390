"""Every error that MQTTAPI raises, in one tree.

MQTTAPIError
├── ConfigurationError          the program is wrong: a route, a signature, a setting, a call
│   ├── InvalidTopic            not a topic name          (also a ValueError)
│   ├── InvalidTopicFilter      not a topic filter        (also a ValueError)
│   └── InvalidTemplate         not a topic template      (also a ValueError)
├── MessageError                the message is wrong: rejected, never retried
│   ├── InvalidPayload          the payload does not validate
│   ├── InvalidParameter        a level of the topic, or a user property, does not validate
│   └── Reject                  a handler refuses the message
├── BrokerError                 the network or the broker
│   ├── ConnectionRefused       CONNACK or SUBACK said no
│   ├── NotConnected            there was no connection in time
│   ├── PublishRefused          the broker, or a limit it announced, refuses a publish
│   └── PublishQueueFull        the queue of outgoing messages is full
├── ResourceUnavailable         Redis or the database does not answer
├── HandlerStuck                a thread cannot be stopped: the process has to end
├── PoisonMessage               the message has killed its process: it is not run any more
├── Drop                        a handler asks: forget this message
└── RetryLater                  a handler asks: run it again in a moment
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BrokerError",
    "ConfigurationError",
    "ConnectionRefused",
    "Drop",
    "HandlerStuck",
    "InvalidParameter",
    "InvalidPayload",
    "InvalidTemplate",
    "InvalidTopic",
    "InvalidTopicFilter",
    "MQTTAPIError",
    "MessageError",
    "NotConnected",
    "PoisonMessage",
    "PublishQueueFull",
    "PublishRefused",
    "Reject",
    "ResourceUnavailable",
    "RetryLater",
]


class MQTTAPIError(Exception):
    """The root of every error that MQTTAPI raises."""


class ConfigurationError(MQTTAPIError):
    """Raised when the program, not a message or the network, is wrong.

    The text names the thing, the value, the rule and the way out.
    """


class InvalidTopic(ConfigurationError, ValueError):
    """Raised when a text is not a topic name that can be published to [MQTT-3.3.2-2, MQTT-4.7.3]."""


class InvalidTopicFilter(ConfigurationError, ValueError):
    """Raised when a text is not a topic filter [MQTT-4.7.1, MQTT-4.8.2]."""


class InvalidTemplate(ConfigurationError, ValueError):
    """Raised when a text is not a topic template, such as `sensors/<device_id>/data`."""


class MessageError(MQTTAPIError):
    """Raised when a message cannot be handled, now or ever: it is rejected and never retried.

    `reason` is one line without values from the payload, so that it can be logged.
    """

    errors: Sequence[Mapping[str, Any]] = ()
    """Where pydantic refused something: its errors (type, loc, msg), without the input."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)  # somebody's number, or exception


class InvalidPayload(MessageError):
    """Raised when a payload does not validate against the hint of its parameter."""


class InvalidParameter(MessageError):
    """Raised when a level of the topic, or a user property, does not validate against its hint."""


class Reject(MessageError):
    """Raised by a handler to refuse a message: straight to the dead letter, without a retry."""


class BrokerError(MQTTAPIError):
    """Raised when the network or the broker stands in the way."""


class ConnectionRefused(BrokerError):
    """Raised when the broker refuses a connection or a subscription for good.

    `reason_code` is the code of the CONNACK or SUBACK [MQTT5 §2.4], or None where the refusal had none (TLS, say).
    """

    def __init__(self, text: str, *, reason_code: int | None = None) -> None:
        super().__init__(text)
        self.reason_code = reason_code


class NotConnected(BrokerError):
    """Raised when a publish or a request found no connection within its time.

    `closed_before_connack` is True when something accepted the connection and closed it without a word: so answer
    brokers that do not speak the version of MQTT they were asked for.
    """

    def __init__(self, text: str, *, closed_before_connack: bool = False) -> None:
        super().__init__(text)
        self.closed_before_connack = closed_before_connack


class PublishRefused(BrokerError):
    """Raised when the broker answers a publish with a reason code ≥ 0x80, or a limit it announced forbids it.

    `reason_code` is the code of PUBACK or PUBREC [MQTT5 §3.4.2.1], or the code the broker would have used.
    """

    def __init__(self, text: str, *, reason_code: int) -> None:
        super().__init__(text)
        self.reason_code = reason_code


class PublishQueueFull(BrokerError):
    """Raised when the bound on outgoing messages (`max_outgoing`, in messages or bytes) is reached."""


class ResourceUnavailable(MQTTAPIError):
    """Raised when Redis or the database, which the app needs, does not answer when the app starts."""


class HandlerStuck(MQTTAPIError):
    """Raised out of a run when a plain `def` took longer than its `timeout`: nothing but the end of the process stops
    its thread, and until then its message is neither acknowledged nor handled again.
    """


class PoisonMessage(MQTTAPIError):
    """What a message has failed with that killed its process `deaths` times, each time as the only one in flight.

    Nothing of the app sees it, exception handlers included: it is in the dead letter, and in the log.
    """

    def __init__(self, deaths: int) -> None:
        super().__init__(
            f"killed its process {deaths} times, each time as the only message in flight: neither it nor an equal one "
            "is run until the app is reloaded or started again"
        )
        self.deaths = deaths


class Drop(MQTTAPIError):
    """Raised by a handler to end a message here: acknowledged, counted, no dead letter."""

    def __init__(self, reason: str = "dropped by the handler") -> None:
        super().__init__(reason)
        self.reason = str(reason)


class RetryLater(MQTTAPIError):
    """Raised by a handler to run the message again in `seconds`, whatever `retry=` says.

    A message is held `max_hold` seconds at most, all its attempts and pauses together: what would take longer fails.
    It waits for 10 ms at least: a message that is not to wait would keep a core busy.

    Raises:
        ConfigurationError: `seconds` is no number from 0 up.
    """

    def __init__(self, seconds: float, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        given: object = seconds
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
            raise ConfigurationError(f"RetryLater({seconds!r}): seconds must be a number from 0 up")
        self.seconds = seconds
        self.reason = reason
