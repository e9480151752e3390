"""Hooks: what an app does when it has been connected, and when the connection is lost."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqttapi.app import App

__all__ = ["Hook", "Hooks", "as_hook"]

log = logging.getLogger("mqttapi")

PATIENCE: Final = 1.0
"""Seconds that hooks of `on_connect` have once the app ends."""

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
        self._cut_short = False  # whether it is we who cancel a hook, to go on with what comes next

    def update(self, *, connected: bool) -> None:
        """The app is connected and subscribed, or it is no longer."""
        self._connected = connected
        if self._task is None and self._told != connected:
            self._task = asyncio.create_task(self._run(), name=f"mqttapi[{self._app.name}].hooks")

    async def _run(self) -> None:
        while self._told != self._connected:
            self._told = self._connected
            for hook in self._hooks[self._told]:
                await self._call(hook)
                if self._cut_short:
                    self._cut_short = False
                    break
        self._task = None

    async def _call(self, hook: Hook) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  we are in one
        try:
            await hook(self._app)
        except asyncio.CancelledError:
            if self._cut_short:
                task.uncancel()
            elif task.cancelling():
                raise
            else:  # something that it waited for was cancelled
                log.exception("a hook of %s failed", self._kind)
        except Exception:
            log.exception("a hook of %s failed", self._kind)

    @property
    def _kind(self) -> str:
        return "on_connect" if self._told else "on_disconnect"

    async def finished(self) -> None:
        """Return when no hook runs any more; to be called at the end, which is not for hooks of `on_connect` to put off."""
        task = self._task
        if task is None:
            return
        try:
            await asyncio.wait((task,), timeout=PATIENCE)
            if not task.done() and self._told and not self._connected:
                log.warning("a hook of on_connect still runs while the app ends: cancelled")
                self._cut_short = True
                task.cancel()
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            log.warning("a hook of %s was not done within the grace: cancelled", self._kind)
            raise

    async def stop(self) -> None:
        """Cancel what runs."""
        if self._task is not None:
            self._cut_short = False
            self._task.cancel()
            await asyncio.wait((self._task,))
