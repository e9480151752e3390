"""Routes: which handler serves which topic, and how routers nest."""

from mqttapi.routing.controllers import Controller, topic
from mqttapi.routing.destination import Destination
from mqttapi.routing.options import OnOptions, Overflow, Retained, RouteOptions, SharedOptions, TopicOptions
from mqttapi.routing.registry import RouterRegistry
from mqttapi.routing.retry import Retry
from mqttapi.routing.route import Declaration, Route
from mqttapi.routing.router import Router

__all__ = [
    "Controller",
    "Declaration",
    "Destination",
    "OnOptions",
    "Overflow",
    "Retained",
    "Retry",
    "Route",
    "RouteOptions",
    "Router",
    "RouterRegistry",
    "SharedOptions",
    "TopicOptions",
    "topic",
]
