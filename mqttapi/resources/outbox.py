"""`Outbox`: messages that are sent if, and only if, the transaction of the handler is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event, insert
from sqlalchemy.ext.asyncio import AsyncSession  # noqa: TC002  hints of dependencies are read at run time

from mqttapi.injection import Depends
from mqttapi.publisher import message_of
from mqttapi.resources.relay import Relay  # noqa: TC001  likewise
from mqttapi.resources.tables import OUTBOX, row_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from mqttapi.publisher import Publish, PublishOptions

__all__ = ["OUTBOXES", "Outbox", "open_outbox"]


class Outbox:
    """Publishes through the database; a handler gets it by naming the type.

        @app.topic("orders/<id>")
        async def order(id: str, order: Order, session: Session, outbox: Outbox) -> None:
            session.add(StoredOrder(id=id, amount=order.amount))
            await outbox.publish("invoices/<id>", order, params={"id": id})

    The message is written to the table `mqttapi_outbox` in the handler's transaction. After the commit one of the app's
    workers sends it, at least once. Messages of transactions that do not overlap in time are sent in their order.
    """

    def __init__(self, session: AsyncSession, relay: Relay) -> None:
        self._session = session
        self._relay = relay
        self._used = False

    async def publish(self, topic: str, payload: Any = None, **options: Unpack[PublishOptions]) -> None:
        """Send a message once the transaction is committed; the arguments are those of `Publisher.publish_nowait`.

        Raises:
            InvalidTopic: the topic, or a value put into it, is not valid.
            ConfigurationError: the payload cannot be serialised, or an option is unknown or breaks a rule.
        """
        await self.send(message_of(topic, payload, options))

    async def send(self, publish: Publish) -> None:
        """`publish`, for a `Publish`."""
        publish = publish.rendered()
        self._relay.check(publish)
        await self._session.execute(insert(OUTBOX).values(row_of(publish)))
        if not self._used:
            self._used = True
            event.listen(self._session.sync_session, "after_commit", self._committed)

    def _committed(self, session: object) -> None:
        self._relay.wake()


def open_outbox(session: AsyncSession, relay: Relay) -> Outbox:
    """An outbox in the transaction of `session`."""
    return Outbox(session, relay)


OUTBOXES: Final[Mapping[type, Any]] = {Outbox: Depends(open_outbox)}
"""The type that gets an outbox."""
