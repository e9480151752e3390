"""How a client id gets its connections, one after the other: the version of MQTT, and the time between attempts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.transport.connection import Connection

if TYPE_CHECKING:
    from mqttapi.transport.connection import Closed, Connack, ConnectionOptions
    from mqttapi.transport.packet_ids import PacketIds

__all__ = ["TAKEN_OVER", "Dialer"]

MAX_DELAY: Final = 30.0
"""Seconds between two attempts, at most."""
SHORT_LIFE: Final = 5.0
"""Seconds: a connection that ends sooner counts as a failed attempt."""
RIVAL_PAUSE: Final = 5.0
"""Seconds between two attempts, at least, where another client seems to use the client id."""
TAKEN_OVER: Final = 0x8E
"""Reason code of the DISCONNECT that a client gets when another one comes with its id [MQTT5 §3.14.2.1]."""
_UNSUPPORTED_VERSION: Final = 0x84
_PATIENCE: Final = 3  # times that something may happen by chance
_MAX_SAID: Final = 20


class Dialer:
    """Opens connections, and knows how long to wait before the next one.

    Args:
        options: Of the first connection. A clean start with a session that outlives the connection is for the first
            one only: later ones resume the session.
        protocol_fallback: Whether MQTT 3.1.1 may be tried where the broker does not speak 5. Once a connection has
            stood, the version stays.
    """

    def __init__(self, options: ConnectionOptions, *, protocol_fallback: bool = False) -> None:
        self.options = options
        """Of the next connection."""
        self.stood = False
        """Whether a broker has ever accepted."""
        self.failures = 0
        """In a row: attempts that failed, and connections that were lost; one that lasted begins a new row."""
        self._fallback = protocol_fallback
        self._unanswered = 0  # connections in a row that were closed before their CONNACK
        self.evictions = 0
        """Connections in a row that the broker closed without a word, soon after their CONNACK."""
        self._since = 0.0
        self._said: set[str] = set()
        self._loop = asyncio.get_running_loop()

    async def open(self, packet_ids: PacketIds | None = None) -> tuple[Connection, Connack]:
        """Make one attempt, or a second one at once where the broker does not speak MQTT 5.

        Raises:
            ConnectionRefused: See `Connection.open`.
            NotConnected: likewise.
        """
        while True:
            connection = Connection(self.options, packet_ids=packet_ids)
            try:
                connack = await connection.open()
            except Exception as error:
                if isinstance(error, BrokerError) and self._changes_protocol(error):
                    continue
                self.failures += 1
                raise
            self._since = self._loop.time()
            self.stood = True
            self._fallback = False
            if self.options.mqtt5 and self.options.session_expiry:
                # On 3.1.1 a session that did not start clean would stay for ever.
                self.options = replace(self.options, clean_start=False)
            return connection, connack

    def ended(self, closed: Closed) -> None:
        """A connection is no more."""
        lasted = self._loop.time() - self._since >= SHORT_LIFE
        if lasted:
            self.failures = 0
            self._said.clear()
        self.failures += 1
        if closed.reason_code == TAKEN_OVER:
            self.evictions = _PATIENCE
        elif lasted or closed.by_us or closed.reason_code is not None:
            self.evictions = 0
        else:
            self.evictions += 1

    @property
    def rival(self) -> bool:
        """Whether another client seems to use the id: brokers close the connection of the one that was there before."""
        return self.evictions >= _PATIENCE

    def delay(self) -> float:
        """Seconds until the next attempt: exponential backoff with full jitter, nearly nothing after the first loss."""
        seconds = random.uniform(0, min(MAX_DELAY, 0.1 * 2 ** min(self.failures, 10)))  # noqa: S311  no secret
        return seconds + RIVAL_PAUSE if self.rival else seconds

    def is_news(self, text: str) -> bool:
        """Whether `text` has not been said since a connection lasted: what goes on failing is logged once."""
        if len(self._said) > _MAX_SAID:  # a broker may put the time into its reasons
            self._said.clear()
        news = text not in self._said
        self._said.add(text)
        return news

    def _changes_protocol(self, error: BrokerError) -> bool:
        """Whether to try again at once, with another version.

        Closing without a CONNACK is what some brokers answer to a version they do not know, but also what a proxy does
        whose broker is away: so 3.1.1 is a guess then, which has to prove right.
        """
        if not self._fallback:
            return False
        if not self.options.mqtt5:
            self._unanswered = 0
            self.options = replace(self.options, protocol="5")
            return False
        if isinstance(error, NotConnected) and error.closed_before_connack:
            self._unanswered += 1
        unsupported = isinstance(error, ConnectionRefused) and error.reason_code == _UNSUPPORTED_VERSION
        if not unsupported and self._unanswered < _PATIENCE:
            return False
        self.options = replace(self.options, protocol="3.1.1")
        return True
