"""MQTTAPI: a decorated, typed function handles every message of a topic."""

from mqttapi._version import __version__
from mqttapi.app import App
from mqttapi.config import Session
from mqttapi.context import Context
from mqttapi.errors import (
    BrokerError,
    ConfigurationError,
    ConnectionRefused,
    Drop,
    HandlerStuck,
    InvalidParameter,
    InvalidPayload,
    InvalidTemplate,
    InvalidTopic,
    InvalidTopicFilter,
    MessageError,
    MQTTAPIError,
    NotConnected,
    PoisonMessage,
    PublishQueueFull,
    PublishRefused,
    Reject,
    ResourceUnavailable,
    RetryLater,
)
from mqttapi.injection import Depends, Payload, UserProperty
from mqttapi.message import Message
from mqttapi.middleware import Middleware
from mqttapi.publisher import NO_REPLY, Publish, Publisher, PublishResult
from mqttapi.resources.inbox import Inbox
from mqttapi.routing import Controller, Retry, RouteOptions, Router, RouterRegistry, topic

__all__ = [
    "NO_REPLY",
    "App",
    "BrokerError",
    "ConfigurationError",
    "ConnectionRefused",
    "Context",
    "Controller",
    "Depends",
    "Drop",
    "HandlerStuck",
    "Inbox",
    "InvalidParameter",
    "InvalidPayload",
    "InvalidTemplate",
    "InvalidTopic",
    "InvalidTopicFilter",
    "MQTTAPIError",
    "Message",
    "MessageError",
    "Middleware",
    "NotConnected",
    "Payload",
    "PoisonMessage",
    "Publish",
    "PublishQueueFull",
    "PublishRefused",
    "PublishResult",
    "Publisher",
    "Reject",
    "ResourceUnavailable",
    "Retry",
    "RetryLater",
    "RouteOptions",
    "Router",
    "RouterRegistry",
    "Session",
    "UserProperty",
    "__version__",
    "topic",
]
