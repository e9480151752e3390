"""What `App(…)` may be given: everything that can be wrong with it is found where it is written."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from mqttapi.config import Session
from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of, takes
from mqttapi.routing.options import check, check_constraints
from mqttapi.topics import validate_filter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_arguments"]

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
    discover: object,
    session: object,
    lifespan: Any,
    credentials: Any,
    **choices: object,
) -> None:
    """Refuse what is wrong.

    Args:
        label: What error texts call the app.
        options: The defaults of all routes.
        former_filters: As `App` is given it, and so are those that follow.
        discover: Likewise.
        session: Likewise.
        lifespan: Likewise.
        credentials: Likewise.
        choices: Those of `_CHOICES`.

    Raises:
        ConfigurationError: With the argument, its value and the rule.
    """
    check(options, label)
    check_constraints(options.get("where", {}), label)
    for name, (first, second) in _CHOICES.items():
        if choices[name] not in (first, second):
            raise ConfigurationError(f"{label}: {name} must be {first!r} or {second!r}, got {choices[name]!r}")
    for text in former_filters:
        validate_filter(text)
    _check_discover(label, discover)
    if session is not None and not isinstance(session, Session):
        raise ConfigurationError(f"{label}: session must be a Session(...) or None, got {session!r}")
    _check_lifespan(label, lifespan)
    if credentials is not None and not (callable(credentials) and kind_of(credentials).is_async):
        raise ConfigurationError(
            f"{label}: credentials must be an 'async def' that returns (username, password), "
            f"not a {type(credentials).__name__}"
        )


def _check_discover(label: str, discover: object) -> None:
    if discover is None:
        return
    if not isinstance(discover, str):
        raise ConfigurationError(f"{label}: discover must be a package's name or None, got {discover!r}")
    if not all(part.isidentifier() for part in discover.split(".")):
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
