"""Middleware: what runs around a handler, composed once.

async def mw(context, call_next):
    ...                                  # before
    result = await call_next(context)    # leave this out to stop here: the message counts as handled
    ...                                  # after
    return result
"""

from mqttapi.injection import Endpoint
from mqttapi.middleware.aliases import Aliases, Layer
from mqttapi.middleware.base import Middleware
from mqttapi.middleware.chain import MiddlewareFunction, MiddlewareLike, as_middleware, compose

__all__ = [
    "Aliases",
    "Endpoint",
    "Layer",
    "Middleware",
    "MiddlewareFunction",
    "MiddlewareLike",
    "as_middleware",
    "compose",
]
