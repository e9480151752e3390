"""What the tests of the transport share."""

from __future__ import annotations

from typing import Any

from mqttapi.config.broker import Broker
from mqttapi.transport.handshake import ConnectionOptions


def options_for(url: str, **options: Any) -> ConnectionOptions:
    return ConnectionOptions(
        **{"broker": Broker.parse(url, source="MQTT_URL"), "client_id": "test", "timeout": 5.0, **options}
    )
