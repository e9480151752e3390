"""Hooks: what an app does when it has been connected, and when the connection is lost."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqttapi.app import App

__all__ = ["Hook", "Hooks", "as_hook"]

log = logging.getLogger("mqttapi")

Hook: TypeAlias = "Callable[[App], Awaitable[Any]]"


def as_hook(function: Callable[..., Any], decorator: str) -> Hook:
    """A hook of `async def f()` or `async def f(app)`.

    Raises:
        ConfigurationError: When it is something else.
    """
    form = f"write @app.{decorator} above 'async def hook()' or 'async def hook(app)'"
    if not callable(function):
        raise ConfigurationError(f"@app.{decorator}: {function!r} is no function: {form}, without parentheses")
    kind = kind_of(function)
    if kind.is_context or not kind.is_async:
        raise ConfigurationError(f"@app.{decorator}: {called(function)} is not an 'async def': {form}")
    signature = inspect.signature(function)
    for arguments in ((), ("app",)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return function if arguments else lambda _: function()
    raise ConfigurationError(f"@app.{decorator}: {called(function)} takes more than the app: {form}")


class Hooks:
    """Calls the hooks of an app one after the other, in a task of their own.

    What comes while they run is told when they have ended; a connection that was lost and stands again meanwhile is not.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._hooks = {True: app._on_connect, False: app._on_disconnect}
        self._connected = self._told = False
        self._task: asyncio.Task[None] | None = None

    def update(self, *, connected: bool) -> None:
        """The app is connected and subscribed, or it is no longer."""
        self._connected = connected
        if self._task is None and self._told != connected:
            self._task = asyncio.create_task(self._run(), name=f"mqttapi[{self._app.name}].hooks")

    async def _run(self) -> None:
        while self._told != self._connected:
            self._told = self._connected
            for hook in self._hooks[self._told]:
                try:
                    await hook(self._app)
                except Exception:
                    log.exception("a hook of %s failed", "on_connect" if self._told else "on_disconnect")
        self._task = None

    async def finished(self) -> None:
        """Return when no hook runs any more."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def stop(self) -> None:
        """Cancel what runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
