"""From `module:app` to an App: which part failed, and how to mend it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import InProcess

APP = """\
from mqttapi import App

app = App("plant")

def make():
    return App("made")

def make_nothing():
    return None

def make_trouble():
    raise RuntimeError("no luck")

class Holder:
    inner = App("inner")

@app.topic("a/<id>")
async def handler(id: str) -> None: ...
"""


def _error(in_process: InProcess, *arguments: str) -> list[str]:
    code, out, lines = in_process("routes", *arguments)
    assert (code, out) == (2, "")
    return lines


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nosuch:app"], "mqttapi: cannot load 'nosuch:app': there is no module 'nosuch' in DIR"),
        (["mian:app"], "mqttapi: cannot load 'mian:app': there is no module 'mian' in DIR; did you mean 'main'?"),
        (["main.x:app"], "mqttapi: cannot load 'main.x:app': there is no module 'main.x' in DIR"),
        (["main:ap"], "mqttapi: cannot load 'main:ap': 'main' has no 'ap'; did you mean 'main:app'?"),
        (["main:app.x"], "mqttapi: cannot load 'main:app.x': 'main' has no 'app.x'; did you mean 'main:app'?"),
        (
            ["other:app"],
            "mqttapi: cannot load 'other:app': 'other' has no 'app', and no App under another name",
        ),
        (
            ["main:make"],
            "mqttapi: cannot load 'main:make': it is function, not a mqttapi.App; if it makes the App, add --factory",
        ),
        (["other:things"], "mqttapi: cannot load 'other:things': it is list, not a mqttapi.App"),
        (
            ["main:app", "--factory"],
            "mqttapi: cannot load 'main:app': it is an App already: leave --factory out",
        ),
        (
            ["main:make_nothing", "--factory"],
            "mqttapi: cannot load 'main:make_nothing': the factory returned NoneType, not a mqttapi.App",
        ),
        (
            ["other:things", "--factory"],
            "mqttapi: cannot load 'other:things': --factory needs a function that makes the App, not list",
        ),
    ],
)
def test_what_is_wrong_with_a_target_is_one_line(in_process: InProcess, arguments: list[str], line: str) -> None:
    in_process.write("main.py", APP)
    in_process.write("other.py", "things = []\n")
    assert _error(in_process, *arguments) == [line]


def test_without_a_target_it_says_what_it_tried(in_process: InProcess) -> None:
    in_process.write("main.py", "api = 1\n")
    assert _error(in_process) == [
        (
            "mqttapi: no app found; tried main:app ('main' has no 'app', and no App under another name), app:app "
            "(there is no module 'app' in DIR), the routers of app/routers (there is no such directory); "
            "name yours: mqttapi run module:app"
        )
    ]


@pytest.mark.parametrize("name", ["main", "app"])
def test_without_a_target_main_and_app_are_tried(in_process: InProcess, name: str) -> None:
    in_process.write(f"{name}.py", APP)
    assert "a/<id>" in in_process("routes")[1]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [(["main:app"], 1), (["main:make", "--factory"], 0), (["main:Holder.inner"], 0), (["--app-dir", "src"], 1)],
)
def test_what_leads_to_an_app(in_process: InProcess, arguments: list[str], found: int) -> None:
    in_process.write("main.py", APP)
    in_process.write("src/main.py", APP)
    code, out, _ = in_process("routes", *arguments, "--json")
    assert code == 0
    assert len(json.loads(out)) == found


def test_an_error_in_the_module_shows_the_users_frames_only(in_process: InProcess) -> None:
    in_process.write("main.py", "import json\nfrom helper import value\n")
    in_process.write("helper.py", "import json\nvalue = json.loads('{')\n")
    lines = _error(in_process, "main:app")
    assert [line.strip() for line in lines if line.strip().startswith("File ")] == [
        'File "DIR/main.py", line 2, in <module>',
        'File "DIR/helper.py", line 2, in <module>',
    ]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "mqttapi: cannot load 'main:app': importing 'main' raised JSONDecodeError"


def test_debug_shows_all_frames(in_process: InProcess) -> None:
    in_process.write("main.py", "import json\nvalue = json.loads('{')\n")
    said = "\n".join(_error(in_process, "main:app", "--debug"))
    assert "/json/" in said
    assert "cli/target.py" in said


def test_a_module_that_the_users_module_misses_is_not_mistaken_for_the_target(in_process: InProcess) -> None:
    in_process.write("main.py", "import nosuch\n")
    lines = _error(in_process, "main:app")
    assert '  File "DIR/main.py", line 1, in <module>' in lines
    assert lines[-1] == "mqttapi: cannot load 'main:app': 'main' imports 'nosuch', which is not there"


def test_what_the_users_module_says_that_it_misses_is_told(in_process: InProcess) -> None:
    in_process.write("main.py", "raise ModuleNotFoundError('install the driver')\n")
    lines = _error(in_process, "main:app")
    assert lines[-1] == "mqttapi: cannot load 'main:app': importing 'main' says: install the driver"


def test_an_error_in_main_is_not_hidden_by_trying_app(in_process: InProcess) -> None:
    in_process.write("main.py", "1/0\n")
    in_process.write("app.py", APP)
    assert _error(in_process)[-1] == "mqttapi: cannot load 'main:app': importing 'main' raised ZeroDivisionError"


def test_a_syntax_error_shows_its_place(in_process: InProcess) -> None:
    in_process.write("main.py", "x = (\n")
    lines = _error(in_process, "main:app")
    assert '  File "DIR/main.py", line 1' in lines
    assert lines[-1] == "mqttapi: cannot load 'main:app': importing 'main' raised SyntaxError"
    assert not any("importlib" in line for line in lines)


def test_an_error_in_the_factory_shows_the_users_frames_only(in_process: InProcess) -> None:
    in_process.write("main.py", APP)
    lines = _error(in_process, "main:make_trouble", "--factory")
    assert [line for line in lines if line.startswith("  File ")] == ['  File "DIR/main.py", line 12, in make_trouble']
    assert lines[-2:] == [
        "RuntimeError: no luck",
        "mqttapi: cannot load 'main:make_trouble': calling the factory raised RuntimeError",
    ]


def test_a_wrong_registration_is_told_with_its_place_and_without_a_traceback(in_process: InProcess) -> None:
    in_process.write(
        "main.py", 'from mqttapi import App\n\napp = App("plant")\n\n\n@app.topic("a/#/b")\ndef f(): ...\n'
    )
    lines = _error(in_process, "main:app")
    assert lines[0].startswith("mqttapi: DIR/main.py:6: f() on 'a/#/b': ")
    assert "Traceback" not in "\n".join(lines)


ROUTER = """\
from mqttapi import Router

