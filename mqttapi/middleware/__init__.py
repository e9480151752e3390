"""Middleware: what runs around a handler, composed once.

async def mw(context, call_next):
    ...                                  # before
    result = await call_next(context)    # leave this out to stop here: the message counts as handled
    ...                                  # after
    return result
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mqttapi.injection import Endpoint
from mqttapi.middleware.aliases import Aliases, Layer
from mqttapi.middleware.base import Middleware
from mqttapi.middleware.chain import MiddlewareFunction, MiddlewareLike, as_middleware, compose

if TYPE_CHECKING:
    from mqttapi.middleware.builtin.access_log import AccessLog
    from mqttapi.middleware.builtin.authenticate import JWT, Authenticate, SharedSecret, Signature, sign
    from mqttapi.middleware.builtin.circuit_breaker import CircuitBreaker
    from mqttapi.middleware.builtin.deduplicate import Deduplicate
    from mqttapi.middleware.builtin.max_age import MaxAge
    from mqttapi.middleware.builtin.ratelimit import RateLimit

__all__ = [
    "JWT",
    "AccessLog",
    "Aliases",
    "Authenticate",
    "CircuitBreaker",
    "Deduplicate",
    "Endpoint",
    "Layer",
    "MaxAge",
    "Middleware",
    "MiddlewareFunction",
    "MiddlewareLike",
    "RateLimit",
    "SharedSecret",
    "Signature",
    "as_middleware",
    "compose",
    "sign",
]

_BUILTIN = {
    "AccessLog": "access_log",
    "CircuitBreaker": "circuit_breaker",
    **dict.fromkeys(("JWT", "Authenticate", "SharedSecret", "Signature", "sign"), "authenticate"),
    "Deduplicate": "deduplicate",
    "MaxAge": "max_age",
    "RateLimit": "ratelimit",
}


def __getattr__(name: str) -> Any:
    """What comes with MQTTAPI is imported when it is used."""
    if name not in _BUILTIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.builtin.{_BUILTIN[name]}"), name)
