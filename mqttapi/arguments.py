"""What `App(…)` may be given: everything that can be wrong with it is found where it is written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mqttapi.config import Session
from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of, takes
from mqttapi.routing.options import check, check_constraints
from mqttapi.topics import validate_filter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_arguments", "check_yielded"]

_KINDS: Final[Mapping[str, tuple[type, str]]] = {
    "name": (str, "a text"),
    "broker": (str, "a URL, such as 'mqtt://localhost:1883',"),
    "session": (Session, "a Session(...)"),
    "discover": (str, "a package's name"),
}
_CHOICES: Final = {
    "dispatch": ("all", "first"),
    "placement": ("first", "spread"),
    "overlap": ("ids", "links"),
    "ack_order": ("arrival", "completed"),
    "redis": ("required", "optional"),
}


def check_arguments(
    label: str,
    options: Mapping[str, Any],
    *,
    former_filters: Sequence[str],
    lifespan: Any,
    credentials: Any,
    **others: Any,
) -> None:
    """Refuse what is wrong.

    Args:
        label: What error texts call the app.
        options: The defaults of all routes.
        former_filters: As `App` is given it, and so are those that follow.
        lifespan: Likewise.
        credentials: Likewise.
        others: Those of `_KINDS` and `_CHOICES`, and `discover`.

    Raises:
        ConfigurationError: With the argument, its value and the rule.
    """
    check(options, label, beside=(*others, "former_filters", "lifespan", "credentials", "settings", "system_topics"))
    check_constraints(options.get("where", {}), label)
    for name, (kind, rule) in _KINDS.items():
        value = others[name]
        if not isinstance(value, kind | None):
            got = type(value).__name__ if name == "broker" else repr(value)  # there may be a password in it
            raise ConfigurationError(f"{label}: {name} must be {rule} or None, got {got}")
    for name, (first, second) in _CHOICES.items():
        if others[name] not in (first, second):
            raise ConfigurationError(f"{label}: {name} must be {first!r} or {second!r}, got {others[name]!r}")
    if isinstance(former_filters, str):
        raise ConfigurationError(f"{label}: former_filters must be a list, such as [{former_filters!r}]")
    for text in former_filters:
        validate_filter(text)
    _check_discover(label, others["discover"])
    _check_lifespan(label, lifespan)
    if credentials is not None and not (callable(credentials) and kind_of(credentials).is_async):
        raise ConfigurationError(
            f"{label}: credentials must be an 'async def' that returns (username, password), "
            f"not a {type(credentials).__name__}"
        )


def _check_discover(label: str, discover: str | None) -> None:
    if discover is not None and not all(part.isidentifier() for part in discover.split(".")):
        raise ConfigurationError(f"{label}: discover must be a package's name, such as 'app.routers', got {discover!r}")


def _check_lifespan(label: str, lifespan: Any) -> None:
    if lifespan is None:
        return
    if not callable(lifespan):
        raise ConfigurationError(f"{label}: lifespan must be a function with @asynccontextmanager, got {lifespan!r}")
    if inspect.isasyncgenfunction(lifespan):
        raise ConfigurationError(
            f"{label}: lifespan: {called(lifespan)} lacks @contextlib.asynccontextmanager above it"
        )
    if not takes(lifespan, 1):
        raise ConfigurationError(f"{label}: lifespan: {called(lifespan)} must take one argument, the app")


def check_yielded(name: str, given: object) -> None:
    """Refuse what a lifespan yields where it is meant for somebody, as Starlette's state is.

    Raises:
        ConfigurationError: With the way that there is.
    """
    if isinstance(given, Mapping):
        raise ConfigurationError(
            f"App({name!r}): lifespan yields {', '.join(map(repr, given)) or 'a dict'}, and nobody gets that: write "
            "'app.state.name = value' before the 'yield', or make it a resource"
        )
