"""`<device:serial>`: what stands behind the colon may be a column of the table that is the parameter's hint."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mqttapi.errors import InvalidTemplate
from mqttapi.injection.functions import called, parameters_of
from mqttapi.injection.hints import Hint, is_table
from mqttapi.injection.methods import Method
from mqttapi.injection.params import MARKERS, Depends
from mqttapi.topics import Converter
from mqttapi.topics.converters import known_converters
from mqttapi.topics.syntax import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["column_converters", "has_rows"]


def column_converters(
    text: str, handler: Callable[..., Any], dependencies: Sequence[Depends]
) -> Mapping[str, Converter]:
    """Converters for what a template has behind a colon and is a column of a table: they take any level.

    Args:
        text: The template.
        handler: Its hints, and those of what it depends on, say which parameters are tables.
        dependencies: Those of the route.

    Raises:
        InvalidTemplate: When the template cannot be read, or a table has no such column.
    """
    unknown = {
        slot.name: slot.converter
        for level in parse(text)
        for slot in level.slots
        if slot.converter not in known_converters
    }
    if not unknown:
        return {}
    found: dict[str, Converter] = {}
    for name, table in _tables([handler, *(marker.dependency for marker in dependencies)], set()):
        column = unknown.get(name)
        if column is None:
            continue
        if column not in table.model_fields:
            near = get_close_matches(column, table.model_fields, n=1)
            guess = f". Did you mean {near[0]!r}?" if near else ""
            columns = ", ".join(table.model_fields)
            raise InvalidTemplate(
                f"'<{name}:{column}>': there is no converter {column!r}, and {table.__name__} has no such column "
                f"({columns}){guess}"
            )
        found[column] = Converter(column, None)
    return found


def has_rows(names: Sequence[str], handler: Callable[..., Any], dependencies: Sequence[Depends]) -> bool:
    """Whether one of these path parameters is a table, in the handler or in what it depends on."""
    functions = [handler, *(marker.dependency for marker in dependencies)]
    return any(name.removesuffix("_") in names or name in names for name, _ in _tables(functions, set()))


def _tables(functions: Sequence[Any], seen: set[int]) -> Iterator[tuple[str, type[Any]]]:
    """The parameters that are tables, of the functions and what they depend on."""
    for function in functions:
        if function is None or not callable(function) or id(function) in seen:
            continue
        seen.add(id(function))
        inner: list[Any] = [function.cls] if isinstance(function, Method) else []
        plain = function.function if isinstance(function, Method) else function
        for parameter in parameters_of(plain, called(function)):
            hint = Hint.of(parameter.hint, without=MARKERS)
            inner += [
                item.dependency or hint.only
                for item in (*hint.metadata, parameter.default)
                if isinstance(item, Depends)
            ]
            if is_table(hint.only):
                yield parameter.name, hint.only
        yield from _tables(inner, seen)
