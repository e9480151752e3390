"""`Declaration`: what a decorator was told. `Route`: what an app makes of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mqttapi.routing.options import Overflow, Retained, RouteOptions, inherit
from mqttapi.topics import share

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from mqttapi.injection import Depends, Signature
    from mqttapi.message import Message
    from mqttapi.middleware import Layer
    from mqttapi.resources.inbox import Inbox
    from mqttapi.routing.destination import Destination
    from mqttapi.routing.retry import Retry
    from mqttapi.routing.router import Router
    from mqttapi.topics import Constraint, TopicTemplate

__all__ = ["Declaration", "Route"]


@dataclass(frozen=True, slots=True)
class Declaration:
    """A handler on a template, with the options that were given so far. Routers add theirs on the way to the app."""

    template: str
    handler: Callable[..., Any]
    options: Mapping[str, Any]
    where: Mapping[str, Constraint] = field(default_factory=dict)
    """The constraints of the route itself: each must name a parameter. Those among `options` are inherited."""
    fallback: bool = False
    """Whether it is for what no other route matches."""
    listens: str | None = None
    """What a fallback subscribes to: a template."""
    asks_for_row: bool = False
    """Whether the route itself has `missing=`."""
    scopes: tuple[Router, ...] = ()
    """The routers it was declared under, outermost first: their middleware runs around the route's own."""

    def within(self, router: Router) -> Declaration:
        """The same route seen from `router`, which has a prefix, a prefix of names, and defaults."""
        options = inherit(router.options, self.options)
        if options.get("name"):
            options["name"] = router.name + options["name"]
        return replace(
            self,
            template=router._joined(self.template),
            options=options,
            listens=self.listens and router._joined(self.listens),
            scopes=(router, *self.scopes),
        )

    @property
    def label(self) -> str:
        """What error texts call it: `ingest() on 'sensors/<device_id>/data'`."""
        return f"{getattr(self.handler, '__name__', repr(self.handler))}() on {self.template!r}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One handler on one template, complete and checked."""

    name: str
    template: TopicTemplate
    handler: Callable[..., Any]
    signature: Signature
    scopes: tuple[Router, ...]
    qos: int
    shared: bool | str
    workers: int | None
    middleware: tuple[Layer, ...]
    dependencies: tuple[Depends, ...]
    ordered_by: str | Callable[[Message], Hashable] | None
    concurrency: int | None
    timeout: float | None
    retry: Retry | None
    dead_letter: Destination | None
    publish_to: Destination | None
    missing: object
    inbox: Inbox | None
    retained: Retained
    overflow: Overflow
    isolate: bool
    ack: Literal["handled", "received"]
    fallback: bool
    """Whether it is for what no other route matches; its template is the scope then."""
    listens: tuple[str, ...]
    """What to subscribe to, without groups: the filters of the template, but for a fallback's."""
    options: RouteOptions

    def group(self, default: str) -> str | None:
        """The name of the shared group; `default` where the route says only `shared=True`; None: not shared."""
        if isinstance(self.shared, str):
            return self.shared
        return default if self.shared else None

    def filters(self, default_group: str) -> tuple[str, ...]:
        """What to subscribe to, `$share/<group>/` included."""
        return tuple(share(self.group(default_group), text) for text in self.listens)

    @property
    def source(self) -> str:
        """`file:line` of the handler, for people."""
        return source_of(self.handler)

    @property
    def description(self) -> str:
        """What the route is for: the option, else the first line of the handler's docstring."""
        return self.options.description or (inspect.getdoc(self.handler) or "").partition("\n")[0]


def source_of(handler: Callable[..., Any]) -> str:
    """`file:line` of a function, as far as it can be known."""
    code = getattr(inspect.unwrap(handler), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else "unknown"
