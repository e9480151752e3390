"""Settings, the broker's address, TLS, the session and the identity of a client.

What needs pydantic-settings is loaded on first use: `import mqttapi` does not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttapi.config.broker import Broker, resolve_broker
from mqttapi.config.lock import ClientIdInUse, ClientLock, runtime_dir
from mqttapi.config.session import (
    Session,
    client_id,
    client_id_prefix,
    client_id_warnings,
    default_instance,
    instance_warnings,
)
from mqttapi.config.state import state_dir
from mqttapi.config.tls import broker_warnings, tls_context, tls_failure

if TYPE_CHECKING:
    from mqttapi.config.settings import Setting, Settings, defaults, unknown_variables

__all__ = [
    "Broker",
    "ClientIdInUse",
    "ClientLock",
    "Session",
    "Setting",
    "Settings",
    "broker_warnings",
    "client_id",
    "client_id_prefix",
    "client_id_warnings",
    "default_instance",
    "defaults",
    "instance_warnings",
    "resolve_broker",
    "runtime_dir",
    "state_dir",
    "tls_context",
    "tls_failure",
    "unknown_variables",
]


def __getattr__(name: str) -> Any:
    if name in {"Setting", "Settings", "defaults", "unknown_variables"}:
        from mqttapi.config import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
