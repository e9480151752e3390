"""`mqttapi check`: what an app will do that it was hardly meant to do, and what a broker has to allow it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from mqttapi.cli.options import AppDir, Debug, EnvFile, Factory, Target, WorkerCap
from mqttapi.cli.problems import FAILED
from mqttapi.cli.run import use_settings
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.cli.checks import Found, Subject
    from mqttapi.routing import Route

__all__ = ["check"]

_SHOWN: Final = 5

Acl = Annotated[
    Literal["mosquitto", "json"] | None,
    typer.Option(case_sensitive=False, help="Only what the broker has to allow, in this form; findings go to stderr."),
]
Ignore = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="CHECK", help="Leave a check out, by its name; may be repeated.")
]


def check(
    target: Target = None,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with 1 for warnings, too.")] = False,
    ignore: Ignore = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    acl: Acl = None,
    workers: WorkerCap = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Say what looks wrong in an app, and the least that a broker has to allow it; without connecting."""
    if as_json and acl is not None:
        raise ConfigurationError("give --json or --acl, not both: what --json prints holds the access, too")
    use_settings(env_file=env_file)

    from mqttapi.cli.checks import CHECKS, Subject, look_at
    from mqttapi.cli.target import load
    from mqttapi.config import Settings

    _refuse_unknown(ignore or (), list(CHECKS))
    subject = Subject(load(target, app_dir=app_dir, factory=factory), Settings(), cap=workers)
    found = look_at(subject, without=ignore or ())
    if as_json:
        _print_json(subject, found)
    else:
        _print_text(subject, found, acl)
    levels = {each.finding.level for each in found}
    if "error" in levels or (strict and "warning" in levels):
        raise typer.Exit(FAILED)


def _refuse_unknown(names: Sequence[str], known: Sequence[str]) -> None:
    from difflib import get_close_matches

    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigurationError(f"--ignore: there is no check {name!r}: {hint}")


def _print_text(subject: Subject, found: Sequence[Found], acl: Literal["mosquitto", "json"] | None) -> None:
    import sys

    from mqttapi.cli.checks.access import access_of, as_json, as_mosquitto

    said = sys.stdout if acl is None else sys.stderr
    for each in found:
        print(_as_text(each), end="\n\n", file=said)
    print(_summary(subject, found), file=said, flush=True)
    access = access_of(subject)
    if acl == "json":
        import json

        print(json.dumps(as_json(access), indent=2))
    else:
        print(*([] if acl else [""]), as_mosquitto(access), sep="\n")


def _as_text(found: Found) -> str:
    name, finding = found
    about = ", ".join(f"{route.name} ({route.source})" for route in finding.routes[:_SHOWN]) or "the app"
    more = f" and {len(finding.routes) - _SHOWN} more" if len(finding.routes) > _SHOWN else ""
    lines = (finding.what, finding.why, finding.way_out)
    return "\n    ".join((f"{finding.level}: {about}{more} [{name}]", *filter(None, lines)))


def _summary(subject: Subject, found: Sequence[Found]) -> str:
    counts = Counter(each.finding.level for each in found)
    levels = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items()]
    routes = len(subject.routes)
    return f"{subject.app.name}, {routes} route{'' if routes == 1 else 's'}: {', '.join(levels) or 'nothing to say'}"


def _print_json(subject: Subject, found: Sequence[Found]) -> None:
    import json

    from mqttapi.cli.checks.access import access_of, as_json

    findings = [
        {
            "level": finding.level,
            "check": name,
            "routes": [_described(route) for route in finding.routes],
            "what": finding.what,
            "why": finding.why,
            "way_out": finding.way_out,
        }
        for name, finding in found
    ]
    print(json.dumps({"app": subject.app.name, "findings": findings, "acl": as_json(access_of(subject))}, indent=2))


def _described(route: Route) -> dict[str, Any]:
    return {"name": route.name, "source": route.source}
