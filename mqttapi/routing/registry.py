"""`RouterRegistry`: the routers of a package, found by themselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mqttapi.errors import ConfigurationError
from mqttapi.routing.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

__all__ = ["RouterRegistry", "missing"]


class RouterRegistry:
    """Every module under a package, nested ones too, gives its `router`.

    Modules and packages whose names begin with `_` are helpers, and left out; so is the `__init__` of a package that
    has no `router`.

    Args:
        package: Its name, such as `app.routers`.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self._is_included = False
        self._wrong_router: str | None = None

    def include(self, include: Callable[[Router], None]) -> None:
        """Give each router to `include`, unless that was done before.

        Raises:
            ConfigurationError: See `discover`; or what `include` raised, with the module's name, now and ever after.
        """
        if self._wrong_router is not None:  # those before it are included already
            raise ConfigurationError(self._wrong_router)
        if self._is_included:
            return
        for module, router in self.discover().items():
            try:
                include(router)
            except ConfigurationError as error:
                self._wrong_router = f"the router of {module!r}: {error}"
                raise ConfigurationError(self._wrong_router) from None
        self._is_included = True

    def discover(self) -> Mapping[str, Router]:
        """Import the modules, in the order of their names: the router of each, by the module's name.

        Raises:
            ConfigurationError: When one cannot be imported (its cause is what it raised), or has no `router`.
        """
        found: dict[str, Router] = {}
        for name in _modules(_import(self.package)):
            module = _import(name)
            router = getattr(module, "router", None)
            if router is None and hasattr(module, "__path__"):
                continue
            if not isinstance(router, Router):
                is_what = "has no 'router'" if router is None else f"has a 'router' that is a {type(router).__name__}"
                raise ConfigurationError(
                    f"module {name!r} {is_what}: write router = Router(...), or let its name begin with '_'"
                )
            if router not in found.values():  # one that only passes on another's
                found[name] = router
        return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"there is no package {name!r} to discover routers in") from None
        raise ConfigurationError(f"cannot discover {name!r}: {missing(error, name)}") from error
    except ConfigurationError as error:  # says all there is to say
        raise ConfigurationError(f"cannot discover {name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"cannot discover {name!r}: importing it raised {type(error).__name__}") from error


def missing(error: ModuleNotFoundError, name: str) -> str:
    """Why the module called `name` cannot be imported: another one is not there, or what its own code says."""
    return f"{name!r} imports {error.name!r}, which is not there" if error.name else f"importing {name!r} says: {error}"


def _modules(package: ModuleType) -> Iterator[str]:
    """The names of a package and of all below it, sorted."""
    if not hasattr(package, "__path__"):
        raise ConfigurationError(
            f"{package.__name__!r} is a module: discover= names the package that holds the routers"
        )
    names = {package.__name__}
    for directory in map(Path, package.__path__):
        for path in directory.rglob("*.py"):
            parts = path.relative_to(directory).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if any(part.startswith(("_", ".")) for part in parts):
                continue
            if any("." in part for part in parts):
                raise ConfigurationError(f"{str(path)!r} is no module: its name holds a '.'. Rename it")
            names.add(".".join((package.__name__, *parts)))
    yield from sorted(names)
