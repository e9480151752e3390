"""`mqttapi dead`: the dead letters that are on the disk, because the broker did not take them."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mqttapi.cli.options import AppDir, BrokerUrl, Debug, Factory, Target
from mqttapi.cli.problems import FAILED, tell
from mqttapi.cli.tables import print_table
from mqttapi.errors import BrokerError, ConfigurationError, ConnectionRefused, MQTTAPIError, NotConnected
from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mqttapi.config import Settings
    from mqttapi.publisher import Publish
    from mqttapi.runtime.spool import Letter, Spool

__all__ = ["dead"]

dead = typer.Typer(help="Dead letters on the disk: those that the broker did not take.", no_args_is_help=True)

_COLUMNS: Final = ("id", "time", "route", "topic", "error", "attempts", "bytes", "to", "why")
_NOBODY: Final = 0x10

All = Annotated[bool, typer.Option("--all", help="All letters there are.")]
Directory = Annotated[
    Path | None,
    typer.Option("--dir", metavar="PATH", help="Where they are, instead of looking it up in the app."),
]
Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[MODULE:APP] ID...", help="Where the App is, and which letters.")
]


@dead.command("list")
def list_letters(
    target: Target = None,
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    debug: Debug = False,
) -> None:
    """Show what is there, the oldest first."""
    spool = _Spool(target, directory, app_dir, factory).spool
    with _disk(spool):
        letters, damaged = spool.letters(), spool.damaged()
    if as_json:
        import json

        print(json.dumps([_described(letter) for letter in letters], indent=2))
    elif letters:
        print_table(_COLUMNS, map(_row, letters))
    else:
        tell(f"there are no dead letters in {spool.directory}")
    if damaged:
        tell(f"{damaged} more are damaged: they were being written when a process died")


@dead.command()
def show(
    letters: Letters = None,
    directory: Directory = None,
    payload: Annotated[bool, typer.Option("--payload", help="Only the payload, byte for byte.")] = False,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    debug: Debug = False,
) -> None:
    """Show letters with all that is known about them."""
    target, ids = _parted(letters)
    for letter in _chosen(_Spool(target, directory, app_dir, factory).spool, ids, every=False):
        if payload:
            sys.stdout.buffer.write(letter.payload)
            continue
        for name, value in _described(letter).items():
            print(f"{name:17} {printable(str(value))}")


@dead.command()
def resend(
    letters: Letters = None,
    every: All = False,
    original: Annotated[
        bool, typer.Option("--original", help="To the topic it came on, to be handled again; else as a dead letter.")
    ] = False,
    directory: Directory = None,
    broker: BrokerUrl = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    debug: Debug = False,
) -> None:
    """Publish letters, and take out those that the broker has confirmed."""
    import asyncio

    target, ids = _parted(letters)
    place = _Spool(target, directory, app_dir, factory)
    chosen = _chosen(place.spool, ids, every=every)
    sent: list[str] = []
    try:
        for letter in chosen:
            try:
                asyncio.run(_publish(letter, place, broker, original=original))
            except MQTTAPIError as error:
                if len(chosen) == 1 or isinstance(error, NotConnected | ConnectionRefused):  # so would the others
                    raise
                tell(str(error))
            else:
                sent.append(letter.id)
    finally:
        tell(f"sent {len(sent)} of {len(chosen)}")
        if sent:
            with _disk(place.spool, "those that were sent are still there"):
                place.spool.remove(sent)
    if len(sent) < len(chosen):
        raise typer.Exit(FAILED)


@dead.command()
def discard(
    letters: Letters = None,
    every: All = False,
    directory: Directory = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    debug: Debug = False,
) -> None:
    """Delete letters for good."""
    target, ids = _parted(letters)
    spool = _Spool(target, directory, app_dir, factory).spool
    chosen = _chosen(spool, ids, every=every)
    with _disk(spool, "all are still there"):
        spool.remove([letter.id for letter in chosen])
    tell(f"discarded {len(chosen)}")


class _Spool:
    """Where the letters of an app are, and its broker."""

    def __init__(self, target: str | None, directory: Path | None, app_dir: Path, factory: bool) -> None:
        from mqttapi.config import Settings, state_dir
        from mqttapi.runtime.spool import Spool

        self.broker: str | None = None
        if directory is not None:
            if target is not None:
                raise ConfigurationError("give --dir or an app, not both")
            if not directory.is_dir():
                raise ConfigurationError(f"--dir: {str(directory)!r} is not a directory")
            self.settings: Settings = Settings()
        else:
            from mqttapi.cli.target import load

            app = load(target, app_dir=app_dir, factory=factory)
            self.settings = app.settings or Settings()
            self.broker = app.broker
            directory = state_dir(app.name, self.settings.state_dir)
        self.spool: Spool = Spool(directory, self.settings.spool_max_bytes)


@contextlib.contextmanager
def _disk(spool: Spool, left: str = "") -> Iterator[None]:
    """It may be full or read-only, and the letters those of another user."""
    try:
        yield
    except OSError as error:
        verb = f"change the dead letters in {spool.directory}, and {left}" if left else f"read {spool.directory}"
        raise MQTTAPIError(f"cannot {verb}: {error.strerror or error}") from None


def _parted(given: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The app, which has a colon, and the ids, which have none."""
    words = list(given or ())
    target = words.pop(0) if words and ":" in words[0] else None
    return target, words


