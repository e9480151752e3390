"""What a session still holds though nobody wants it any more: the subscriptions of a former version of the app.

A broker cannot be asked for them [MQTT5 §3.8]. They are known from a record on disk, and with MQTT 5 from the identifiers
of the messages that they bring: these are hashes of filters, and a topic is matched by a limited number of filters.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mqttapi.errors import NotConnected
from mqttapi.message import printable
from mqttapi.runtime.links import filter_with_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mqttapi.config.record import Record
    from mqttapi.transport.connection import Connection

__all__ = ["LeftBehind"]

log = logging.getLogger("mqttapi.link")

_MOST_TRIED: Final = 100


class LeftBehind:
    """Unsubscribes what one link does not want.

    Args:
        record: Of the link's client id.
        former: Further filters that may be in the session.
        groups: Those that a filter may have been shared in.
    """

    def __init__(self, record: Record, *, former: Iterable[str], groups: Collection[str]) -> None:
        self._record = record
        self._groups = groups
        self._noted = record.load()
        self.known = bool(self._noted)
        """Whether an earlier run of the app has had a session."""
        self._former = frozenset(former)
        self._wanted: frozenset[str] = frozenset()
        self._unwanted: set[str] = set()
        self._tried: set[int] = set()
        self._changed = asyncio.Event()

    @property
    def filters(self) -> frozenset[str]:
        """All that may be in the session, as far as is known."""
        return self._noted | self._former

    def note(self, filter: str) -> None:
        """Note what is about to be subscribed to beside what is wanted: a later run of the app is to unsubscribe it."""
        self._note(self._noted | {filter})

    def begin(self, wanted: Iterable[str], *, session_present: bool) -> frozenset[str]:
        """Note what is about to be subscribed to, before it is; gives what the session may hold already."""
        known = self._noted | self._former if session_present else frozenset()
        self._wanted = frozenset(wanted)
        self._unwanted = set(known - self._wanted)
        self._note(self._wanted | self._unwanted)
        return known

    def found(self, topic: str, number: int, filter: str | None) -> None:
        """A message came for a subscription that the link does not have; `filter` is given where it is known."""
        if number in self._tried or len(self._tried) == _MOST_TRIED:
            return
        self._tried.add(number)
        filter = filter or filter_with_id(number, topic, self._groups)
        if filter is None:
            log.warning(
                "a message on %s came for a subscription (identifier %d) that this app does not have, and whose filter "
                "cannot be told: name it in App(former_filters=[...])",
                printable(topic),
                number,
            )
            return
        self._unwanted.add(filter)
        self._note(self._noted | {filter})
        self._changed.set()

    async def unsubscribe(self, connection: Connection, others_stand: asyncio.Event) -> None:
        """Do so while the connection stands, once the links that may have taken a filter over are subscribed."""
        await others_stand.wait()
        while True:
            self._changed.clear()
            filters = sorted(self._unwanted)
            if filters:
                with suppress(NotConnected):  # some brokers send no UNSUBACK
                    await connection.unsubscribe_all(filters)
                if connection.closed.done():
                    return
                log.info("unsubscribed from what a former version of the app had left: %s", ", ".join(filters))
                self._unwanted.difference_update(filters)
                self._note(self._wanted | self._unwanted)
            await self._changed.wait()

    def end(self) -> None:
        """The session is no more."""
        self._record.forget()

    def _note(self, filters: frozenset[str] | set[str]) -> None:
        if filters != self._noted:
            self._noted = frozenset(filters)
            self._record.save(filters)
