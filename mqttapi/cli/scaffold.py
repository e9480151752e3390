"""`mqttapi new` and `mqttapi make`: files to begin with. What is there already is never written over."""

from __future__ import annotations

import contextlib
import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from mqttapi.cli import templates
from mqttapi.cli.options import AppDir, Debug
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["make", "new"]

Kind = Literal["controller", "middleware", "router", "model"]

_FOLDERS: Final[dict[Kind, str]] = {
    "controller": "controllers",
    "middleware": "middleware",
    "router": "routers",
    "model": "models",
}
_SUFFIXES: Final[dict[Kind, str]] = {"controller": "Controller", "middleware": "Middleware", "router": "", "model": ""}


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The directory to make; '.' is the current one.")],
    debug: Debug = False,
) -> None:
    """Begin a project: app/routers, app/controllers, app/middleware and app/models, found by themselves."""
    directory = Path(name)
    title = directory.resolve().name
    if not name or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", title):
        raise ConfigurationError(
            "new: a project's name has letters, digits, '.', '_' and '-', and begins and ends with a letter or a digit, "
            f"got {(name and title)!r}. Choose another, or '.' for the current directory"
        )
    files = {path: text.replace("NAME", title) for path, text in templates.PROJECT.items()}
    _write(directory, files, "new")
    enter = "" if directory.resolve() == Path.cwd() else f"cd {name} && "
    print(f"begun {title}: {enter}mqttapi dev")


def make(
    kind: Annotated[Kind, typer.Argument(metavar="controller|middleware|router|model", help="What to make.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as Device, or admin/Device for a folder in it.")],
    app_dir: AppDir = Path(),
    debug: Debug = False,
) -> None:
    """Add a controller, a middleware, a router or a model to a project."""
    *folders, last = name.replace("\\", "/").split("/")
    suffix = _SUFFIXES[kind]
    stem = last.removesuffix(suffix) or last
    module, cls = _snake(stem), f"{_camel(stem)}{suffix}"
    for part in (*folders, module, cls):
        if not part.isidentifier():
            raise ConfigurationError(
                f"make {kind}: {name!r} must be made of Python names, such as Device or admin/Device"
            )
        if keyword.iskeyword(part):
            raise ConfigurationError(
                f"make {kind}: {name!r} needs something called {part!r}, a word that Python keeps for itself. Choose "
                "another name"
            )
        if kind == "router" and part.startswith("_"):
            raise ConfigurationError(
                f"make router: {name!r} would not be found: what begins with '_' is left out, as a helper. Choose "
                "another name"
            )
    package = Path("app", _FOLDERS[kind], *folders)
    text = templates.PARTS[kind].replace("CLASS", cls).replace("MODULE", module)
    packages = [f"{folder.as_posix()}/__init__.py" for folder in (package, *package.parents[:-1])]
    _write(app_dir, {f"{(package / module).as_posix()}.py": text}, f"make {kind}", packages)


def _write(directory: Path, files: Mapping[str, str], command: str, empty: Iterable[str] = ()) -> None:
    """Write all of the files, or none; and of those in `empty` what is not there."""
    target, made = directory, list[Path]()
    try:
        _refuse_what_is_there(directory, files, command)
        for path, text in (*files.items(), *((path, "") for path in empty)):
            target = directory / path
            if not target.exists():
                _make_directories(target.parent, made)
                made.append(target)
                target.write_text(text, encoding="utf-8")
    except OSError as error:
        for each in reversed(made):
            with contextlib.suppress(OSError):
                each.rmdir() if each.is_dir() else each.unlink()
        raise ConfigurationError(
            f"{command}: {str(target)!r} cannot be written: {error.strerror}; nothing was. Choose another place"
        ) from None
    for name in files:
        print(f"wrote {(directory / name).as_posix()}")


def _refuse_what_is_there(directory: Path, files: Iterable[str], command: str) -> None:
    for place in (directory, *(directory / parent for path in files for parent in reversed(Path(path).parents))):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(
                f"{command}: {str(place)!r} is no directory: nothing was written. Move it away, or choose another place"
            )
    there = [path for path in files if (directory / path).exists()]
    if there:
        raise ConfigurationError(
            f"{command}: {', '.join(there)} {'is' if len(there) == 1 else 'are'} there already in "
            f"{str(directory)!r}: nothing was written. Move what is there away, or choose another name"
        )


def _make_directories(directory: Path, made: list[Path]) -> None:
    """Make a directory and what is above it, and note what was not there."""
    if not directory.exists():
        _make_directories(directory.parent, made)
        directory.mkdir()
        made.append(directory)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-", "_", name).lower()


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[_-]", name))
