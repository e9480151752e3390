"""Where in the journey of a message something is found: a key, a token, a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from mqttapi.context import Context  # at run time: aliases read the hints of constructors
from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of
from mqttapi.middleware.builtin.rules import require_function

__all__ = ["Find", "finder", "fingerprint"]

Find: TypeAlias = str | Callable[[Context], Any]
"""`"topic"`, a path parameter or what middleware has put into the context, by name; `"payload.device.id"`, a field of
it; `"property.tenant"`, a user property; or a function of the context. What is not there is None."""

_LONGEST = 64


def finder(what: object, owner: str) -> Callable[[Context], Any]:
    """A function that finds `what`, a `Find`.

    Args:
        what: Where to look.
        owner: What error texts start with.

    Raises:
        ConfigurationError: When it is no `Find`. Also when a message comes and the context has nothing of that name.
    """
    if callable(what):
        if kind_of(what).is_async:
            raise ConfigurationError(f"{owner}: {called(what)} is an 'async def': it must be a plain function")
        require_function(owner, what)
        return cast("Callable[[Context], Any]", what)
    first, *path = what.split(".") if isinstance(what, str) else [""]
    if not isinstance(what, str) or not all((first, *path)):
        raise ConfigurationError(
            f"{owner}: where to look must be a name such as 'device_id', 'payload.id' or 'property.id', "
            f"or a function of the context, got {what!r}"
        )
    if first == "property" and path:
        name = what.removeprefix("property.")
        return lambda context: context.message.user_property(name)

    def find(context: Context) -> Any:
        try:
            value = context[first]
        except KeyError:
            raise ConfigurationError(
                f"{owner}: {first!r} is neither a path parameter of the route {context.route.name!r} "
                f"({', '.join(context.route.template.names) or 'it has none'}), nor put into the context by middleware"
            ) from None
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return find


def fingerprint(value: object) -> str:
    """A short text for a value that the sender has written: itself, or its hash where it is long."""
    text = "" if value is None else str(value)
    if len(text) <= _LONGEST:
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