def _chosen(spool: Spool, ids: Sequence[str], *, every: bool) -> list[Letter]:
    with _disk(spool):
        letters = {letter.id: letter for letter in spool.letters()}
    if every:
        if ids:
            raise ConfigurationError("give ids or --all, not both")
        return list(letters.values())
    if not ids:
        raise ConfigurationError("which letters? Give their ids: 'mqttapi dead list' shows them")
    for id in ids:
        if id not in letters:
            raise ConfigurationError(f"there is no letter {id!r} in {spool.directory}: 'mqttapi dead list' shows all")
    return [letters[id] for id in dict.fromkeys(ids)]


async def _publish(letter: Letter, place: _Spool, broker: str | None, *, original: bool) -> None:
    from mqttapi.config import resolve_broker
    from mqttapi.transport import console

    settings = place.settings
    message = _original(letter) if original else _again(letter, settings)
    result = await console.publish(resolve_broker(broker, None, settings, place.broker), settings, message)
    if result.reason_code == _NOBODY:
        raise BrokerError(f"letter {letter.id}: nobody has subscribed to {printable(message.topic)!r}")


def _again(letter: Letter, settings: Settings) -> Publish:
    from mqttapi.runtime.dead_letters import publish_of

    if not letter.to:
        raise ConfigurationError(
            f"letter {letter.id} has no dead letter topic ({letter.why}): resend it with --original"
        )
    return publish_of(letter, properties=settings.protocol == "5")


def _original(letter: Letter) -> Publish:
    from mqttapi.publisher import Publish

    return Publish(
        letter.topic,
        letter.payload,
        qos=1,
        content_type=letter.content_type,
        correlation_data=letter.correlation_data,
        user_properties=letter.user_properties,
    )


def _described(letter: Letter) -> dict[str, Any]:
    """`payload` is text, or else `payload_base64` is there instead; what is not known is left out."""
    from base64 import b64encode

    described = {name: value for name, value in asdict(letter).items() if value is not None and value != ()}
    for name in ("correlation_data", "payload"):
        if name in described:
            data: bytes = described.pop(name)
            try:
                described[name] = data.decode()
            except UnicodeDecodeError:
                described[f"{name}_base64"] = b64encode(data).decode()
    return described


def _row(letter: Letter) -> list[str]:
    values = asdict(letter) | {"bytes": len(letter.payload)}
    return [printable(str(values[column])) or "-" for column in _COLUMNS]
