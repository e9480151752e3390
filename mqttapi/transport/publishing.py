"""The connection that everything goes out by: `<client id>-pub`.

A publish is an `_Entry` on its way through

    submit ──► waiting ──► batch of this turn of the loop ──► in flight ──► done
                 ▲ │ down, the broker's window is full,        │ QoS 1: PUBACK
                 └─┘ or its socket takes no more               │ QoS 2: PUBREC, PUBREL, PUBCOMP
                 ▲─────────── the session was lost ────────────┘

Entries in flight keep the packet that a resumed session gets again [MQTT-4.4.0-1]: PUBLISH, now with DUP and what is left of
its expiry, or PUBREL. Where nothing is left it fails.

Some brokers close the connection over a publish that they do not like. It is the first that goes again, so nothing else
would ever get through: where `_PATIENCE` connections in a row end with the same publish as the oldest that has no answer,
everything sent is suspect, and goes one at a time. What is alone on the wire at the end of `_PATIENCE` connections fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from paho.mqtt.packettypes import PacketTypes

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected, PublishQueueFull, PublishRefused
from mqttapi.message import printable
from mqttapi.publisher import PublishResult
from mqttapi.transport.answers import Answers
from mqttapi.transport.dialer import SHORT_LIFE, Dialer
from mqttapi.transport.encoding import DUP, encode_publish, encode_pubrel, has_properties
from mqttapi.transport.handshake import Connack, reason_text
from mqttapi.transport.packet_ids import PacketIds
from mqttapi.transport.packets import MalformedPacket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mqttapi.publisher import Publish
    from mqttapi.transport.connection import Closed, Connection
    from mqttapi.transport.handshake import ConnectionOptions

__all__ = ["PublishingConnection"]

log = logging.getLogger("mqttapi.publishing")

SESSION_EXPIRY: Final = 300
"""Seconds that the broker keeps the state of QoS 1 and 2 publishes over a lost connection."""
RESERVE: Final = 0.1
"""What dead letters may take beyond the bounds, as a share of them."""
_WINDOW: Final = 65_000  # below 65,535: SUBSCRIBE needs ids too
_HIGH_WATER: Final = 256 * 1024  # bytes that a socket may owe us before publishes wait
_PATIENCE: Final = 3  # connections that a publish may end by chance
_UNSPECIFIED: Final = 0x80
# A DISCONNECT that has nothing to do with what was sent: server busy or shutting down, keep alive, taken over, rate, quota,
# administrative action, other server, server moved, connection rate, maximum connect time.
_INNOCENT: Final = frozenset((0x89, 0x8B, 0x8D, 0x8E, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0x9F, 0xA0))


class _Entry:
    __slots__ = ("deadline", "ended", "future", "packet", "packet_id", "publish", "reason_code", "received")

    def __init__(self, publish: Publish, future: asyncio.Future[PublishResult]) -> None:
        self.publish = publish
        self.future = future
        self.packet_id = 0
        self.packet = b""
        self.received = False  # QoS 2: the broker has sent PUBREC, only PUBREL may follow [MQTT-4.3.3-6]
        self.reason_code = 0
        self.deadline: float | None = None  # when it expires
        self.ended = 0  # connections that ended while it was alone on the wire


class PublishingConnection:
    """An `Outgoing` on a connection of its own, kept alive.

    While the broker is away publishes wait, `max_messages` and `max_bytes` (of payload) at most; a tenth more is
    reserved for dead letters.
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
        """`options` are those of the consuming connection.

        `fatal` is called with a refusal for good before the first connection stood; None: it is tried again.
        """
        self.state = "not connected yet"
        """What is not ready and why; empty when all is well."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.messages = 0
        """Publishes that are not done."""
        self.bytes = 0
        """Their payloads."""
        self.goodbye = 2.0
        """Seconds that the broker has to answer the DISCONNECT at the end."""
        self.connection: Connection | None = None
        """The one that stands, if any."""
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
        self._loop = asyncio.get_running_loop()
        self.tried: asyncio.Future[None] = self._loop.create_future()
        """Done once the first attempt to connect has ended, well or badly: `state` tells."""
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._coming = 0  # from other threads, on their way to the loop
        self._coming_bytes = 0
        self._ids = PacketIds()
        self._waiting: OrderedDict[asyncio.Future[PublishResult], _Entry] = OrderedDict()
        self._again: deque[_Entry] = deque()  # of a resumed session, before anything new
        self._in_flight: dict[int, _Entry] = {}
        self._batch: list[_Entry] = []
        self._batch_bytes = 0
        self._unwritten: list[_Entry] = []  # QoS 0, in the buffer of the connection
        self._window = 0  # how many more may be in flight
        self._oldest: _Entry | None = None  # without an answer when the connection before was lost
        self._fruitless = 0  # connections in a row that ended with the same oldest
        self._suspects: set[_Entry] = set()  # while there are any, one is sent at a time
        self._sent_alone = 0.0  # when the last one was
        self._spent: list[int] = []  # ids that nothing must be sent with in this session
        self._connack = Connack()
        self._mqtt5 = True
        self._limited = False  # whether a publish has to be looked at before it goes
        self._clear = False  # whether a publish may go straight to the batch
        self._answers: Answers  # of the connection that stands
        self._idle: asyncio.Future[None] | None = None
        self._dropped_properties = False

    @property
    def has_properties(self) -> bool:
        """See `Outgoing.has_properties`."""
        return self._dialer.options.mqtt5

    @property
    def place(self) -> str:
        """The broker, and the client id."""
        return f"{self._dialer.options.where} as {self._name}"

    # Submitting

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        """See `Outgoing.submit`."""
        size = len(publish.payload)
        if threading.get_ident() != self._thread:
            return self._submit_from_thread(publish, size, reserved)
        if self.messages >= self.max_messages or self.bytes + size > self.max_bytes:
            self._check_room(publish, size, reserved)
        future = self._loop.create_future()
        self._accept(_Entry(publish, future))
        return future

    def _submit_from_thread(self, publish: Publish, size: int, reserved: bool) -> asyncio.Future[PublishResult]:
        with self._lock:
            self._check_room(publish, size + self._coming_bytes, reserved, self._coming)
            self._coming += 1
            self._coming_bytes += size
        future: asyncio.Future[PublishResult] = asyncio.Future(loop=self._loop)
        try:
            self._loop.call_soon_threadsafe(self._accept_from_thread, _Entry(publish, future))
        except RuntimeError:  # the loop is closed
            raise NotConnected(f"publish to {printable(publish.topic)!r}: the app has ended") from None
        return future

    def _accept_from_thread(self, entry: _Entry) -> None:
        with self._lock:
            self._coming -= 1
            self._coming_bytes -= len(entry.publish.payload)
        self._accept(entry)

    def _check_room(self, publish: Publish, size: int, reserved: bool, others: int = 0) -> None:
        share = 1.0 + RESERVE if reserved else 1.0
        if self.messages + others < self.max_messages * share and self.bytes + size <= self.max_bytes * share:
            return
        raise PublishQueueFull(
            f"publish of {len(publish.payload)} bytes to {printable(publish.topic)!r}: {self.messages} publishes with "
            f"{self.bytes} bytes are not done yet, and at most {self.max_messages} with {self.max_bytes} may be "
            f"(MQTTAPI_MAX_OUTGOING, MQTTAPI_MAX_OUTGOING_BYTES){self.state and f'; {self.state}'}"
        )

    def _accept(self, entry: _Entry) -> None:
        self.messages += 1
        self.bytes += len(entry.publish.payload)
        if entry.publish.expiry is not None:
            entry.deadline = self._loop.time() + entry.publish.expiry
        if self._clear:
            self._send(entry)
        else:
            self._wait(entry)

    def _wait(self, entry: _Entry) -> None:
        self._waiting[entry.future] = entry
        entry.future.add_done_callback(self._withdraw)

    def _withdraw(self, future: asyncio.Future[PublishResult]) -> None:
        """Whoever waited for this publish has given up before it was sent."""
        entry = self._waiting.pop(future, None)
        if entry is not None:
            self._done(entry)

    # Sending

    def _send(self, entry: _Entry) -> None:
        """Put an entry into the batch; `_clear` is true."""
        publish = entry.publish
        if publish.qos:
            entry.packet_id = self._ids.take()
        try:
            entry.packet = encode_publish(publish, entry.packet_id, mqtt5=self._mqtt5)
            if self._limited:
                self._check_limits(publish, entry.packet)
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
                self._sent_alone = self._loop.time()
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(entry)
        self._batch_bytes += len(entry.packet)
        if self._batch_bytes > _HIGH_WATER:
            self._flush()

    def _flush(self) -> None:
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
                self._sent_alone = self._loop.time()
        self._clear = self._window > 0 and connection.unsent <= _HIGH_WATER
        while self._waiting and self._clear:
            future, entry = self._waiting.popitem(last=False)
            future.remove_done_callback(self._withdraw)
            if future.done():
                self._done(entry)
            elif entry.deadline is None or self._age(entry, entry.deadline):
                self._send(entry)

    def _age(self, entry: _Entry, deadline: float) -> bool:
        """Leave a publish what is left of its expiry; False, and it has failed, where that is nothing."""
        rest = deadline - self._loop.time()
        if rest <= 0:
            self._fail(entry, NotConnected(f"{_label(entry)}: it expired while the broker was away"))
            return False
        entry.publish = dataclasses.replace(entry.publish, expiry=rest)
        return True

    def _check_limits(self, publish: Publish, packet: bytes) -> None:
        """What the broker said that it does not take [MQTT-3.2.2-11, MQTT-3.2.2-14, MQTT-3.2.2-15]."""
        if not self._mqtt5:
            self._warn_of_properties(publish)
        connack = self._connack
        label = f"publish to {printable(publish.topic)!r}"
        if publish.qos > connack.maximum_qos:
            text = f"{label}: the broker takes QoS {connack.maximum_qos} at most, not {publish.qos}"
            raise PublishRefused(text, reason_code=0x9B)
        if publish.retain and not connack.retain_available:
            raise PublishRefused(f"{label}: the broker does not retain messages", reason_code=0x9A)
        if connack.maximum_packet_size is not None and len(packet) > connack.maximum_packet_size:
            text = f"{label}: its packet of {len(packet)} bytes is larger than the broker takes ({connack.maximum_packet_size})"
            raise PublishRefused(text, reason_code=0x95)

    def _warn_of_properties(self, publish: Publish) -> None:
        if has_properties(publish) and not self._dropped_properties:
            self._dropped_properties = True
            log.warning(
                "MQTT 3.1.1 has no message properties: expiry, content type, user properties, response topic and "
                "correlation data are left out, such as those of a publish to %r",
                printable(publish.topic),
            )

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
        if self._window < self._connack.receive_maximum and entry not in self._again:
            self._window += 1
        code = code or entry.reason_code
        if code < 0x80:
            self._succeed(entry, code, reason)
        else:
            text = f"{_label(entry)}: the broker refuses it: {reason_text(code, PacketTypes.PUBACK)}"
            self._fail(entry, PublishRefused(f"{text}{reason and f': {reason}'}", reason_code=code))

    def _received(self, packet_id: int, code: int) -> None:
        entry = self._in_flight.get(packet_id)
        pubrel = encode_pubrel(packet_id, known=entry is not None or not self._mqtt5)
        if entry is not None:
            entry.received = True
            entry.reason_code = code
            entry.packet = pubrel
            if entry in self._again:  # its turn comes: a PUBLISH behind its PUBREL would be a new message
                return
        if self.connection is not None:
            self.connection.write(pubrel)

    def _succeed(self, entry: _Entry, code: int = 0, reason: str = "") -> None:
        future, publish = entry.future, entry.publish
        if not future.done():
            future.set_result(PublishResult(publish.topic, publish.qos, entry.packet_id, code, reason))
        self._done(entry)

    def _fail(self, entry: _Entry, error: BrokerError) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)
        self._done(entry)

    def _done(self, entry: _Entry) -> None:
        self.messages -= 1
        self.bytes -= len(entry.publish.payload)
        if self._suspects:
            self._suspects.discard(entry)
            if not self._suspects:
                self._trust()
        if self._idle is not None and not self.messages:
            self._idle.set_result(None)
            self._idle = None

    # Living

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

    async def flushed(self) -> None:
        """Wait until every publish is done."""
        if self.messages:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

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
                if self.connection is not None:
                    self.connection.abort(0x83, "internal error")
                    self._disconnected("internal error")
            await asyncio.sleep(self._dialer.delay())

    async def _one_connection(self) -> None:
        first = not self._dialer.stood
        connection, connack = await self._dialer.open(self._ids)
        log.log(logging.DEBUG if first else logging.INFO, "connected to %s as %s", connection.options.where, self._name)
        self._connected(connection, connack)
        closed = await asyncio.shield(connection.closed)
        self._dialer.ended(closed)
        self._look_for_culprit(closed)
        self._disconnected(closed.reason)
        self._failed(NotConnected(f"connection lost: {closed.reason}"))

    def _failed(self, error: BrokerError) -> None:
        self.state = str(error)
        self._has_tried()
        level = logging.ERROR if isinstance(error, ConnectionRefused) else logging.WARNING
        # Nobody misses a connection that has nothing to do, and the link mostly says the same.
        if not (self.messages or level == logging.ERROR) or not self._dialer.is_news(self.state):
            level = logging.DEBUG
        log.log(level, "%s; %d publishes wait; trying again until it works", error, self.messages)

    def _connected(self, connection: Connection, connack: Connack) -> None:
        self.state = ""
        self._has_tried()
        self.connection = connection
        self._connack = connack
        self._mqtt5 = connection.options.mqtt5
        self._limited = (
            connack.maximum_qos < 2
            or not connack.retain_available
            or connack.maximum_packet_size is not None
            or not self._mqtt5
        )
        if not connack.session_present:
            self._start_over()
        self._window = 1 if self._suspects else self._full_window
        self._answers = Answers(self._acknowledged, self._received, connection.feed_packet)
        connection.on_drained = self._drained
        connection.start(self._receive)
        if connack.session_present:
            self._resume()
        self._pump()

    def _has_tried(self) -> None:
        if not self.tried.done():
            self.tried.set_result(None)

    def _resume(self) -> None:
        # That PUBREL takes a place in the window is not asked for by the specification, but mosquitto counts it.
        self._again.extend(
            entry for entry in list(self._in_flight.values()) if entry.received or self._may_still_go(entry)
        )

    def _may_still_go(self, entry: _Entry) -> bool:
        """Make the PUBLISH ready to go again, unless it has expired, or the broker announces limits that it had not."""
        try:
            if entry.deadline is not None:
                if not self._age(entry, entry.deadline):
                    self._retire(entry)
                    return False
                entry.packet = encode_publish(entry.publish, entry.packet_id, mqtt5=self._mqtt5)
            if self._limited:
                self._check_limits(entry.publish, entry.packet)
        except PublishRefused as error:
            self._retire(entry)
            self._fail(entry, error)
            return False
        entry.packet = bytes((entry.packet[0] | DUP,)) + entry.packet[1:]
        return True

    def _retire(self, entry: _Entry) -> None:
        """Take what is given up out of flight; with QoS 2 the session of the broker may know its id: that stays taken."""
        del self._in_flight[entry.packet_id]
        if entry.publish.qos < 2:
            self._ids.release(entry.packet_id)
        else:
            self._spent.append(entry.packet_id)

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
        return min(self._connack.receive_maximum, _WINDOW - len(self._spent))

    def _look_for_culprit(self, closed: Closed) -> None:
        """Find out whether it is something that we send that ends the connections, and what."""
        unsent = {*self._again, *self._batch}
        sent = [each for each in self._in_flight.values() if each not in unsent]
        if not sent:
            return
        self._fruitless = self._fruitless + 1 if sent[0] is self._oldest else 1
        self._oldest = sent[0]
        if not self._suspects:
            if self._fruitless >= _PATIENCE:
                self._suspects.update(sent)
        elif len(sent) == 1 and self._ended_over_it(closed):
            self._oldest.ended += 1
            if self._oldest.ended >= _PATIENCE:
                self._convict(self._oldest, closed)
        if self._suspects:
            self._dialer.evictions = 0  # the broker minds what we send, and not who we are

    def _ended_over_it(self, closed: Closed) -> bool:
        soon = self._loop.time() - self._sent_alone < SHORT_LIFE
        return soon and not closed.by_us and closed.reason_code not in _INNOCENT

    def _convict(self, entry: _Entry, closed: Closed) -> None:
        self._retire(entry)
        code = closed.reason_code or _UNSPECIFIED
        said = "" if closed.reason_code is None else f": {closed.reason}"
        this = "its PUBREL" if entry.received else "this"
        text = f"{_label(entry)}: the broker closed the connection {entry.ended} times when it got {this} and nothing else{said}"
        if not entry.future.done():
            entry.future.set_exception(PublishRefused(text, reason_code=code))
        log.error("%s; it is not sent again", text)
        self._done(entry)
        self._suspects.clear()
        self._fruitless = 0
        self._oldest = None
        self._dialer.failures = self._dialer.evictions = 0

    def _trust(self) -> None:
        """Nothing is suspect any more: send as much at once as the broker takes."""
        self._fruitless = 0
        if self.connection is not None:
            self._window += self._full_window - 1

    def _disconnected(self, reason: str) -> None:
        self.connection = None
        self._clear = False
        self._again.clear()
        lost = [*self._unwritten, *(entry for entry in self._batch if not entry.packet_id)]
        self._unwritten, self._batch, self._batch_bytes = [], [], 0
        self._give_up(lost, f"it was not written: {reason}")

    async def _close(self) -> None:
        if self.connection is not None:
            self._flush()
            await self.connection.close(session_expiry=0 if self._mqtt5 else None, timeout=self.goodbye)
        self._disconnected("the app has stopped")
        left = [*self._in_flight.values(), *self._waiting.values()]
        self._in_flight.clear()
        self._waiting.clear()
        if unconfirmed := sum(not entry.future.done() for entry in left):
            log.warning("%d publishes were not confirmed before the app has stopped", unconfirmed)
        self._give_up(left, "the app has stopped before the broker confirmed it")

    def _give_up(self, entries: list[_Entry], reason: str) -> None:
        for entry in entries:
            self._fail(entry, NotConnected(f"{_label(entry)}: {reason}"))
            if not entry.future.cancelled():
                entry.future.exception()  # who does not wait for it gets no complaint from the garbage collector


def _label(entry: _Entry) -> str:
    return f"publish to {printable(entry.publish.topic)!r}"
