"""What goes out, between those who publish and a connection that comes and goes.

A publish is a `Pending` on its way through

    submit ──► waiting ──► batch of this turn of the loop ──► in flight ──► done
                 ▲ │ down, the broker's window is full,        │ QoS 1: PUBACK
                 └─┘ or its socket takes no more               │ QoS 2: PUBREC, PUBREL, PUBCOMP
                 ▲─────────── the session was lost ────────────┘

Entries in flight keep the packet that a resumed session gets again [MQTT-4.4.0-1]: PUBLISH, now with DUP and what is left of
its expiry, or PUBREL. Where nothing is left it fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from paho.mqtt.packettypes import PacketTypes

from mqttapi.errors import BrokerError, NotConnected, PublishQueueFull, PublishRefused
from mqttapi.message import printable
from mqttapi.publisher import PublishResult
from mqttapi.transport.answers import Answers
from mqttapi.transport.encoding import DUP, encode_publish, encode_pubrel
from mqttapi.transport.handshake import reason_text
from mqttapi.transport.limits import Limits
from mqttapi.transport.packet_ids import PacketIds
from mqttapi.transport.packets import MalformedPacket
from mqttapi.transport.pending import Pending
from mqttapi.transport.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.publisher import Publish
    from mqttapi.transport.connection import Closed, Connection
    from mqttapi.transport.handshake import Connack

__all__ = ["Sender"]

log = logging.getLogger("mqttapi.publishing")

RESERVE: Final = 0.1
"""What dead letters may take beyond the bounds, as a share of them."""
_WINDOW: Final = 65_000  # below 65,535: SUBSCRIBE needs ids too
_HIGH_WATER: Final = 256 * 1024  # bytes that a socket may owe us before publishes wait


class Sender:
    """An `Outgoing` on the connection that stands, if any.

    While there is none publishes wait, `max_messages` and `max_bytes` (of payload) at most; a tenth more is reserved for
    dead letters.

    Args:
        max_messages: See above.
        max_bytes: Likewise.
        mqtt5: Whether the first connection is to speak MQTT 5.
        state: Says why nothing goes out, for the texts of errors; empty when all is well.
    """

    def __init__(self, *, max_messages: int, max_bytes: int, mqtt5: bool, state: Callable[[], str]) -> None:
        self.messages = 0
        """Publishes that are not done."""
        self.bytes = 0
        """Their payloads."""
        self.connection: Connection | None = None
        """The one that stands, if any."""
        self.has_properties = mqtt5
        """See `Outgoing.has_properties`: whether the connection speaks MQTT 5."""
        self.suspicion = Suspicion()
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._coming = 0  # from other threads, on their way to the loop
        self._coming_bytes = 0
        self._ids = PacketIds()
        self._waiting: OrderedDict[asyncio.Future[PublishResult], Pending] = OrderedDict()
        self._again: deque[Pending] = deque()  # of a resumed session, before anything new
        self._in_flight: dict[int, Pending] = {}
        self._batch: list[Pending] = []
        self._batch_bytes = 0
        self._unwritten: list[Pending] = []  # QoS 0, in the buffer of the connection
        self._window = 0  # how many more may be in flight
        self._suspects = self.suspicion.suspects  # while there are any, one is sent at a time
        self._spent: list[int] = []  # ids that nothing must be sent with in this session
        self._receive_maximum = 0  # the broker's
        self._limits = Limits()
        self._clear = False  # whether a publish may go straight to the batch
        self._answers: Answers  # of the connection that stands
        self._idle: asyncio.Future[None] | None = None

    # Submitting

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        """See `Outgoing.submit`."""
        size = len(publish.payload)
        if threading.get_ident() != self._thread:
            return self._submit_from_thread(publish, size, reserved)
        if self.messages >= self._max_messages or self.bytes + size > self._max_bytes:
            self._check_room(publish, size, reserved)
        future = self._loop.create_future()
        self._accept(Pending(publish, future))
        return future

    def _submit_from_thread(self, publish: Publish, size: int, reserved: bool) -> asyncio.Future[PublishResult]:
        with self._lock:
            self._check_room(publish, size + self._coming_bytes, reserved, self._coming)
            self._coming += 1
            self._coming_bytes += size
        future: asyncio.Future[PublishResult] = asyncio.Future(loop=self._loop)
        try:
            self._loop.call_soon_threadsafe(self._accept_from_thread, Pending(publish, future))
        except RuntimeError:  # the loop is closed
            raise NotConnected(f"publish to {printable(publish.topic)!r}: the app has ended") from None
        return future

    def _accept_from_thread(self, entry: Pending) -> None:
        with self._lock:
            self._coming -= 1
            self._coming_bytes -= len(entry.publish.payload)
        self._accept(entry)

    def _check_room(self, publish: Publish, size: int, reserved: bool, others: int = 0) -> None:
        share = 1.0 + RESERVE if reserved else 1.0
        if self.messages + others < self._max_messages * share and self.bytes + size <= self._max_bytes * share:
            return
        state = self._state()
        raise PublishQueueFull(
            f"publish of {len(publish.payload)} bytes to {printable(publish.topic)!r}: {self.messages} publishes with "
            f"{self.bytes} bytes are not done yet, and at most {self._max_messages} with {self._max_bytes} may be "
            f"(MQTTAPI_MAX_OUTGOING, MQTTAPI_MAX_OUTGOING_BYTES){state and f'; {state}'}"
        )

    def _accept(self, entry: Pending) -> None:
        self.messages += 1
        self.bytes += len(entry.publish.payload)
        if entry.publish.expiry is not None:
            entry.deadline = self._loop.time() + entry.publish.expiry
        if self._clear:
            self._send(entry)
        else:
            self._wait(entry)

    def _wait(self, entry: Pending) -> None:
        self._waiting[entry.future] = entry
        entry.future.add_done_callback(self._withdraw)

    def _withdraw(self, future: asyncio.Future[PublishResult]) -> None:
        """Whoever waited for this publish has given up before it was sent."""
        entry = self._waiting.pop(future, None)
        if entry is not None:
            self._done(entry)

    # Sending

    def _send(self, entry: Pending) -> None:
        """Put an entry into the batch; `_clear` is true."""
        publish = entry.publish
        if publish.qos:
            entry.packet_id = self._ids.take()
        try:
            entry.packet = encode_publish(publish, entry.packet_id, mqtt5=self.has_properties)
            if self._limits.any:
                self._limits.check(entry)
        except PublishRefused as error:
            if entry.packet_id:
                self._ids.release(entry.packet_id)
            self._fail(entry, error)
            return
        if publish.qos:
            self._in_flight[entry.packet_id] = entry
            self._window -= 1
            if not self._window:
                self._clear = False
                self.suspicion.sent_alone = self._loop.time()
        if not self._batch:
            self._loop.call_soon(self.flush)
        self._batch.append(entry)
        self._batch_bytes += len(entry.packet)
        if self._batch_bytes > _HIGH_WATER:
            self.flush()

    def flush(self) -> None:
        """Write what one turn of the loop has brought."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        connection = self.connection
        if connection is None or not batch:
            return
        connection.write(b"".join([entry.packet for entry in batch]))
        unacknowledged = [entry for entry in batch if not entry.packet_id]
        if connection.unsent or connection.closed.done():
            self._unwritten += unacknowledged
            if connection.unsent > _HIGH_WATER:
                self._clear = False
        else:
            for entry in unacknowledged:
                self._succeed(entry)

    def _drained(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for entry in unwritten:
            self._succeed(entry)
        self._pump()

    def _pump(self) -> None:
        """Send what waits, as far as the broker lets us."""
        connection = self.connection
        if connection is None:
            return
        while self._again and self._window > 0:
            entry = self._again.popleft()
            if self._in_flight.get(entry.packet_id) is entry:  # else it was acknowledged meanwhile
                connection.write(entry.packet)
                self._window -= 1
                self.suspicion.sent_alone = self._loop.time()
        self._clear = self._window > 0 and connection.unsent <= _HIGH_WATER
        while self._waiting and self._clear:
            future, entry = self._waiting.popitem(last=False)
            future.remove_done_callback(self._withdraw)
            if future.done():
                self._done(entry)
            elif entry.deadline is None or self._age(entry, entry.deadline):
                self._send(entry)
            else:
                self._fail(entry, _expired(entry))

    def _age(self, entry: Pending, deadline: float) -> bool:
        """Leave a publish what is left of its expiry; False where that is nothing."""
        rest = deadline - self._loop.time()
        if rest > 0:
            entry.publish = dataclasses.replace(entry.publish, expiry=rest)
        return rest > 0

    # Being answered

    def _receive(self) -> None:
        connection = self.connection
        if connection is None or (data := connection.read()) is None:
            return
        if not data:
            connection.connection_lost()
            return
        try:
            self._answers.feed(data)
        except MalformedPacket as error:
            connection.abort(error.reason_code, str(error))
            return
        if self._waiting or self._again:
            self._pump()
        elif self._window:
            self._clear = connection.unsent <= _HIGH_WATER

    def _acknowledged(self, packet_id: int, code: int, reason: str) -> None:
        """The end of a publish, well or badly; RabbitMQ answers even QoS 2 with PUBACK."""
        entry = self._in_flight.pop(packet_id, None)
        if entry is None:
            log.debug("the broker acknowledges packet %d, which is not in flight", packet_id)
            return
        self._ids.release(packet_id)
        if self._window < self._receive_maximum and entry not in self._again:
            self._window += 1
        code = code or entry.reason_code
        if code < 0x80:
            self._succeed(entry, code, reason)
        else:
            text = f"{entry.label}: the broker refuses it: {reason_text(code, PacketTypes.PUBACK)}"
            self._fail(entry, PublishRefused(f"{text}{reason and f': {reason}'}", reason_code=code))

    def _received(self, packet_id: int, code: int) -> None:
        entry = self._in_flight.get(packet_id)
        pubrel = encode_pubrel(packet_id, known=entry is not None or not self.has_properties)
        if entry is not None:
            entry.received = True
            entry.reason_code = code
            entry.packet = pubrel
            if entry in self._again:  # its turn comes: a PUBLISH behind its PUBREL would be a new message
                return
        if self.connection is not None:
            self.connection.write(pubrel)

    def _succeed(self, entry: Pending, code: int = 0, reason: str = "") -> None:
        future, publish = entry.future, entry.publish
        if not future.done():
            future.set_result(PublishResult(publish.topic, publish.qos, entry.packet_id, code, reason))
        self._done(entry)

    def _fail(self, entry: Pending, error: BrokerError) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)
        self._done(entry)

    def _done(self, entry: Pending) -> None:
        self.messages -= 1
        self.bytes -= len(entry.publish.payload)
        if self._suspects:
            self._suspects.discard(entry)
            if not self._suspects:
                self._trust()
        if self._idle is not None and not self.messages:
            self._idle.set_result(None)
            self._idle = None

    async def flushed(self) -> None:
        """Wait until every publish is done."""
        if self.messages:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    # Connections

    def connected(self, connection: Connection, connack: Connack) -> None:
        """A connection stands, nothing has been read from it: send what goes again, and what waits."""
        self.connection = connection
        self.has_properties = connection.options.mqtt5
        self._receive_maximum = connack.receive_maximum
        self._limits.announced(connack, mqtt5=self.has_properties)
        if not connack.session_present:
            self._start_over()
        self._window = 1 if self._suspects else self._full_window
        self._answers = Answers(self._acknowledged, self._received, connection.feed_packet)
        connection.on_drained = self._drained
        connection.start(self._receive)
        if connack.session_present:
            self._resume()
        self._pump()

    def _resume(self) -> None:
        # PUBREL takes a place in the window too: the specification does not ask for that, but mosquitto counts it.
        for entry in list(self._in_flight.values()):
            if not entry.received:
                try:
                    self._renew(entry)
                except (NotConnected, PublishRefused) as error:
                    self._forgo(entry, error)
            if entry.packet_id in self._in_flight:
                self._again.append(entry)

    def _renew(self, entry: Pending) -> None:
        """Make a PUBLISH ready to go again; raises when it has expired, or the broker announces limits that it had not."""
        if entry.deadline is not None:
            if not self._age(entry, entry.deadline):
                raise _expired(entry)
            entry.packet = encode_publish(entry.publish, entry.packet_id, mqtt5=self.has_properties)
        if self._limits.any:
            self._limits.check(entry)
        entry.packet = bytes((entry.packet[0] | DUP,)) + entry.packet[1:]

    def _forgo(self, entry: Pending, error: BrokerError) -> None:
        """Do not send a PUBLISH again; the broker may have it, and with QoS 2 only PUBREL ends what it knows of the id."""
        if entry.publish.qos < 2:
            del self._in_flight[entry.packet_id]
            self._ids.release(entry.packet_id)
            self._fail(entry, error)
            return
        if not entry.future.done():
            entry.future.set_exception(error)
        entry.received = True
        entry.packet = encode_pubrel(entry.packet_id)

    def _start_over(self) -> None:
        """The broker knows nothing of what was in flight: all of it goes again as if for the first time."""
        for packet_id in self._spent:
            self._ids.release(packet_id)
        self._spent.clear()
        entries = list(self._in_flight.values())
        self._in_flight.clear()
        for entry in reversed(entries):
            self._ids.release(entry.packet_id)
            entry.packet_id = entry.reason_code = 0
            entry.received = False
            self._wait(entry)
            self._waiting.move_to_end(entry.future, last=False)

    @property
    def _full_window(self) -> int:
        return min(self._receive_maximum, _WINDOW - len(self._spent))

    def _trust(self) -> None:
        """Nothing is suspect any more: send as much at once as the broker takes."""
        self.suspicion.end()
        if self.connection is not None:
            self._window += self._full_window - 1

    def convicts(self, closed: Closed) -> bool:
        """Whether a publish is found over which the broker closes its connections, such as this one; it has failed then.

        To be called before `disconnected`.
        """
        unsent = {*self._again, *self._batch}
        sent = [each for each in self._in_flight.values() if each not in unsent]
        error = self.suspicion.verdict(sent, closed, self._loop.time())
        if error is None:
            return False
        log.error("%s; it is not sent again", error)
        (entry,) = sent
        del self._in_flight[entry.packet_id]
        if entry.publish.qos < 2:
            self._ids.release(entry.packet_id)
        else:
            self._spent.append(entry.packet_id)  # the session of the broker may know it
        self._fail(entry, error)
        self.suspicion.end()
        return True

    def disconnected(self, reason: str) -> None:
        """There is no connection any more: what has an id waits for the next one."""
        self.connection = None
        self._clear = False
        self._again.clear()
        lost = [*self._unwritten, *(entry for entry in self._batch if not entry.packet_id)]
        self._unwritten, self._batch, self._batch_bytes = [], [], 0
        self._give_up(lost, f"it was not written: {reason}")

    def stop(self) -> None:
        """There will be no other connection."""
        self.disconnected("the app has stopped")
        left = [*self._in_flight.values(), *self._waiting.values()]
        self._in_flight.clear()
        self._waiting.clear()
        if unconfirmed := sum(not entry.future.done() for entry in left):
            log.warning("%d publishes were not confirmed before the app has stopped", unconfirmed)
        self._give_up(left, "the app has stopped before the broker confirmed it")

    def _give_up(self, entries: list[Pending], reason: str) -> None:
        for entry in entries:
            self._fail(entry, NotConnected(f"{entry.label}: {reason}"))
            if not entry.future.cancelled():
                entry.future.exception()  # who does not wait for it gets no complaint from the garbage collector


def _expired(entry: Pending) -> NotConnected:
    return NotConnected(f"{entry.label}: it expired while the broker was away")
