"""Routes: which handler serves which topic, and how routers nest."""

from mqttapi.routing.destination import Destination
from mqttapi.routing.options import RouteOptions, SharedOptions, TopicOptions
from mqttapi.routing.retry import Retry
from mqttapi.routing.route import Declaration, Route
from mqttapi.routing.router import Router

__all__ = ["Declaration", "Destination", "Retry", "Route", "RouteOptions", "Router", "SharedOptions", "TopicOptions"]
