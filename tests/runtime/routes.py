"""Runners of real routes, without an app that runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mqttapi import App, Context
from mqttapi.runtime.runs import Runner

__all__ = ["add", "runners_of"]


async def _endpoint(context: Context) -> None: ...


def add(app: App, template: str, **options: Any) -> None:
    """A route of its own handler, called like its template."""

    async def handler() -> None: ...

    named: dict[str, Any] = {"name": template, **options}
    app.topic(template, **named)(handler)


def runners_of(app: App, endpoint: Callable[[Context], Awaitable[object]] = _endpoint) -> list[Runner]:
    return [Runner(route, endpoint, index) for index, route in enumerate(app.routes)]
