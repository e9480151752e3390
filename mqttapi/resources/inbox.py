"""`Inbox`: a message that comes again is not handled again.

A broker delivers a message of QoS 1 again when its acknowledgement got lost, or when the app ended before it was sent.
With an inbox the handler's own transaction also notes the key of the message: what is committed is known to be handled,
and what was rolled back is not.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from mqttapi.context import Context
from mqttapi.errors import ConfigurationError, Drop, InvalidParameter
from mqttapi.injection.functions import Parameter, called, kind_of
from mqttapi.injection.hints import MISSING
from mqttapi.injection.params import Depends, UserProperty
from mqttapi.injection.sources import Attribute, Call, Dependency, Resource, Signature
from mqttapi.publisher import NO_REPLY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["Inbox", "through_outbox"]

DAY: Final = 86_400.0
NEVER: Final = 0xFFFF_FFFF
_LONGEST: Final = 200
_UNREADABLE: Final = (LookupError, TypeError, AttributeError, ValueError)
"""What a function raises that looks for a key where the payload has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """Handle each message of a route once, though it may be delivered more than once.

        @app.topic("orders/<id>", inbox=Inbox(key="order-id"))
        async def order(order: Order, session: Session) -> None: ...

    Before the handler runs, `(route, key)` is inserted into the table `mqttapi_inbox`, in the transaction of the session
    that the handler gets. Where it is there already, the message is dropped and acknowledged. What the handler returns
    is sent through the outbox, so that it leaves if and only if the transaction is committed.

    The name of the route is part of the key: give the route a `name=`, so that a renamed function knows what was handled.

    Attributes:
        key: What is the same for the same message only: the name of a user property that the sender sets, or a function
            with the parameters of a dependency, such as `lambda payload: payload["id"]`. Neither packet ids nor hashes of
            payloads are such keys: ids are used again, and two messages may be equal. A message without key is rejected,
            also one for which the function raises what a payload of another form leads to, such as `KeyError`.
        ttl: Seconds until a key is forgotten. It must be more than the session's expiry, after which the broker forgets
            the message. Default: a day more; never, where the session does not expire.
    """

    key: str | Callable[..., Hashable]
    ttl: float | None = None

    def __post_init__(self) -> None:
        if not self.key or not (isinstance(self.key, str) or callable(self.key)):
            raise ConfigurationError(
                f"Inbox(key={self.key!r}): key must be the name of a user property, or a function that gives the key"
            )
        ttl: object = self.ttl
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or not ttl > 0):
            raise ConfigurationError(f"Inbox(ttl={self.ttl!r}): ttl must be a number of seconds above 0")

    def lifetime(self, session_expiry: float, label: str) -> float | None:
        """Seconds until a key may be forgotten; None: never.

        Raises:
            ConfigurationError: When that is before the broker forgets the message.
        """
        if self.ttl is None:
            return None if session_expiry >= NEVER else session_expiry + DAY
        if self.ttl <= session_expiry:
            raise ConfigurationError(
                f"{label}: Inbox(ttl={self.ttl:g}) must be more than the session's expiry ({session_expiry:g} s): "
                "a message may come again as long as the session lasts"
            )
        return self.ttl

    def claim(self) -> Depends:
        """A dependency that notes the message in the transaction of its handler, or drops it."""
        from sqlalchemy.ext.asyncio import AsyncSession

        import mqttapi.resources.outbox  # noqa: F401  what the handler returns goes there: makes its types known
        from mqttapi.resources.tables import INBOX, insert_new

        given: Any = UserProperty(self.key) if isinstance(self.key, str) else Depends(_rejecting(self.key))

        async def claim(context: Context, session: AsyncSession, key: str = given) -> None:
            text = _text(key)
            statement = insert_new(
                session.get_bind().dialect.name, INBOX, route=context.route.name, key=text, handled_at=time.time()
            )
            result: Any = await session.execute(statement)
            if not result.rowcount:
                raise Drop("it has been handled before: its key is in the inbox")

        claim.__qualname__ = "inbox"
        claim.__annotations__["session"] = AsyncSession  # by its name it would not be found: it is imported here
        marker: Depends = Depends(claim)
        return marker


def _rejecting(key: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but it rejects a message that it cannot read."""
    kind = kind_of(key)
    if kind.is_context or not inspect.isroutine(key):  # with a `yield`, or a class or an object: as it is
        return key

    @functools.wraps(key)
    async def awaited(*args: Any, **given: Any) -> Any:
        try:
            return await key(*args, **given)
        except _UNREADABLE as error:
            raise _no_key(key, error) from error

    @functools.wraps(key)
    def plain(*args: Any, **given: Any) -> Any:
        try:
            return key(*args, **given)
        except _UNREADABLE as error:
            raise _no_key(key, error) from error

    return awaited if kind.is_async else plain


def _no_key(key: Callable[..., Any], error: Exception) -> InvalidParameter:
    return InvalidParameter(f"there is no key for the inbox: {called(key)} raised {type(error).__name__}")


def _text(key: object) -> str:
    text = "" if key is None else key.hex() if isinstance(key, bytes) else str(key)
    if not text:
        raise InvalidParameter("the key for the inbox is empty")
    if len(text) > _LONGEST or "\0" in text:
        return f"blake2b:{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"
    return text


def through_outbox(signature: Signature, send: Callable[[Any, Any, object], Awaitable[object]]) -> Signature:
    """The same handler, but what it returns is given to `send(context, outbox, result)` within its transaction."""
    from mqttapi.resources.outbox import Outbox

    async def settle(result: object, context: Context, outbox: Outbox) -> object:
        await send(context, outbox, result)
        return NO_REPLY

    handler = signature.handler
    arguments = (
        (Parameter("result", MISSING, MISSING, keyword=False), Dependency(handler)),
        (Parameter("context", Context, MISSING, keyword=False), Attribute("context")),
        (Parameter("outbox", Outbox, MISSING, keyword=False), Resource(Outbox, optional=False)),
    )
    return replace(signature, handler=Call(handler.original, settle, True, False, False, arguments))
