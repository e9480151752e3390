"""The routers of a package, found by themselves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App, ConfigurationError, RouterRegistry
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Package:
    """A package of the test's own, that can be imported."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    def write(self, path: str, text: str) -> None:
        target = self.directory / self.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def router(self, path: str, topic: str, more: str = "") -> None:
        self.write(
            path,
            f"from mqttapi import Router\nrouter = Router()\n{more}\n@router.topic({topic!r})\nasync def handler(): ...\n",
        )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Package]:
    name = "found_routers"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Package(tmp_path, name)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def templates(app: App) -> list[str]:
    return [route.template.text for route in app.routes]


def refusal(make: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return caught.value


def test_every_module_gives_its_router_nested_ones_too_in_the_order_of_their_names(package: Package) -> None:
    package.write("__init__.py", "")
    package.router("b.py", "b")
    package.router("a.py", "a")
    package.router("deep/__init__.py", "deep")
    package.router("deep/er/x.py", "x")  # no __init__: a namespace package
    assert templates(App(discover=package.name)) == ["a", "b", "deep", "x"]
    found = RouterRegistry(package.name).discover()
    assert list(found) == [f"{package.name}.{name}" for name in ("a", "b", "deep", "deep.er.x")]


def test_a_package_without_an_init_is_one_too(package: Package) -> None:
    package.router("a.py", "a")
    assert templates(App(discover=package.name)) == ["a"]


def test_what_begins_with_an_underscore_is_a_helper(package: Package) -> None:
    package.write("_shared.py", "raise RuntimeError")
    package.write("_old/x.py", "raise RuntimeError")
    package.router("a.py", "a")
    assert templates(App(discover=package.name)) == ["a"]


def test_a_router_that_two_modules_have_is_included_once(package: Package) -> None:
    package.router("a.py", "a")
    package.write("b.py", f"from {package.name}.a import router\n@router.topic('b')\nasync def handler(): ...\n")
    assert templates(App(discover=package.name)) == ["a", "b"]


def test_names_and_patterns_may_be_given_after_the_app_was_made(package: Package) -> None:
    package.router("a.py", "a/<id>")
    app = App(discover=package.name)
    app.pattern("id", "[0-9]+")
    assert app.routes[0].template.match("a/x") is None


async def test_it_happens_at_the_start(package: Package) -> None:
    package.router("a.py", "a")
    app = App(discover=package.name)
    async with TestClient(app) as client:
        assert (await client.publish("a")).outcome == "done"
    assert app.topic_for(f"{package.name}.a.handler") == "a"


async def test_a_module_that_cannot_be_imported_stops_the_start_with_its_error_as_the_cause(package: Package) -> None:
    package.router("a.py", "a")
    package.write("b.py", "1/0\n")
    app = App(discover=package.name)
    for _ in range(2):  # the second time as well
        with pytest.raises(ConfigurationError) as caught:
            async with TestClient(app):
                pytest.fail("started")
        assert str(caught.value) == f"cannot discover '{package.name}.b': importing it raised ZeroDivisionError"
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_module_that_leaves_the_program_is_an_error_too(package: Package) -> None:
    package.write("a.py", "raise SystemExit(0)")
    assert "importing it raised SystemExit" in str(refusal(lambda: App(discover=package.name).routes))


def test_a_module_that_a_module_misses_is_named(package: Package) -> None:
    package.write("a.py", "import nosuch_module\n")
    assert str(refusal(lambda: App(discover=package.name).routes)) == (
        f"cannot discover '{package.name}.a': '{package.name}.a' imports 'nosuch_module', which is not there"
    )


def test_what_a_module_says_that_it_misses_is_told(package: Package) -> None:
    package.write("a.py", "raise ModuleNotFoundError('install the driver')\n")
    assert str(refusal(lambda: App(discover=package.name).routes)) == (
        f"cannot discover '{package.name}.a': importing '{package.name}.a' says: install the driver"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has no 'router'"), ("router = 3", "has a 'router' that is a int")],
)
def test_a_module_without_a_router_is_refused(package: Package, text: str, said: str) -> None:
    package.write("a.py", text)
    assert str(refusal(lambda: App(discover=package.name).routes)) == (
        f"module '{package.name}.a' {said}: write router = Router(...), or let its name begin with '_'"
    )


def test_a_wrong_route_names_its_module(package: Package) -> None:
    package.router("a.py", "a/#/b")
    assert str(refusal(lambda: App(discover=package.name).routes)).startswith(
        f"the router of '{package.name}.a': handler() on 'a/#/b': "
    )


def test_a_wrong_route_is_told_again_the_second_time(package: Package) -> None:
    package.router("a.py", "a")
    package.router("b.py", "a/#/b")
    app = App(discover=package.name)
    first, second = (str(refusal(lambda: app.routes)) for _ in range(2))
    assert first.startswith(f"the router of '{package.name}.b': handler() on 'a/#/b': ")
    assert second == first


def test_a_wrong_declaration_is_told_with_its_module(package: Package) -> None:
    package.write("a.py", "from mqttapi import Router\nrouter = Router(qoss=1)\n")
    assert str(refusal(lambda: App(discover=package.name).routes)) == (
        f"cannot discover '{package.name}.a': Router(prefix=''): unknown option 'qoss'. Did you mean 'qos'?"
    )


def test_a_file_whose_name_is_no_modules_is_named(package: Package) -> None:
    package.router("a.b.py", "a")
    assert "a.b.py' is no module: its name holds a '.'. Rename it" in str(
        refusal(lambda: App(discover=package.name).routes)
    )


@pytest.mark.parametrize("name", ["", "app/routers", ".routers", "app routers"])
def test_discover_must_be_the_name_of_a_package(name: str) -> None:
    assert str(refusal(lambda: App("x", discover=name))) == (
        f"App('x'): discover must be a package's name, such as 'app.routers', got {name!r}"
    )


def test_a_package_that_is_not_there_is_named() -> None:
    assert str(refusal(lambda: App(discover="nosuch.routers").routes)) == (
        "there is no package 'nosuch.routers' to discover routers in"
    )


def test_a_module_is_no_package() -> None:
    assert str(refusal(lambda: App(discover="json.decoder").routes)) == (
        "'json.decoder' is a module: discover= names the package that holds the routers"
    )


def test_discover_must_be_a_name() -> None:
    assert str(refusal(lambda: App("x", discover=3))) == "App('x'): discover must be a package's name or None, got 3"  # type: ignore[arg-type]
