"""The program that a worker process is: started by the supervisor, never by people.

    python -m mqttapi.cli.worker module:app --slot=0 {"control": 7, …}

All but the last argument is for those who list processes; the last one says which file descriptors are whose.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttapi import logs
from mqttapi.cli.problems import FAILED, Verbosity, report
from mqttapi.cli.target import load
from mqttapi.config import Session, Settings
from mqttapi.serving import leave, run_to_its_end
from mqttapi.workers.channel import Commands
from mqttapi.workers.quarantine import quarantine_of
from mqttapi.working import introduction, work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.app import App

__all__ = ["main"]

log = logging.getLogger("mqttapi.workers")

_BEYOND_GRACE: Final = 2.0
"""Seconds beyond its `grace` after which a worker ends that nobody watches any more."""


class _Life:
    """How far the process is; read by the thread of the commands."""

    def __init__(self) -> None:
        self.serving = False
        """Whether messages may have been accepted."""
        self.grace = 30.0
        self.logs_json = False


def main(arguments: Sequence[str]) -> None:
    """Load the app, say so, serve when told to, and leave with the exit code that `mqttapi run` would have."""
    passed = json.loads(arguments[-1])
    for descriptor in passed["passed"]:
        os.set_inheritable(descriptor, False)  # not to what the app starts
    faulthandler.register(signal.SIGUSR2, chain=False)
    life = _Life()
    commands = Commands(
        socket.socket(fileno=passed["control"]),
        at_once=lambda command: _at_once(command, life),
        on_gone=lambda: _alone(life, passed["outputs"]),
    )
    commands.start()
    signal.signal(signal.SIGTERM, lambda *_: commands.give({"do": "drain"}))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = commands.next()
    try:
        code = _run(order, commands, life, passed["note"])
    except Exception as error:  # noqa: BLE001  the last line of defence
        code = _report(error, Verbosity(debug=order.get("debug", False)), life)
    leave(code)


def _report(error: Exception, verbosity: Verbosity, life: _Life) -> int:
    """Say why it ends: to people as any command does, to programs as a record among the others."""
    if not life.logs_json:
        return report(error, verbosity)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = report(error, verbosity)
    log.error("%s", said.getvalue().removeprefix("mqttapi: ").rstrip())
    return code


def _run(order: dict[str, Any], commands: Commands, life: _Life, note: int) -> int:
    if order["do"] != "load":
        return 0
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format, slot=order["slot"])
    life.logs_json = settings.log_format == "json"
    app = _load(order)
    about = introduction(app, order["cap"])
    life.grace = about["grace"]
    commands.tell("loaded", **about)
    told = commands.next()
    if told["do"] != "serve":
        return 0
    life.serving = True
    try:
        return run_to_its_end(
            work(
                app,
                commands,
                order["broker"],
                slot=order["slot"],
                size=told["size"],
                cap=order["cap"],
                rescue=told["rescue"],
                quarantine=quarantine_of(told["quarantine"], note),
            )
        )
    except SystemExit as stop:  # of a handler: what it says is no exit code of ours
        return FAILED if stop.code else 0


def _load(order: dict[str, Any]) -> App:
    app = load(order["target"], app_dir=Path(order["app_dir"]), factory=order["factory"])
    if order["transient"]:
        app.session = Session.transient()
    return app


def _at_once(command: dict[str, Any], life: _Life) -> None:
    """An import cannot be interrupted in a better way, and nothing has been accepted yet."""
    if command["do"] in {"drain", "cancel", "leave"} and not life.serving:
        os._exit(0)


def _alone(life: _Life, outputs: Sequence[int]) -> None:
    """The supervisor is no more: drain, and end, whatever the event loop is busy with."""
    for target, output in enumerate(outputs, start=1):
        os.dup2(output, target)
    if not life.serving:
        os._exit(FAILED)
    threading.Thread(target=_end_after, args=(life.grace + _BEYOND_GRACE,), name="mqttapi-end", daemon=True).start()
    log.warning("the supervisor is gone: finishing what was accepted")  # may wait for ever, where nobody reads


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
