"""User name and password that are asked for at every connect: tokens end, and passwords change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from mqttapi.errors import NotConnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ask"]

_MOST: Final = 65_535  # bytes [MQTT-1.5.4, MQTT-1.5.6]


async def ask(credentials: Callable[[], Awaitable[object]], *, timeout: float) -> tuple[str | None, str | None]:
    """What `credentials` gives: a pair, or an object with `username` and `password`. A password may be a `SecretStr`.

    Raises:
        NotConnected: It raised, took longer than `timeout` seconds, or gave something else, or what MQTT cannot send.
            What it raised is the cause, and no part of the text: that may hold a secret.
    """
    name = f"{getattr(credentials, '__name__', type(credentials).__name__)}()"
    limit = asyncio.timeout(timeout)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  we are in one
    cancelled = task.cancelling()
    try:
        async with limit:
            given: Any = await credentials()
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and task.cancelling() > cancelled:
            raise  # it is we who are cancelled, and not something that it waited for
        failed = f"took longer than {timeout:g} s" if limit.expired() else f"raised {type(error).__name__}"
        raise NotConnected(f"credentials: {name} {failed}") from error
    pair: Any = (
        given if isinstance(given, tuple) else (getattr(given, "username", ...), getattr(given, "password", ...))
    )
    if len(pair) != 2 or not isinstance(pair[0], str | None) or not isinstance(pair[1], str | SecretStr | None):
        kind = f"({', '.join(type(each).__name__ for each in given)})" if pair is given else type(given).__name__
        raise NotConnected(f"credentials: {name} must return (username, password), both str or None, not {kind}")
    username, password = pair
    password = password.get_secret_value() if isinstance(password, SecretStr) else password
    for what, value in (("user name", username), ("password", password)):
        if wrong := _wrong(value):
            raise NotConnected(f"credentials: {name} gave a {what} {wrong}")
    if username is not None and "\0" in username:
        raise NotConnected(f"credentials: {name} gave a user name with a NUL [MQTT-1.5.4-2]")
    return username, password


def _wrong(value: str | None) -> str:
    """Why MQTT cannot send it; empty where it can."""
    try:
        size = len(value.encode()) if value is not None else 0
    except UnicodeEncodeError:
        return "that cannot be written as UTF-8 [MQTT-1.5.4-1]"
    return f"of {size:,} bytes: MQTT sends {_MOST:,} at most" if size > _MOST else ""
