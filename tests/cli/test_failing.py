"""`mqttapi run` when a handler ends its process: what it had is finished, and its message comes again."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine

APP = """\
import asyncio, os, sys, threading
from mqttapi import App

app = App("failing", timeout=float(os.environ.get("TIMEOUT", "60")))

@app.topic("failing/<id>", ordered_by=None)
{definition} handle(payload: str) -> None:
    print("begin", payload, flush=True)
    if not os.path.exists("healed"):
        {body}
    print("end", payload, flush=True)
"""


@pytest.mark.parametrize("statement", ["sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_handler_that_exits_drains_its_worker_and_its_message_comes_again(
    mqttapi: CommandLine, mosquitto: Mosquitto, statement: str
) -> None:
    heal = "open('healed', 'w').close()"
    body = f"await asyncio.sleep(0.5 if payload == 'slow' else 0.1)\n        if payload == 'exit': {heal}; {statement}"
    mqttapi.write("main.py", APP.format(definition="async def", body=body))
    app = mqttapi.start("run", "--broker", mosquitto.url)
    app.wait_for("subscribed")
    for payload in ("slow", "exit"):
        mqttapi("pub", "failing/1", payload, "--broker", mosquitto.url)
    app.wait_for("was ended by a handler: starting it again at once")
    app.wait_for("end exit")
    assert app.stop() == 0
    assert app.output.index("end slow") < app.output.index("starting it again")
    assert app.output.count("begin slow") == 1


def test_a_plain_function_that_takes_too_long_ends_its_worker_with_the_reason(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """Although its thread never ends."""
    body = "open('healed', 'w').close(); threading.Event().wait()"
    mqttapi.write("main.py", APP.format(definition="def", body=body))
    app = mqttapi.start("run", "--broker", mosquitto.url, TIMEOUT="0.1")
    app.wait_for("subscribed")
    mqttapi("pub", "failing/1", "x", "--broker", mosquitto.url)
    app.wait_for("took longer than 0.1 s on failing/1, in a thread that nothing can stop")
    app.wait_for("end x")
    assert app.stop() == 0


def test_a_handler_that_blocks_the_loop_is_named_while_it_does(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    body = "open('healed', 'w').close(); threading.Event().wait()"
    mqttapi.write("main.py", APP.format(definition="async def", body=body))
    app = mqttapi.start("run", "--broker", mosquitto.url)
    app.wait_for("subscribed")
    mqttapi("pub", "failing/1", "x", "--broker", mosquitto.url)
    app.wait_for("main.handle (main.py:6, on failing/1) blocks the event loop for more than a second")
    app.wait_for("threading.Event().wait()")
    os.kill(app.worker(), signal.SIGKILL)
    app.wait_for("end x")
    assert app.stop() == 0
