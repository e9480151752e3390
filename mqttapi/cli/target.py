"""From `module:app` on the command line to an App."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mqttapi.cli.problems import TargetError
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

    from mqttapi.app import App

__all__ = ["DEFAULT_TARGETS", "load", "split"]

DEFAULT_TARGETS: Final = ("main:app", "app:app")
DISCOVERED: Final = "app.routers"


def load(target: str | None, *, app_dir: Path, factory: bool = False) -> App:
    """Import what `target` names. `app_dir` becomes the first place to import from.

    Args:
        target: `module:attribute`; None: the first of `DEFAULT_TARGETS` that is there, else an app of the routers in
            the package `DISCOVERED`.
        app_dir: Where the user's modules are.
        factory: The attribute is a function without arguments that makes the App.

    Raises:
        TargetError: It does not lead to an App. The text says which part failed; the cause, if there is one, is what
            the user's code raised.
        ConfigurationError: `target` is a broker's URL, or None and there is no default one.
    """
    _import_from(app_dir)
    if target is not None:
        return _load(target, factory)
    tried: list[str] = []
    for candidate in DEFAULT_TARGETS:
        try:
            return _load(candidate, factory)
        except TargetError as error:
            if error.__cause__ is not None:
                raise
            tried.append(f"{candidate} ({error.reason})")
    if (app_dir / "app" / "routers").is_dir():
        return _discovered(app_dir)
    tried.append("the routers of app/routers (there is no such directory)")
    raise ConfigurationError(f"no app found; tried {', '.join(tried)}; name yours: mqttapi run module:app")


def _discovered(app_dir: Path) -> App:
    """An app of the routers that are there, called as their project."""
    from mqttapi.app import App

    name = re.sub(r"[^A-Za-z0-9_-]+", "-", app_dir.resolve().name).strip("-")
    return _with_routers(DISCOVERED, App(name or None, discover=DISCOVERED))


def _with_routers(target: str, app: App) -> App:
    """The app with what it discovers."""
    try:
        app.load()
    except ConfigurationError as error:
        if error.__cause__ is None:
            raise
        raise TargetError(target, str(error)) from error.__cause__
    return app


def _import_from(directory: Path) -> None:
    path = str(directory.resolve())
    if sys.path[0] != path:
        sys.path.insert(0, path)


def _load(target: str, factory: bool) -> App:
    name, attribute = split(target)
    module = _import(target, name)
    found = _get(target, module, attribute)
    return _with_routers(target, _make(target, found) if factory else _checked(target, found))


def split(target: str) -> tuple[str, str]:
    """The module and the attribute that `module:attribute` names.

    Raises:
        TargetError: It is something else.
        ConfigurationError: It is a broker's URL.
    """
    if "://" in target:
        # It may hold a password.
        raise ConfigurationError("the target is module:app, not a broker's URL; give that with --broker")
    name, _, attribute = target.partition(":")
    if "/" in name or name.endswith(".py"):
        module = name.removesuffix(".py").strip("./").replace("/", ".")
        raise TargetError(target, f"name a module, not a file: {module}:{attribute or 'app'}")
    if not attribute:
        raise TargetError(target, f"it must be module:attribute, such as {name or 'main'}:app")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise TargetError(target, "it must be module:attribute, made of Python names, such as main:app")
    return name, attribute


def _import(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            from mqttapi.routing.registry import missing

            raise TargetError(target, missing(error, name)) from error
        raise TargetError(
            target, f"there is no module {error.name!r} in {sys.path[0]}{_nearest_module(error.name)}"
        ) from None
    except (Exception, SystemExit) as error:
        raise TargetError(target, f"importing {name!r} raised {type(error).__name__}") from error


def _nearest_module(name: str) -> str:
    if "." in name:
        return ""
    entries = Path(sys.path[0]).iterdir()
    names = [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()]
    nearest = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _get(target: str, module: ModuleType, attribute: str) -> object:
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise TargetError(
                target, f"{module.__name__!r} has no {attribute!r}{_apps_in(module, attribute)}"
            ) from None
    return found


def _apps_in(module: ModuleType, attribute: str) -> str:
    from mqttapi.app import App

    names = [name for name, value in vars(module).items() if isinstance(value, App)]
    if not names:
        return ", and no App under another name"
    nearest = difflib.get_close_matches(attribute, names, 1, cutoff=0.0)[0]
    return f"; did you mean '{module.__name__}:{nearest}'?"


def _make(target: str, factory: object) -> App:
    from mqttapi.app import App

    if isinstance(factory, App):
        raise TargetError(target, "it is an App already: leave --factory out")
    if not callable(factory):
        raise TargetError(target, f"--factory needs a function that makes the App, not {_type(factory)}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise TargetError(target, f"calling the factory raised {type(error).__name__}") from error
    if not isinstance(made, App):
        raise TargetError(target, f"the factory returned {_type(made)}, not a mqttapi.App")
    return made


def _checked(target: str, found: object) -> App:
    from mqttapi.app import App

    if isinstance(found, App):
        return found
    hint = "; if it makes the App, add --factory" if callable(found) else ""
    raise TargetError(target, f"it is {_type(found)}, not a mqttapi.App{hint}")


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
