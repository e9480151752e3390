"""User name and password that are asked for at every connect: tokens end, and passwords change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from mqttapi.errors import NotConnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ask"]


async def ask(credentials: Callable[[], Awaitable[object]], *, timeout: float) -> tuple[str | None, str | None]:
    """What `credentials` gives: a pair, or an object with `username` and `password`. A password may be a `SecretStr`.

    Raises:
        NotConnected: It raised, took longer than `timeout` seconds, or gave something else. What it raised is the cause,
            and no part of the text: that may hold a secret.
    """
    name = f"{getattr(credentials, '__name__', type(credentials).__name__)}()"
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            given: Any = await credentials()
    except Exception as error:
        failed = f"took longer than {timeout:g} s" if limit.expired() else f"raised {type(error).__name__}"
        raise NotConnected(f"credentials: {name} {failed}") from error
    pair: Any = (
        given if isinstance(given, tuple) else (getattr(given, "username", ...), getattr(given, "password", ...))
    )
    if len(pair) != 2 or not isinstance(pair[0], str | None) or not isinstance(pair[1], str | SecretStr | None):
        kind = f"({', '.join(type(each).__name__ for each in given)})" if pair is given else type(given).__name__
        raise NotConnected(f"credentials: {name} must return (username, password), both str or None, not {kind}")
    username, password = pair
    return username, password.get_secret_value() if isinstance(password, SecretStr) else password
