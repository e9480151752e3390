"""Handlers get what their signature asks for: analysed at registration, compiled at start."""

from mqttapi.injection.params import Depends, Payload, UserProperty
from mqttapi.injection.plan import Endpoint, compile_plan
from mqttapi.injection.signature import analyse
from mqttapi.injection.sources import Signature

__all__ = ["Depends", "Endpoint", "Payload", "Signature", "UserProperty", "analyse", "compile_plan"]
