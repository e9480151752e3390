"""`mqttapi run` when a handler ends the process: what it had is finished, and its message comes again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine

APP = """\
import asyncio, os, sys, threading
from mqttapi import App

app = App("failing", timeout=float(os.environ.get("TIMEOUT", "60")))

@app.topic("failing/<id>", ordered_by=None)
{definition} handle(payload: str) -> None:
    print("begin", payload, flush=True)
    if os.environ.get("FAILING"):
        {body}
    print("end", payload, flush=True)
"""


@pytest.mark.parametrize(("statement", "code"), [("sys.exit(3)", 3), ("raise KeyboardInterrupt", 1)])
def test_a_handler_that_exits_drains_the_process_and_its_message_comes_again(
    mqttapi: CommandLine, mosquitto: Mosquitto, statement: str, code: int
) -> None:
    body = f"await asyncio.sleep(0.5 if payload == 'slow' else 0.1)\n        if payload == 'exit': {statement}"
    mqttapi.write("main.py", APP.format(definition="async def", body=body))
    app = mqttapi.start("run", "--broker", mosquitto.url, FAILING="1")
    app.wait_for("subscribed")
    for payload in ("slow", "exit"):
        mqttapi("pub", "failing/1", payload, "--broker", mosquitto.url)
    assert app.wait() == code
    assert "end slow" in app.output
    assert "end exit" not in app.output
    again = mqttapi.start("run", "--broker", mosquitto.url)
    again.wait_for("end exit")
    again.stop()


def test_a_plain_function_that_takes_too_long_ends_the_process_with_the_reason(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """Although its thread never ends."""
    mqttapi.write("main.py", APP.format(definition="def", body="threading.Event().wait()"))
    app = mqttapi.start("run", "--broker", mosquitto.url, FAILING="1", TIMEOUT="0.1")
    app.wait_for("subscribed")
    mqttapi("pub", "failing/1", "x", "--broker", mosquitto.url)
    assert app.wait() == 1
    assert "took longer than 0.1 s on failing/1, in a thread that nothing can stop" in app.output
    again = mqttapi.start("run", "--broker", mosquitto.url)
    again.wait_for("end x")
    again.stop()


def test_a_handler_that_blocks_the_loop_is_named_while_it_does(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP.format(definition="async def", body="threading.Event().wait()"))
    app = mqttapi.start("run", "--broker", mosquitto.url, FAILING="1")
    app.wait_for("subscribed")
    mqttapi("pub", "failing/1", "x", "--broker", mosquitto.url)
    app.wait_for("main.handle (main.py:6, on failing/1) blocks the event loop for more than a second")
    app.wait_for("threading.Event().wait()")
    app.process.kill()
    again = mqttapi.start("run", "--broker", mosquitto.url)
    again.wait_for("end x")
    again.stop()
