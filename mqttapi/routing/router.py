"""`Router`: declarations that belong together, to be included in an app or in another router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mqttapi.errors import ConfigurationError
from mqttapi.middleware import as_middleware
from mqttapi.routing.options import check
from mqttapi.routing.route import Declaration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from mqttapi.middleware import Middleware
    from mqttapi.routing.options import SharedOptions, TopicOptions

__all__ = ["Router"]

F = TypeVar("F", bound="Callable[..., Any]")


class Router:
    """A group of routes with a common prefix, common options and middleware.

        router = Router(prefix="devices/<device_id>", qos=1)

        @router.topic("data")
        async def data(device_id: str, reading: Reading) -> None: ...

        app.include_router(router, prefix="plant")

    Routes that are added after the router was included arrive in the app as well, until the app starts.

    Args:
        prefix: Stands before every template, joined with exactly one `/`.
        options: Defaults of its routes; see `SharedOptions`. `middleware` runs around each of its routes.

    Raises:
        ConfigurationError: When an option is unknown or has a wrong value.
    """

    def __init__(self, *, prefix: str = "", **options: Unpack[SharedOptions]) -> None:
        given: dict[str, Any] = dict(options)
        check(given, f"Router(prefix={prefix!r})")
        self.prefix = prefix
        self._middleware: list[Middleware] = [as_middleware(mw) for mw in given.pop("middleware", ())]
        self._options = given
        self._declarations: list[Declaration] = []
        self._includers: list[Callable[[Declaration], None]] = []

    def topic(self, template: str, /, **options: Unpack[TopicOptions]) -> Callable[[F], F]:
        """Let the decorated function handle every message of a topic. It stays the function that it was.

        Args:
            template: Such as `sensors/<device_id>/data`; `{device_id}` means the same.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When the template, an option or the signature of the function is wrong. What depends on
                the prefix is checked when the router is included in an app.
        """
        if callable(template):
            name = getattr(template, "__name__", repr(template))
            raise ConfigurationError(f"@topic needs a topic template: write @topic('some/topic') above {name}")

        def decorate(handler: F) -> F:
            self.add(template, handler, **options)
            return handler

        return decorate

    def add(self, template: str, handler: Callable[..., Any], **options: Unpack[TopicOptions]) -> None:
        """What `topic` does, as a call."""
        given: dict[str, Any] = dict(options)
        declaration = Declaration(template, handler, given)
        check(given, declaration.label)
        self._accept(declaration.within(self, self.prefix, self._options))

    def include_router(self, router: Router, *, prefix: str = "", **options: Unpack[SharedOptions]) -> None:
        """Take over the routes of another router, those it has and those it will get.

        Args:
            router: The router to include; it may be included more than once, under different prefixes.
            prefix: Stands before every template of `router`, joined with exactly one `/`.
            options: Defaults for its routes, weaker than its own. `middleware` runs around the router's own.
        """
        if router is self:
            raise ConfigurationError("a router cannot include itself")
        bridge = Router(prefix=prefix, **options)

        def forward(declaration: Declaration) -> None:
            through = declaration.within(bridge, bridge.prefix, bridge._options)
            self._accept(through.within(self, self.prefix, self._options))

        for declaration in tuple(router._declarations):
            forward(declaration)
        router._includers.append(forward)

    def middleware(self, function: F) -> F:
        """Add the decorated function to the middleware of this router, inside of what is there."""
        self.add_middleware(function)
        return function

    def add_middleware(self, middleware: object) -> None:
        """Add `middleware` innermost: it runs inside of what was added before.

        Raises:
            ConfigurationError: When it is neither `async def mw(context, call_next)` nor has such a `handle`.
        """
        self._middleware.append(as_middleware(middleware))

    @property
    def scope_middleware(self) -> Sequence[Middleware]:
        """The middleware of this router alone, outermost first."""
        return self._middleware

    @property
    def declarations(self) -> Sequence[Declaration]:
        """The routes declared so far, included routers' too."""
        return self._declarations

    def _accept(self, declaration: Declaration) -> None:
        for includer in self._includers:
            includer(declaration)
        self._declarations.append(declaration)
