"""Wrong usage: one clear line on stderr, exit code 2, no traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttapi._version import __version__

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, InProcess

APP = """\
from mqttapi import App

app = App("plant")
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "mqttapi: No such command 'rnu'. Did you mean 'run'?"),
        (["run", "--brokr", "x"], "mqttapi: No such option: --brokr (Possible options: --broker)"),
        (["run", "--workers", "0"], "mqttapi: --workers must be 1-512, got 0"),
        (["run", "--workers", "1000"], "mqttapi: --workers must be 1-512, got 1000"),
        (["run", "main"], "mqttapi: cannot load 'main': it must be module:attribute, such as main:app"),
        (["run", "main:"], "mqttapi: cannot load 'main:': it must be module:attribute, such as main:app"),
        (["run", "src/main.py"], "mqttapi: cannot load 'src/main.py': name a module, not a file: src.main:app"),
        (["run", "main.py:api"], "mqttapi: cannot load 'main.py:api': name a module, not a file: main:api"),
        (
            ["run", "a-b:app"],
            "mqttapi: cannot load 'a-b:app': it must be module:attribute, made of Python names, such as main:app",
        ),
        (["run", "--app-dir", "nowhere"], "mqttapi: --app-dir: 'nowhere' is not a directory"),
        (["run", "--env-file", "no.env"], "mqttapi: --env-file: there is no file 'no.env'"),
        (["pub"], "mqttapi: Missing argument 'TOPIC'."),
        (["pub", "a", "--qos", "3"], "mqttapi: --qos must be 0, 1 or 2, got 3"),
        (["pub", "a", "b", "--file", "c"], "mqttapi: give the payload as an argument or with --file, not both"),
        (["pub", "a", "--file", "c"], "mqttapi: --file: cannot read 'c': No such file or directory"),
        (["pub", "a", "--property", "k"], "mqttapi: --property must be KEY=VALUE, got 'k'"),
        (
            ["pub", "a", "--expiry", "-1"],
            "mqttapi: expiry must be 0 to 4294967295 seconds, or None for never, got -1",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(in_process: InProcess, arguments: list[str], line: str) -> None:
    assert in_process(*arguments) == (2, "", [line])


def test_the_real_command_says_the_same(mqttapi: CommandLine) -> None:
    done = mqttapi("rnu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mqttapi: No such command 'rnu'. Did you mean 'run'?\n"


@pytest.mark.parametrize("arguments", [["pub", "a/+"], ["sub", "a/#/b"], ["sub", "a+"]])
def test_invalid_topics_and_filters_are_refused_before_connecting(in_process: InProcess, arguments: list[str]) -> None:
    code, _, lines = in_process(*arguments, "--broker", "mqtt://127.0.0.1:1")
    assert code == 2
    assert lines[0].startswith(f"mqttapi: {arguments[1]!r} is not a topic")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h", "unknown scheme 'http': use mqtt, mqtts, ws, wss, unix"),
        ("mqtt://h:99999", "port must be 1-65535, got '99999'"),
        ("mqtt://u:hunter2@x@h", "percent-encode the password"),
        ("mqtt://u:hunter2/x@h", "percent-encode the password"),
    ],
)
@pytest.mark.parametrize("command", [["pub", "a"], ["sub", "a"], ["dev", "main:app"]])
def test_a_wrong_broker_url_is_explained_and_never_echoes_the_password(
    in_process: InProcess, command: list[str], url: str, reason: str
) -> None:
    code, out, lines = in_process(*command, "--broker", url)
    assert (code, out, len(lines)) == (2, "", 1)
    assert reason in lines[0]
    assert "hunter2" not in lines[0]


def test_a_wrong_broker_url_for_an_app_is_one_line(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("run", "--broker", "mqtt://u:hunter2@x@h")
    assert done.returncode == 2
    assert "percent-encode the password" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["routes"], []])
@pytest.mark.parametrize("debug", [["--debug"], []])
def test_a_broker_url_in_the_wrong_place_does_not_show_its_password(
    in_process: InProcess, arguments: list[str], debug: list[str]
) -> None:
    code, out, lines = in_process(*debug, *arguments, "mqtt://u:hunter2@h")
    assert (code, out) == (2, "")
    assert "hunter2" not in "\n".join(lines)


@pytest.mark.parametrize("arguments", [["--debug", "routes", "main"], ["routes", "main", "--debug"]])
def test_debug_shows_the_traceback_of_wrong_configuration(in_process: InProcess, arguments: list[str]) -> None:
    assert in_process(*arguments)[2][0] == "Traceback (most recent call last):"


def test_without_a_command_there_is_help(in_process: InProcess) -> None:
    code, out, lines = in_process()
    assert (code, lines) == (2, [])
    assert "Usage: mqttapi" in out


def test_version(in_process: InProcess) -> None:
    assert in_process("--version") == (0, f"mqttapi {__version__}\n", [])


def test_a_wrong_setting_is_named(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("run", MQTT_KEEPALIVE="x")
    assert done.returncode == 2
    assert "MQTT_KEEPALIVE" in done.stderr
    assert "Traceback" not in done.stderr
