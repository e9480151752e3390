"""`mqttapi new` and `mqttapi make`: what they write runs, and nothing is written over."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, InProcess


def written(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_a_new_project_runs_and_its_tests_pass(mqttapi: CommandLine) -> None:
    done = mqttapi("new", "plant-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "begun plant-1: cd plant-1 && mqttapi dev"
    for kind, name in [("controller", "Pump"), ("middleware", "Auth"), ("router", "sites"), ("model", "Device")]:
        assert mqttapi("make", kind, name, "--app-dir", "plant-1").returncode == 0
    routes = mqttapi("routes", "--app-dir", "plant-1")
    assert "devices/<device_id>/data" in routes.stdout, routes.stderr
    assert "sites/<id>/data" in routes.stdout
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        check=False,
        cwd=mqttapi.directory / "plant-1",
        env=mqttapi.environment,
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert "1 passed" in tests.stdout, tests.stdout + tests.stderr


def test_what_is_made_can_be_imported_and_passes_the_linter(mqttapi: CommandLine) -> None:
    mqttapi("new", ".")
    made = {
        "app/controllers/pump_station.py": ("controller", "PumpStation", "PumpStationController"),
        "app/controllers/admin/user.py": ("controller", "admin/UserController", "UserController"),
        "app/middleware/auth.py": ("middleware", "auth", "AuthMiddleware"),
        "app/routers/site_a.py": ("router", "site-a", "router"),
        "app/models/http_log.py": ("model", "HTTPLog", "HTTPLog"),
    }
    for path, (kind, name, _) in made.items():
        assert mqttapi("make", kind, name).stdout == f"wrote {path}\n"
    lines = [f"from {path[:-3].replace('/', '.')} import {attribute}" for path, (_, _, attribute) in made.items()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        check=False,
        cwd=mqttapi.directory,
        env=mqttapi.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (mqttapi.directory / "app/controllers/admin/__init__.py").is_file()
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP,B", "."],
        check=False,
        cwd=mqttapi.directory,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout


def test_new_refuses_to_write_over_files_and_names_them(in_process: InProcess) -> None:
    in_process.write("plant/README.md", "mine")
    in_process.write("plant/app/__init__.py", "mine")
    assert in_process("new", "plant") == (
        2,
        "",
        [
            (
                "mqttapi: new: app/__init__.py, README.md are there already in 'plant': nothing was written. "
                "Move what is there away, or choose another name"
            )
        ],
    )
    assert written(in_process.directory) == {"plant/README.md", "plant/app/__init__.py"}
    assert (in_process.directory / "plant/README.md").read_text() == "mine"


def test_new_leaves_other_files_alone(in_process: InProcess) -> None:
    in_process.write("notes.txt", "mine")
    code, _, errors = in_process("new", ".")
    assert (code, errors) == (0, [])
    assert {"notes.txt", "app/__init__.py"} <= written(in_process.directory)


def test_make_refuses_to_write_over_a_file(in_process: InProcess) -> None:
    in_process.write("app/models/device.py", "mine")
    assert in_process("make", "model", "Device") == (
        2,
        "",
        [
            (
                "mqttapi: make model: app/models/device.py is there already in '.': nothing was written. "
                "Move what is there away, or choose another name"
            )
        ],
    )
    assert (in_process.directory / "app/models/device.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "a/", "../x", "1x", "a b", "class.x"])
def test_make_refuses_names_that_are_none(in_process: InProcess, name: str) -> None:
    assert in_process("make", "router", name) == (
        2,
        "",
        [f"mqttapi: make router: {name!r} must be made of Python names, such as Device or admin/Device"],
    )
    assert written(in_process.directory) == set()


@pytest.mark.parametrize(
    ("kind", "name", "word"),
    [
        ("model", "none", "None"),
        ("model", "true", "True"),
        ("model", "class", "class"),
        ("controller", "import", "import"),
        ("router", "class/x", "class"),
    ],
)
def test_make_refuses_the_words_of_python(in_process: InProcess, kind: str, name: str, word: str) -> None:
    (error,) = in_process("make", kind, name)[2]
    assert error == (
        f"mqttapi: make {kind}: {name!r} needs something called {word!r}, a word that Python keeps for itself. Choose "
        "another name"
    )
    assert written(in_process.directory) == set()


@pytest.mark.parametrize("name", ["_x", "_old/x", "-x/y"])
def test_make_refuses_a_router_that_would_not_be_found(in_process: InProcess, name: str) -> None:
    assert in_process("make", "--", "router", name)[0] == 2
    assert written(in_process.directory) == set()


@pytest.mark.parametrize("name", ["a'b", "a-", "1.", "_a", ""])
def test_new_refuses_names_that_are_none(in_process: InProcess, name: str) -> None:
    (error,) = in_process("new", name)[2]
    assert error == (
        "mqttapi: new: a project's name has letters, digits, '.', '_' and '-', and begins and ends with a letter or a "
        f"digit, got {name!r}. Choose another, or '.' for the current directory"
    )
    assert written(in_process.directory) == set()


def test_new_refuses_a_file(in_process: InProcess) -> None:
    in_process.write("plant", "mine")
    assert in_process("new", "plant") == (
        2,
        "",
        ["mqttapi: new: 'plant' is no directory: nothing was written. Move it away, or choose another place"],
    )


@pytest.mark.parametrize(
    ("file", "arguments", "command"),
    [
        ("app", ("make", "router", "x"), "make router"),
        ("app/routers", ("make", "router", "x"), "make router"),
        ("app", ("new", "."), "new"),
        ("app/routers", ("new", "."), "new"),
    ],
)
def test_a_file_where_a_directory_must_be_is_named_and_nothing_is_left_behind(
    in_process: InProcess, file: str, arguments: tuple[str, ...], command: str
) -> None:
    in_process.write(file, "mine")
    assert in_process(*arguments) == (
        2,
        "",
        [f"mqttapi: {command}: {file!r} is no directory: nothing was written. Move it away, or choose another place"],
    )
    assert written(in_process.directory) == {file}


def test_what_cannot_be_written_is_named_and_nothing_is_left_behind(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_text, itertools.count()

    def until_the_disk_is_full(path: Path, text: str, encoding: str) -> int:
        if next(count) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", until_the_disk_is_full)
    code, said, errors = in_process("new", "a/plant")
    assert (code, said) == (2, "")
    (error,) = errors
    assert error == (
        "mqttapi: new: 'a/plant/app/controllers/__init__.py' cannot be written: No space left on device; nothing was. "
        "Choose another place"
    )
    assert list(in_process.directory.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_a_place_where_no_directory_can_be_made_is_named(in_process: InProcess) -> None:
    code, said, errors = in_process("new", "/proc/nope")
    assert (code, said, len(errors)) == (2, "", 1)
    assert errors[0].startswith("mqttapi: new: '/proc/nope/app/__init__.py' cannot be written: ")


def test_make_knows_four_kinds(in_process: InProcess) -> None:
    code, _, errors = in_process("make", "view", "x")
    assert code == 2
    assert "model': 'view' is not one of" in errors[-1]
