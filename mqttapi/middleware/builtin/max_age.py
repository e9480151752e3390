"""`MaxAge`: what comes too late is not handled."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from mqttapi.errors import ConfigurationError, Drop, Reject
from mqttapi.middleware.builtin.find import Find, finder
from mqttapi.middleware.builtin.rules import is_number, require, require_choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint

__all__ = ["MaxAge"]

_TIME: Final = TypeAdapter(datetime)


class MaxAge:
    """Stops messages that are older than `seconds`.

        @app.topic("doors/<id>/open", middleware=[MaxAge(30, "property.sent-at")])
        @app.topic("doors/<id>/close", middleware=[MaxAge(30, lifetime=3600)])

    The age is that of a time which the sender has written; or, where senders give all messages the same expiry, what
    has gone of it when the broker sent the message [MQTT5 §3.3.2.3.3], by the broker's clock alone.

    Args:
        seconds: The age that is not too old yet.
        sent_at: Where the time of sending is: `"property.sent-at"`, `"payload.time"`, a function of the context (see
            `Find`). Seconds or milliseconds since 1970, or ISO 8601 (UTC unless it says another zone). A message
            without it is rejected. One of the future passes: clocks differ.
        too_old: What becomes of a message: `drop`, or `reject` (dead letter).
        lifetime: In place of `sent_at`: the Message Expiry Interval that senders use, in seconds. A message without
            one is rejected.
        clock: Seconds since 1970.

    Raises:
        ConfigurationError: When an argument breaks a rule.
    """

    def __init__(
        self,
        seconds: float,
        sent_at: Find | None = None,
        too_old: Literal["drop", "reject"] = "drop",
        *,
        lifetime: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require("MaxAge", "seconds", seconds, lambda value: is_number(value, 1e-3), "above 0")
        require_choice("MaxAge", "too_old", too_old, ("drop", "reject"))
        if (sent_at is None) == (lifetime is None):
            raise ConfigurationError(
                "MaxAge: give sent_at= (where a message has its time) or lifetime= (the expiry that senders use), one of "
                "them"
            )
        if lifetime is not None:
            require("MaxAge", "lifetime", lifetime, lambda value: is_number(value, seconds), f"at least {seconds:g} s")
        self._seconds = seconds
        self._too_old = too_old
        self._lifetime = lifetime
        self._clock = clock
        self._find = None if sent_at is None else finder(sent_at, "MaxAge")

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Let the message through if it is young enough."""
        if self._age(context) > self._seconds:
            reason = f"older than {self._seconds:g} s"
            raise Drop(reason) if self._too_old == "drop" else Reject(reason)
        return await next_handler(context)

    def _age(self, context: Context) -> float:
        if self._find is None:
            left = context.message.message_expiry_interval
            if left is None:
                raise Reject("it has no expiry, so its age cannot be known")
            return (self._lifetime or 0) - left
        try:
            sent = _TIME.validate_python(self._find(context))
        except ValidationError:
            sent = None
        if sent is None:  # outside of `except`: the cause holds the value
            raise Reject("it has no time that can be read, so its age cannot be known")
        return self._clock() - (sent if sent.tzinfo else sent.replace(tzinfo=UTC)).timestamp()

    def __repr__(self) -> str:
        return f"MaxAge({self._seconds:g}, too_old={self._too_old!r})"
