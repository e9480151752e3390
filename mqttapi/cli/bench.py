"""`mqttapi bench`: what a message costs an app."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mqttapi.cli.options import AppDir, Debug, EnvFile, Factory, Target
from mqttapi.cli.run import use_settings
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mqttapi.app import App
    from mqttapi.cli.measuring import Result
    from mqttapi.injection.sources import Call
    from mqttapi.routing import Route
    from mqttapi.topics import TopicTemplate

__all__ = ["bench", "made_up"]

NUMBER: Final = "{n}"


def bench(
    target: Target = None,
    topic: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC", help="{n} is a number, so that there are many.", show_default="made from the first route"
        ),
    ] = None,
    payload: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="What each message carries.", show_default="nothing")
    ] = None,
    qos: Annotated[
        int | None, typer.Option(min=0, max=1, help="The quality of service.", show_default="the routes', at most 1")
    ] = None,
    messages: Annotated[int, typer.Option(min=1, help="How many are measured, after one per topic.")] = 100_000,
    window: Annotated[int, typer.Option(min=1, max=65_535, help="Messages of QoS 1 in flight, at most.")] = 1_000,
    topics: Annotated[int, typer.Option(min=1, help="How many there are.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Measure what a message costs an app: CPU time, and how many it handles in a second.

    The app runs as it does in service, with its lifespan and resources. Instead of a broker, a program on another core
    sends it messages that were encoded beforehand, and takes what it publishes.
    """
    use_settings(env_file=env_file)

    import asyncio

    from mqttapi import logs
    from mqttapi.cli.fake_broker import Plan
    from mqttapi.cli.measuring import measured
    from mqttapi.cli.target import load
    from mqttapi.config import Settings
    from mqttapi.serving import loop_factory

    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    app = load(target, app_dir=app_dir, factory=factory)
    names = list(_numbered(topic, topics) if topic else made_up(app, topics))
    routes = [route for route in app.routes if route.template.match(names[0]) is not None]
    if not routes:
        raise ConfigurationError(f"--topic: no route is for {names[0]!r}; mqttapi routes shows what there is")
    if payload is None:
        _refuse_to_guess(routes)
    plan = Plan(
        topics=names,
        payload=_bytes(payload or ""),
        messages=messages,
        warmup=len(names),
        qos=min(max(route.qos for route in routes), 1) if qos is None else qos,
        window=window,
        pause=0.1,
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        result = runner.run(measured(app, plan))
    if as_json:
        import json

        print(json.dumps(asdict(result)))
    else:
        _print(result)


def _print(result: Result) -> None:
    ends = [f"{name} {getattr(result, name):,}" for name in ("done", "dropped", "rejected", "failed", "retried")]
    print(
        f"messages  {result.messages:,} of QoS {result.qos}, {result.payload:,} bytes, on {result.topics:,} topics",
        f"handled   {', '.join(end for end in ends if not end.endswith(' 0'))}",
        f"CPU       {result.cpu_us:.2f} µs a message, user and system",
        f"wall      {result.wall_us:.2f} µs a message: {result.per_second:,} a second",
        sep="\n",
    )


# ------------------------------------------------------------------------------------------------------ what is sent


def _numbered(topic: str, count: int) -> Iterator[str]:
    from mqttapi.topics import validate_topic

    for number in range(count if NUMBER in topic else 1):
        name = topic.replace(NUMBER, str(number))
        if not number:
            validate_topic(name)
        yield name


def made_up(app: App, count: int) -> Iterator[str]:
    """Topics of the first route; fewer, where it has no parameters or these can be few things only."""
    route = next((route for route in app.routes if not route.fallback), None)
    if route is None:
        raise ConfigurationError("the app has no route to send messages to")
    names = dict.fromkeys(_fill(route.template, number) for number in range(count if route.template.names else 1))
    for name in names:
        if name is None:
            example = route.template.filters[0].replace("+", NUMBER).replace("#", NUMBER)
            raise ConfigurationError(
                f"cannot make up topics for {route.template.text!r} of {route.name}: say which, such as "
                f"--topic '{example}'"
            )
        yield name


def _fill(template: TopicTemplate, number: int) -> str | None:
    """A topic that the template matches; None: it takes something that cannot be guessed."""
    from uuid import UUID

    from mqttapi.errors import InvalidTopic

    guesses = (str(number), str(UUID(int=number)), ("false", "true")[number % 2])
    params = {
        name: next((guess for guess in guesses if parameter.accepts is None or parameter.accepts(guess)), "")
        for name, parameter in template.parameters.items()
    }
    try:
        return template.render(params)
    except InvalidTopic:
        return None


def _bytes(payload: str) -> bytes:
    return Path(payload).read_bytes() if os.path.isfile(payload) else payload.encode()  # noqa: PTH113  takes any text


def _refuse_to_guess(routes: Sequence[Route]) -> None:
    """Without a payload, a handler that needs one would reject every message."""
    from mqttapi.injection.hints import show

    for route in routes:
        for hint in _payloads(route.signature.handler):
            fields = getattr(hint.only, "model_fields", {})
            example = "{" + ", ".join(f'"{name}": …' for name, field in fields.items() if field.is_required()) + "}"
            raise ConfigurationError(
                f"{route.name} takes a payload ({show(hint.whole)}): give one with --payload FILE or --payload "
                f"'{example if fields else 'TEXT'}'"
            )


def _payloads(call: Call) -> Iterator[Any]:
    """The hints of the parameters that cannot do without a payload."""
    from mqttapi.injection.hints import MISSING
    from mqttapi.injection.sources import Dependency, Read

    for parameter, source in call.arguments:
        if isinstance(source, Dependency):
            yield from _payloads(source.call)
        elif isinstance(source, Read) and parameter.default is MISSING:
            hint = source.payload
            if hint is not None and not hint.nullable:
                yield hint
