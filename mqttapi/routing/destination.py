"""`Destination`: where a route sends something of its own accord, a topic with the route's parameters in it."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from mqttapi.errors import ConfigurationError, InvalidTopic
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.topics import TemplateParameter

__all__ = ["Destination"]

_RENDERED = (str, int, float, UUID, Decimal, date, Enum)


class Destination:
    """`dead_letter=` or `publish_to=` of one route: a template over its parameters, `<topic>` and `<route>`.

    Args:
        text: The template, as it was written.
        source: The template of the route.
        route: The name of the route.
        label: What error texts start with.

    Raises:
        ConfigurationError: When there may be messages of the route for which it gives no topic.
    """

    __slots__ = ("_params", "_route", "_source", "template", "text")

    def __init__(self, text: str, *, source: TopicTemplate, route: str, label: str) -> None:
        try:
            self.template = TopicTemplate(text)
        except ConfigurationError as error:
            raise type(error)(f"{label}: {error}") from None
        self.text = text
        self._source = source
        self._route = route
        own = [name for name in ("topic", "route") if name not in source.names]
        self._params = [name for name in self.template.names if name in source.names]
        problem = _shape(self.template) or next(
            filter(None, (self._problem(parameter, own) for parameter in self.template.parameters.values())), None
        )
        if problem:
            raise ConfigurationError(f"{label}: {text!r} {problem}")

    def topic(self, values: Sequence[object], topic: str) -> str:
        """The topic for a message on `topic` with these path parameters.

        Raises:
            InvalidTopic: When it would be too long, or begin with `$`.
        """
        given = dict(zip(self._source.names, values, strict=True))
        params: dict[str, object] = {name: given[name] for name in self._params}
        whole = []
        for name in self.template.names:
            if name not in params:
                params[name] = topic if name == "topic" else self._route
                whole += ["topic"] if name == "topic" else []
        return self.template.render(params, topics=whole)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Filters that match each topic it gives: `+` stands for a parameter, and the route's filters for `<topic>`."""
        return tuple(
            dict.fromkeys(
                self._pattern(filter, source) for filter in self.template.filters for source in self._source.filters
            )
        )

    def _pattern(self, filter: str, source: str) -> str:
        own = {
            text: value
            for name, value in (("topic", source), ("route", self._route))
            if name not in self._source.names
            for text in (f"<{name}>", f"{{{name}}}")
        }
        texts = self.text.split("/")
        levels = [own.get(texts[min(at, len(texts) - 1)], level) for at, level in enumerate(filter.split("/"))]
        before, wildcard, _ = "/".join(levels).partition("#")  # what stands behind a topic of any length
        return before + wildcard

    def __repr__(self) -> str:
        return f"Destination({self.text!r})"

    def _problem(self, parameter: TemplateParameter, own: Sequence[str]) -> str | None:
        name = parameter.name
        if name in own:
            return self._own_problem(parameter)
        if name not in self._source.names:
            known = ", ".join((*self._source.names, *own))
            return f"has a parameter {name!r}, which is none of the route's. There are: {known}"
        given = self._source.parameters[name]
        if given.optional and not parameter.optional:
            return f"needs a value for {name!r}, which is optional in {self._source.text!r}. Leave it out, or write <{name}?>"
        if given.converter == "path" and parameter.converter != "path":
            return f"takes one level for {name!r}, which has several in {self._source.text!r}. Write <{name}:path> at its end"
        if not issubclass(given.type, (*_RENDERED, parameter.type)):
            return f"cannot hold {name!r}, which is a {given.type.__name__}. Write <{name}:{given.converter}>"
        return None

    def _own_problem(self, parameter: TemplateParameter) -> str | None:
        """A level of its own, and nothing that the value might not fit."""
        name = parameter.name
        if parameter.constrained or parameter.parse or parameter.optional or parameter.converter == "path":
            return f"restricts <{name}>, which is given as it is. Write <{name}>"
        if name == "topic":
            whole = {"<topic>", "{topic}"}.intersection(self.text.split("/"))
            return None if whole else "has <topic> as a part of a level. Make it a level of its own"
        try:
            TopicTemplate("<route>").render({"route": self._route})
        except InvalidTopic:
            return f"cannot hold the route's name {self._route!r}. Give the route a name without '/', '+' and '#'"
        return None


def _shape(template: TopicTemplate) -> str | None:
    if template.text.startswith("$"):
        return "begins with '$': such topics belong to the broker"
    if not template.renderable:
        return "holds a wildcard: a message goes to one topic"
    if template.text.startswith(("<", "{")) and not template.text.startswith(("<route>", "{route}")):
        return "begins with a parameter, which might begin with '$' [MQTT5 §4.7.2]. Start it with a literal"
    return None
