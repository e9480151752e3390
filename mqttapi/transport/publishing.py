"""The connection that everything goes out by: `<client id>-pub`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.transport.dialer import Dialer
from mqttapi.transport.sending import Sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mqttapi.transport.handshake import ConnectionOptions

__all__ = ["PublishingConnection"]

log = logging.getLogger("mqttapi.publishing")

SESSION_EXPIRY: Final = 300
"""Seconds that the broker keeps the state of QoS 1 and 2 publishes over a lost connection."""


class PublishingConnection:
    """A `Sender` on a connection of its own, kept alive.

    Args:
        options: Of the consuming connection.
        max_messages: See `Sender`.
        max_bytes: Likewise.
        protocol_fallback: Whether 3.1.1 may be tried where the broker does not speak MQTT 5.
        fatal: Called with a refusal for good before the first connection stood; None: it is tried again.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        *,
        max_messages: int = 10_000,
        max_bytes: int = 32 * 2**20,
        protocol_fallback: bool = False,
        fatal: Callable[[Exception], None] | None = None,
    ) -> None:
        self.state = "not connected yet"
        """What is not ready and why; empty when all is well."""
        self.goodbye = 2.0
        """Seconds that the broker has to answer the DISCONNECT at the end."""
        self.tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the first attempt to connect has ended, well or badly: `state` tells."""
        self.sender = Sender(
            max_messages=max_messages, max_bytes=max_bytes, mqtt5=options.mqtt5, state=lambda: self.state
        )
        self._name = f"{options.client_id}-pub"
        self._dialer = Dialer(
            dataclasses.replace(
                options,
                client_id=self._name,
                clean_start=True,
                session_expiry=SESSION_EXPIRY,
                receive_maximum=None,
            ),
            protocol_fallback=protocol_fallback,
        )
        self._fatal = fatal

    @property
    def place(self) -> str:
        """The broker, and the client id."""
        return f"{self._dialer.options.where} as {self._name}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[PublishingConnection]:
        """Connected, and again, for as long as the block lasts. What is not done at its end is given up."""
        task = asyncio.create_task(self._run(), name=f"mqttapi[{self._name}]")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._close()

    async def _run(self) -> None:
        while True:
            first = not self._dialer.stood
            try:
                await self._one_connection()
            except BrokerError as error:
                if first and isinstance(error, ConnectionRefused) and self._fatal is not None:
                    self._fatal(error)
                    return
                self._failed(error)
            except Exception as error:
                log.exception("%s failed: this is a bug in mqttapi; trying again", self._name)
                self._failed(NotConnected(f"{self.place}: {type(error).__name__}"))
                if self.sender.connection is not None:
                    self.sender.connection.abort(0x83, "internal error")
                    self.sender.disconnected("internal error")
            await asyncio.sleep(self._dialer.delay())

    async def _one_connection(self) -> None:
        first = not self._dialer.stood
        connection, connack = await self._dialer.open()
        log.log(logging.DEBUG if first else logging.INFO, "connected to %s as %s", connection.options.where, self._name)
        self._becomes("")
        self.sender.connected(connection, connack)
        closed = await asyncio.shield(connection.closed)
        self._dialer.ended(closed)
        if self.sender.convicts(closed):
            self._dialer.failures = self._dialer.evictions = 0
        elif self.sender.suspicion.suspects:
            self._dialer.evictions = 0  # the broker minds what we send, and not who we are
        self.sender.disconnected(closed.reason)
        self._failed(NotConnected(f"connection lost: {closed.reason}"))

    def _failed(self, error: BrokerError) -> None:
        self._becomes(str(error))
        level = logging.ERROR if isinstance(error, ConnectionRefused) else logging.WARNING
        # Nobody misses a connection that has nothing to do, and the link mostly says the same.
        if not (self.sender.messages or level == logging.ERROR) or not self._dialer.is_news(self.state):
            level = logging.DEBUG
        log.log(level, "%s; %d publishes wait; trying again until it works", error, self.sender.messages)

    def _becomes(self, state: str) -> None:
        self.state = state
        if not self.tried.done():
            self.tried.set_result(None)

    async def _close(self) -> None:
        connection = self.sender.connection
        if connection is not None:
            self.sender.flush()
            await connection.close(session_expiry=0 if connection.options.mqtt5 else None, timeout=self.goodbye)
        self.sender.stop()
