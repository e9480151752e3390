"""`mqttapi routes`: what an app listens to."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mqttapi.cli.options import AppDir, Debug, Factory, Target, WorkerCap
from mqttapi.cli.tables import print_table
from mqttapi.workers.plan import Plan, wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mqttapi.routing import Route

__all__ = ["routes"]

_COLUMNS = ("name", "template", "filter", "qos", "group", "workers", "slots", "handler", "middleware")


def routes(
    target: Target = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
    workers: WorkerCap = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    debug: Debug = False,
) -> None:
    """Show the routes of an app, without connecting."""
    from mqttapi.cli.target import load
    from mqttapi.config import Settings

    app = load(target, app_dir=app_dir, factory=factory)
    settings = app.settings or Settings()
    group = settings.group_name or app.name
    plan = Plan(wanted(app.routes, group, default=settings.worker_count, cap=workers), placement=app.placement)
    rows = [_described(route, group, plan, chain(*app.table.middleware_of(route))) for route in app.routes]
    if as_json:
        import json

        print(json.dumps(rows, indent=2))
    else:
        print_table(_COLUMNS, map(_cells, rows))


def _described(route: Route, group: str, plan: Plan, middleware: Iterable[object]) -> dict[str, Any]:
    filters = route.filters(group)
    return {
        "name": route.name,
        "template": route.template.text,
        "filter": list(filters),
        "qos": route.qos,
        "group": route.group(group),
        "workers": route.workers,
        "slots": sorted({slot for filter in filters for slot in plan.slots(filter)}),
        "handler": _qualified(route.handler),
        "source": route.source,
        "middleware": [_qualified(each) for each in middleware],
        "description": route.description,
        "tags": list(route.options.tags),
    }


def _qualified(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _cells(row: dict[str, Any]) -> list[str]:
    shown = row | {"slots": _span(row["slots"]) if row["slots"] else None}
    return [_cell(shown[column]) for column in _COLUMNS]


def _span(numbers: Sequence[int]) -> str:
    """`0-2` for 0, 1, 2: slots are without gaps, but for those of several subscriptions."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and last - first + 1 == len(numbers):
        return f"{first}-{last}"
    return ",".join(map(str, numbers))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