router = Router()

@router.topic("TOPIC")
async def handler() -> None: ...
"""


def test_without_a_target_and_an_app_the_routers_of_app_routers_are_found(in_process: InProcess) -> None:
    in_process.write("app/routers/devices.py", ROUTER.replace("TOPIC", "devices/<id>"))
    in_process.write("app/routers/admin/users.py", ROUTER.replace("TOPIC", "users/<id>"))
    code, out, _ = in_process("routes", "--json")
    assert code == 0
    assert [route["template"] for route in json.loads(out)] == ["users/<id>", "devices/<id>"]


def test_an_app_comes_before_the_routers_that_could_be_discovered(in_process: InProcess) -> None:
    in_process.write("app/__init__.py", APP)
    in_process.write("app/routers/devices.py", ROUTER.replace("TOPIC", "devices/<id>"))
    assert "devices" not in in_process("routes")[1]


@pytest.mark.parametrize("discover", [True, False])
def test_a_router_module_that_fails_shows_the_users_frames_only(in_process: InProcess, discover: bool) -> None:
    if discover:
        in_process.write("main.py", "from mqttapi import App\napp = App(discover='app.routers')\n")
    in_process.write("app/routers/devices.py", "import json\nvalue = json.loads('{')\n")
    code, _, lines = in_process("routes")
    assert code == 2
    assert [line.strip() for line in lines if line.strip().startswith("File ")] == [
        'File "DIR/app/routers/devices.py", line 2, in <module>',
    ]
    assert lines[-1] == (
        f"mqttapi: cannot load {'main:app' if discover else 'app.routers'!r}: cannot discover 'app.routers.devices': "
        "importing it raised JSONDecodeError"
    )


def test_a_wrong_route_of_a_router_module_names_the_module(in_process: InProcess) -> None:
    in_process.write("app/routers/devices.py", ROUTER.replace("TOPIC", "a/#/b"))
    code, _, lines = in_process("routes")
    assert code == 2
    assert lines[0].startswith("mqttapi: the router of 'app.routers.devices': handler() on 'a/#/b': ")
