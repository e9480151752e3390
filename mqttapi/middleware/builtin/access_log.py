"""`AccessLog`: one line for a message."""

from __future__ import annotations

import asyncio
import logging
import random as _random
import time
from typing import TYPE_CHECKING, Any

from mqttapi.errors import Drop, MessageError
from mqttapi.message import printable
from mqttapi.middleware.builtin.rules import is_number, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint

__all__ = ["AccessLog"]


class AccessLog:
    """Logs one line for a message, when what is inside has ended.

        app.add_middleware(AccessLog(0.01))  # one of a hundred

        sensors/7/data qos=1 78 B → main.ingest: done in 1.2 ms

    What a sender has written is escaped; the payload is not shown. With the JSON format each part is a field as well.

    Args:
        sample: The part of the messages that is logged, from 0 to 1. Failures are logged by the app in any case.
        logger: Name of the logger.
        level: As in `logging`, such as `logging.INFO`.
        clock: Seconds.
        random: From 0 up to 1.

    Raises:
        ConfigurationError: When an argument breaks a rule.
    """

    def __init__(
        self,
        sample: float = 1.0,
        *,
        logger: str = "mqttapi.access",
        level: int = logging.INFO,
        clock: Callable[[], float] = time.perf_counter,
        random: Callable[[], float] = _random.random,
    ) -> None:
        require("AccessLog", "sample", sample, lambda part: is_number(part, 0, 1), "a number from 0 to 1")
        require("AccessLog", "logger", logger, lambda name: isinstance(name, str), "the name of a logger")
        require("AccessLog", "level", level, lambda number: type(number) is int, "a number, such as logging.INFO")
        self._sample = sample
        self._logger = logging.getLogger(logger)
        self._level = level
        self._clock = clock
        self._random = random

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Run what is inside, and log how it ended."""
        if self._random() >= self._sample:
            return await next_handler(context)
        outcome, began = "done", self._clock()
        try:
            return await next_handler(context)
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            self._log(context, outcome, (self._clock() - began) * 1000)

    def _log(self, context: Context, outcome: str, milliseconds: float) -> None:
        message, route = context.message, context.route.name
        topic, size = printable(message.topic), len(message.payload)
        self._logger.log(
            self._level,
            "%s qos=%d %d B → %s: %s in %.1f ms",
            *(topic, message.qos, size, route, outcome, milliseconds),
            extra={
                "topic": topic,
                "qos": message.qos,
                "bytes": size,
                "route": route,
                "outcome": outcome,
                "milliseconds": round(milliseconds, 3),
                "attempt": context.attempt,
            },
        )

    def __repr__(self) -> str:
        return f"AccessLog({self._sample:g})"


def _outcome(error: BaseException) -> str:
    match error:
        case Drop():
            return "dropped"
        case MessageError():
            return "rejected"
        case asyncio.CancelledError():
            return "cancelled"
    return f"failed ({type(error).__name__})"
