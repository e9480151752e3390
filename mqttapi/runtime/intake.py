"""From the wire to the lanes: what one link has received, who works on it, and when reading has to stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from mqttapi.message import Message, printable
from mqttapi.runtime.lanes import Run
from mqttapi.runtime.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.app import App
    from mqttapi.message import Properties
    from mqttapi.runtime.dispatcher import Dispatcher
    from mqttapi.runtime.lanes import Workers
    from mqttapi.runtime.ledger import Entry
    from mqttapi.runtime.outcome import Outcome

__all__ = ["Intake", "Port"]

log = logging.getLogger("mqttapi.link")

_RESUME_AT = 0.75
"""Share of the bounds below which reading goes on, so that it does not stop and go for every message."""


class Port(Protocol):
    """What a transport does for an intake."""

    def write(self, data: bytes) -> None:
        """Send acknowledgements to the broker; nothing happens where there is no connection."""

    def pause(self) -> None:
        """Stop to parse and to read: there is no room."""

    def resume(self) -> None:
        """Go on with what was read, then read."""


class Intake:
    """One link's side of the engine: ledger, bounds, and the way of each message into its lanes.

    Args:
        max_in_flight: Messages in memory before reading stops, 1 to 65,535.
        max_bytes: The same in bytes of topics and payloads.
    """

    def __init__(
        self,
        app: App,
        dispatcher: Dispatcher,
        workers: Workers,
        port: Port,
        *,
        max_in_flight: int,
        max_bytes: int,
    ) -> None:
        self.ledger = Ledger()
        self.paused = False
        self.received = 0
        """Messages that came, whatever became of them."""
        self.refused = 0
        """Packets that were no message: a topic that is not UTF-8, is empty or has a wildcard."""
        self.unmatched = 0
        """Messages that no route is for."""
        self._app = app
        self._targets = dispatcher.targets
        self._workers = workers
        self._port = port
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._light = 0  # runs of QoS 0 that have not ended, and their bytes: the ledger does not know them
        self._light_bytes = 0
        self._flushing = False
        self._loop = asyncio.get_running_loop()
        self.on_unmatched: Callable[[Message], None] | None = None

    def receive(
        self, topic: str, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int, properties: Properties
    ) -> None:
        """Take one message from the wire. Call `batch_end` after those of one read."""
        self.received += 1
        entry: Entry | None = None
        if qos:
            entry = self.ledger.arrive(packet_id, qos, topic, payload, dup)
            if entry is None:
                self._flush_soon()
                return
        targets = self._targets(topic, properties.subscription_ids)
        message = Message(topic, payload, qos, retain, dup, packet_id, properties)
        if not targets:
            self._unmatched(message, entry)
            return
        submit, app = self._workers.submit, self._app
        if entry is not None:
            entry.pending = len(targets)
        else:
            self._light += len(targets)
            self._light_bytes += len(targets) * len(payload)
        for target in targets:
            submit(Run(message, target, app, self, entry))
        if not self.paused and not self._has_room(1.0):
            self.paused = True
            self._port.pause()

    def refuse(self, topic: str, packet_id: int, qos: int, reason: str) -> None:
        """Count, log and acknowledge what is no message for us: its topic is not UTF-8, its payload is too long, say."""
        self.refused += 1
        runners = [target.runner for target in self._targets(topic)]
        for runner in runners:
            runner.counts["rejected"] += 1
        names = ", ".join(runner.route.name for runner in runners) or "no route"
        log.warning("%s rejected a message on %s: %s", names, printable(topic), reason)
        if qos:
            entry = self.ledger.arrive(packet_id, qos, topic, b"")
            if entry is not None:
                self.ledger.finish(entry)
            self._flush_soon()

    def connected(self, session_present: bool, *, mqtt5: bool) -> None:
        """A new connection stands, nothing has been read from it."""
        self.ledger.connected(session_present, mqtt5=mqtt5)

    def disconnected(self) -> None:
        """The connection is gone; what runs goes on."""
        self.ledger.disconnected()
        self.paused = False

    def batch_end(self) -> None:
        """The messages of one read are in."""
        self._workers.wake()

    def release(self, packet_id: int) -> None:
        """PUBREL came."""
        self.ledger.release(packet_id)
        self._flush_soon()

    def ended(self, run: Run, outcome: Outcome) -> None:
        """See `Origin`."""
        entry: Entry | None = run.ticket
        if entry is None:
            self._light -= 1
            self._light_bytes -= len(run.message.payload)
        else:
            entry.pending -= 1
            if entry.pending:
                return
            self.ledger.finish(entry)
        if not self._flushing:
            self._flush_soon()

    def _unmatched(self, message: Message, entry: Entry | None) -> None:
        self.unmatched += 1
        if entry is not None:
            self.ledger.finish(entry)
            self._flush_soon()
        if self.on_unmatched is not None:
            self.on_unmatched(message)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write every acknowledgement that is due, in one write, and read again where there is room."""
        self._flushing = False
        acknowledgements = self.ledger.take()
        if acknowledgements:
            self._port.write(acknowledgements)
        if self.paused and self._has_room(_RESUME_AT):
            self.paused = False
            self._port.resume()

    def _has_room(self, share: float) -> bool:
        """Whether less than that share of both bounds is taken."""
        return (
            self.ledger.held + self._light < self._max_in_flight * share
            and self.ledger.held_bytes + self._light_bytes < self._max_bytes * share
        )
