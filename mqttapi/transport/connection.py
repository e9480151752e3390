"""One connection to a broker: aiomqtt's client with its read and write paths taken over.

paho builds and decodes the rare packets (CONNECT, CONNACK, SUBSCRIBE, SUBACK, DISCONNECT …), but what it wants to send
goes through `Connection.write` like everything else: one buffer per socket, so the order of packets is the order of
calls, and a packet that has been sent in part is finished before the next one begins.

    new ──open()──► standing, not read ──start()──► standing ──► closed
                                             ▲  pause_reading() │
                                             └─ resume_reading()┘

An object serves one connection and is never used again: aiomqtt and paho keep state that would leak into the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from mqttapi.errors import ConnectionRefused, NotConnected
from mqttapi.transport.handshake import (
    Connack,
    ConnectionOptions,
    connect_socket,
    make_properties,
    reason_text,
    refusal,
)
from mqttapi.transport.packet_ids import PacketIds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["Closed", "Connack", "Connection", "ConnectionOptions", "Subscription", "internals_available"]

log = logging.getLogger(__name__)

_CHUNK: Final = 256 * 1024
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CONNACK: Final = 0x20
_TLS_ALERT: Final = 0x15
_PINGREQ: Final = b"\xc0\x00"
_PAHO_INTERNALS: Final = (
    "_create_socket", "_in_packet", "_mid_generate", "_packet_handle", "_packet_queue", "_sock_close",
)  # fmt: skip
_MIN_TICK: Final = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a connection is no more."""

    reason: str
    """One line for people."""
    reason_code: int | None = None
    """Of the server's DISCONNECT, such as 0x8E (session taken over); None when there was none."""
    by_us: bool = False
    """True after `close()` and `abort()`."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One filter of a SUBSCRIBE [MQTT5 §3.8.3]. On MQTT 3.1.1 only filter and QoS are sent."""

    filter: str
    qos: int = 1
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: Literal[0, 1, 2] = 0
    id: int | None = None
    """The Subscription Identifier, 1 to 268,435,455."""


def internals_available() -> list[str]:
    """The names in paho-mqtt that this module needs and the installed version lacks; an empty list is good news."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="probe")
    return [name for name in _PAHO_INTERNALS if not hasattr(client, name)]


class Connection(aiomqtt.Client):
    """A connection that is opened once.

    `open()` returns when the broker has accepted; nothing is read behind the CONNACK before `start(receiver)`, so that
    the caller can prepare its session first. `receiver` is then called whenever the socket is readable and calls
    `read()`; without one, paho reads and gives messages to `on_message`.
    """

    def __init__(self, options: ConnectionOptions, *, packet_ids: PacketIds | None = None) -> None:
        """`packet_ids` is given where SUBSCRIBE and UNSUBSCRIBE share their ids with publishes."""
        super().__init__(**options.client_arguments())
        self.options = options
        self.closed: asyncio.Future[Closed] = self._loop.create_future()
        """Always ends with a value. `await asyncio.shield(connection.closed)`, or a cancelled wait cancels it."""
        self._end: Closed | None = None
        self.on_message: Callable[[paho.MQTTMessage], None] | None = None
        """Called by the plain path."""
        self.on_drained: Callable[[], None] | None = None
        """Called when the socket has taken what it did not take at once."""
        self.receiver: Callable[[], None] = self._read_with_paho
        self.paused = False
        self._pauses = 0
        self._connack: asyncio.Future[Connack] = self._loop.create_future()
        self._head = bytearray()
        self._socket: Any = None  # a socket, a TLS socket or paho's wrapper for WebSockets
        self._fileno = -1
        self._pending: Callable[[], int] | None = None
        self._unsent = bytearray()
        self._writing = False
        self._loop_thread = threading.get_ident()
        self._error: Exception | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._period = 0.0
        self._ticks = 0.0  # of `_period` seconds in a keepalive
        self._quiet = 0  # ticks since we sent something
        self._silent = 0  # ticks since the broker sent something
        self._answers: dict[int, asyncio.Future[list[int]]] = {}

        client = self._client
        client.disable_logger()  # what matters is in `closed` and in the errors of `open`
        client.manual_ack_set(True)
        client.connect_timeout = options.timeout
        client.on_connect = self._on_connack
        client.on_disconnect = self._on_paho_disconnect
        client.on_subscribe = client.on_unsubscribe = self._on_suback
        client.on_message = self._on_paho_message
        client.on_publish = None
        client.on_socket_open = self._on_open
        client.on_socket_close = self._on_close
        client.on_socket_register_write = client.on_socket_unregister_write = None
        client._create_socket = lambda: connect_socket(options)  # type: ignore[method-assign]  # errors that tell more
        client._packet_queue = self._queue_packet  # type: ignore[method-assign]  # one path for everything that is sent
        self._packet_ids = packet_ids or PacketIds()
        client._mid_generate = self._packet_ids.take  # type: ignore[method-assign]  # one allocator

    # Opening

    async def open(self) -> Connack:
        """Connect, and wait for the CONNACK.

        Raises:
            ConnectionRefused: for good: credentials, protocol, client id, TLS.
            NotConnected: for now: nothing listens, no answer in time, the server is busy …
        """
        try:
            async with asyncio.timeout(self.timeout):
                await _in_thread(self._client_connect, f"mqttapi-connect-{self.options.client_id}")
                return await self._connack
        except TimeoutError:
            self._give_up("no answer in time")
            raise NotConnected(f"no CONNACK from {self.options.where} within {self.timeout:g} s") from None
        except BaseException as error:
            self._give_up(str(error))
            raise

    def _give_up(self, reason: str) -> None:
        if not self._connack.cancel() and not self._connack.cancelled():
            self._connack.exception()  # seen
        self._lost(reason, by_us=True)

    def start(self, receiver: Callable[[], None] | None = None) -> None:
        """Begin to read, with `receiver` or by paho."""
        if receiver is not None:
            self.receiver = receiver
        if self._end is None:
            self._loop.add_reader(self._fileno, self._readable)
            self._read_what_is_pending()

    def _on_open(self, client: object, userdata: object, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._attach, sock)  # we are in the thread that connects

    def _attach(self, sock: Any) -> None:
        if self._end is not None:  # `open` was given up meanwhile
            self._client._sock_close()
            return
        raw = getattr(sock, "_socket", sock)
        if raw.family != getattr(socket, "AF_UNIX", None):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each write is a batch already
        self._socket = sock
        self._fileno = sock.fileno()
        self._pending = getattr(sock, "pending", None)
        self._loop.add_reader(self._fileno, self._read_connack)

    def _read_connack(self) -> None:
        """Read one packet, byte for byte: what is behind it is for the receiver."""
        head = self._head
        while (size := _missing(head)) > 0:
            data = self.read(size)
            if data is None:
                return
            if not data:
                self._refuse(self._closed_early())
                return
            head += data
            if head[0] != _CONNACK:
                head += self.read(7) or b""
                break
        self._loop.remove_reader(self._fileno)
        self._handle_connack(head)

    def _closed_early(self) -> Exception:
        where = self.options.where
        if isinstance(self._error, ssl.SSLError) and not isinstance(self._error, ssl.SSLEOFError):
            # With TLS 1.3 the server judges our certificate this late.
            return ConnectionRefused(f"TLS: {where} refuses us: {self._error.reason}; does it want a certificate?")
        text = f"{where} closed the connection before its CONNACK{self._why}"
        return NotConnected(text, closed_before_connack=True)

    def _handle_connack(self, packet: bytearray) -> None:
        where = self.options.where
        if packet[0] == _TLS_ALERT:
            self._refuse(ConnectionRefused(f"{where} answers with TLS: use mqtts:// (or wss://) for this port"))
        elif packet[0] != _CONNACK or _missing(packet) < 0:
            self._refuse(NotConnected(f"{where} does not speak MQTT: its first bytes are {packet[:8].hex(' ')}"))
        else:
            body = packet[_header_size(packet) :]
            if error := refusal(body, self.options):
                self._refuse(error)
            else:
                self.feed_packet(_CONNACK, body)

    def _on_connack(
        self,
        client: object,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        connack = Connack.decode(flags.session_present, reason.value, properties, self.options.mqtt5)
        self._start_keepalive(self._keepalive if connack.server_keep_alive is None else connack.server_keep_alive)
        if not self._connack.done():
            self._connack.set_result(connack)

    def _refuse(self, error: Exception) -> None:
        if not self._connack.done():
            self._connack.set_exception(error)
        self._lost(str(error))

    # Reading

    def read(self, size: int = _CHUNK) -> bytes | None:
        """What the socket holds, up to about `size` bytes: b"" means closed, None that it would block.

        With TLS it takes everything that is decrypted already, as no readiness would be reported for that.
        """
        sock = self._socket
        try:
            data: bytes = sock.recv(size)
        except _WOULD_BLOCK:
            data = b""
            if self._pending is None or not self._pending():
                return None
        except (OSError, AttributeError) as error:  # AttributeError: closed meanwhile
            self._error = error
            return b""
        if self._pending is None or len(data) >= size or not self._pending():
            return data
        more = self.read(size - len(data))
        return data + more if more else data or more

    def touch(self) -> None:
        """The broker is alive: called by `receiver`s that read elsewhere."""
        self._silent = 0

    def pause_reading(self) -> None:
        """Read nothing more; PINGREQ still goes out, and the broker's silence is no reason to give it up."""
        if not self.paused:
            self.paused = True
            self._pauses += 1
            if self._end is None:
                self._loop.remove_reader(self._fileno)

    def resume_reading(self) -> None:
        """Read again."""
        if self.paused:
            self.paused = False
            self._silent = 0
            self.start()

    def feed_packet(self, command: int, body: bytes | bytearray) -> None:
        """Give one packet to paho: its first byte, and what is behind the length.

        A malformed one ends the connection with reason code 0x81 [MQTT-4.13.1-1].
        """
        self._client._in_packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        try:
            code = self._client._packet_handle()
        except Exception as error:  # noqa: BLE001  whatever a decoder makes of nonsense
            self.abort(0x81, f"malformed packet (type {command >> 4}): {error}")
        else:
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.abort(0x82, f"unexpected packet (type {command >> 4}): {paho.error_string(code)}")

    def _readable(self) -> None:
        self._silent = 0
        try:
            self.receiver()
        except Exception:
            log.exception("the receiver of %s failed: this is a bug in mqttapi", self.options.client_id)
            self.abort(0x83, "internal error")

    def _read_with_paho(self) -> None:
        while (
            self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS and self._pending is not None and self._pending()
        ):
            pass

    def _read_what_is_pending(self) -> None:
        if self._pending is not None and self._pending():
            self._loop.call_soon(self._readable)

    def connection_lost(self) -> None:
        """To be called by a receiver that has read b""."""
        self._lost(f"the broker closed the connection{self._why}")

    @property
    def _end_reason(self) -> str:
        return self._end.reason if self._end is not None else "not open"

    @property
    def _why(self) -> str:
        return f" ({self._error})" if self._error is not None else ""

    def ack(self, packet_id: int, qos: int) -> None:
        """Acknowledge a message of the plain path."""
        self._client.ack(packet_id, qos)

    def _on_paho_message(self, client: object, userdata: object, message: paho.MQTTMessage) -> None:
        if self.on_message is not None:
            self.on_message(message)

    # Writing

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes | bytearray) -> None:
        """Send whole packets, at once where the socket takes them. Never raises; nothing happens once closed."""
        self._quiet = 0
        if self._unsent:
            self._unsent += data
        elif self._socket is not None and (sent := self._send(data)) < len(data):
            self._unsent += data[sent:] if sent else data
            self._write_when_possible()

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """How much the socket took, 0 to the length of `data`.

        TLS and WebSockets have to be given the same bytes again after a 0: the buffer only grows at its end.
        """
        try:
            sent: int = self._socket.send(data)
        except _WOULD_BLOCK:
            return 0
        except (OSError, AttributeError) as error:
            if self._connack.done():
                self._lost(f"writing failed: {error}")
            return len(data)  # before the CONNACK the reader finds out more
        return sent

    def _write_when_possible(self) -> None:
        if not self._writing and self._end is None:
            self._writing = True
            self._loop.add_writer(self._fileno, self._writable)

    def _writable(self) -> None:
        while self._unsent:
            with memoryview(self._unsent) as view, view[:_CHUNK] as chunk:
                sent = self._send(chunk)
            if not sent:
                return
            del self._unsent[:sent]
        self._writing = False
        if self._end is None:
            self._loop.remove_writer(self._fileno)
        if self.on_drained is not None:
            self.on_drained()

    def _queue_packet(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: object = None
    ) -> MQTTErrorCode:
        """Stands in for paho's queue of packets to send."""
        if threading.get_ident() == self._loop_thread:
            self.write(packet)
        else:
            self._loop.call_soon_threadsafe(self.write, packet)  # CONNECT, from the thread that connects
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    # Subscribing

    async def subscribe_all(self, subscriptions: Sequence[Subscription], *, timeout: float | None = None) -> list[int]:
        """Subscribe, and return the reason codes in order: 0x80 and more are for the caller to judge.

        One SUBSCRIBE is sent per subscription identifier, as the identifier belongs to the packet. `timeout` (seconds;
        default: the connection's) does not run while reading is paused.

        Raises:
            NotConnected: there was no SUBACK in time, or the connection was lost.
        """
        groups: dict[int | None, list[int]] = {}
        for index, subscription in enumerate(subscriptions):
            groups.setdefault(subscription.id, []).append(index)
        sent = [(group, self._send_subscribe([subscriptions[i] for i in group], id)) for id, group in groups.items()]
        codes = [0] * len(subscriptions)
        for group, packet_id in sent:
            granted = await self._answer(packet_id, "SUBACK", timeout)
            if len(granted) != len(group):
                text = f"SUBACK with {len(granted)} reason codes for {len(group)} filters"
                self.abort(0x82, text)
                raise NotConnected(f"{self.options.where} sent a {text} [MQTT-3.9.3-1]")
            for index, code in zip(group, granted, strict=True):
                codes[index] = code
        return codes

    async def unsubscribe_all(self, filters: Sequence[str], *, timeout: float | None = None) -> list[int]:
        """Unsubscribe, and return the reason codes in order (MQTT 3.1.1: none).

        Raises:
            NotConnected: there was no UNSUBACK in time (some brokers send none), or the connection was lost.
        """
        _, packet_id = self._client.unsubscribe(list(filters))
        return await self._answer(self._expect(packet_id), "UNSUBACK", timeout)

    def _send_subscribe(self, subscriptions: Sequence[Subscription], id: int | None) -> int:
        if not self.options.mqtt5:
            return self._expect(self._client.subscribe([(s.filter, s.qos) for s in subscriptions])[1])
        properties = None
        if id is not None:
            properties = make_properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=id)
        options = [
            (s.filter, SubscribeOptions(s.qos, s.no_local, s.retain_as_published, s.retain_handling))
            for s in subscriptions
        ]
        return self._expect(self._client.subscribe(options, properties=properties)[1])

    def _expect(self, packet_id: int | None) -> int:
        if packet_id is None:
            raise NotConnected(f"not connected to {self.options.where}: {self._end_reason}")
        self._answers[packet_id] = self._loop.create_future()
        return packet_id

    async def _answer(self, packet_id: int, kind: str, timeout: float | None) -> list[int]:
        """Wait for a SUBACK or UNSUBACK; time during which nothing is read does not count."""
        answer = self._answers[packet_id]
        seconds = self.timeout if timeout is None else timeout
        try:
            while True:
                pauses = self._pauses
                await asyncio.wait((answer, self.closed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return answer.result()
                if self._end is not None:
                    raise NotConnected(f"no {kind} from {self.options.where}: {self._end_reason}")
                if not self.paused and pauses == self._pauses:
                    raise NotConnected(f"no {kind} from {self.options.where} within {seconds:g} s")
        finally:
            del self._answers[packet_id]
            self._packet_ids.release(packet_id)

    def _on_suback(
        self, client: object, userdata: object, mid: int, reason_codes: Sequence[ReasonCode], properties: object
    ) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result([code.value for code in reason_codes])

    # Keepalive

    def _start_keepalive(self, keepalive: int) -> None:
        """Measured in ticks, not by the clock: time that the loop was blocked is nobody's silence."""
        if keepalive:
            self._period = max(_MIN_TICK, min(1.0, keepalive / 8))
            self._ticks = keepalive / self._period
            self._tick = self._loop.call_later(self._period, self._keep_alive)

    def _keep_alive(self) -> None:
        self._quiet += 1
        self._silent = 0 if self.paused else self._silent + 1
        if self._silent > 1.25 * self._ticks:
            self._lost("the broker does not answer PINGREQ")
            return
        if self._quiet > 0.5 * self._ticks or self._silent == int(0.5 * self._ticks):
            self.write(_PINGREQ)
        if self._end is None:
            self._tick = self._loop.call_later(self._period, self._keep_alive)

    # Closing

    async def close(self, reason_code: int = 0, *, session_expiry: int | None = None, timeout: float = 2.0) -> None:
        """Send what is unsent and DISCONNECT, and wait until the broker has closed, for `timeout` seconds at most.

        `reason_code` 0x04 asks for the will. `session_expiry` (seconds) replaces what CONNECT said; both are MQTT 5.
        """
        if self._socket is not None and self._end is None:
            self.write(self._disconnect_packet(reason_code, session_expiry))
            # A socket closed with bytes unread resets the connection, and the broker may lose what we sent.
            self.receiver = self._discard
            self.paused = False
            self.start()
            await asyncio.wait((self.closed,), timeout=timeout)
        self._lost("closed by us", by_us=True)

    def abort(self, reason_code: int, reason: str) -> None:
        """Send DISCONNECT with `reason_code` (MQTT 5) if the socket takes it, and close at once."""
        if self.options.mqtt5 and self._end is None:
            self.write(self._disconnect_packet(reason_code, None))
        self._lost(reason, by_us=True)

    def _disconnect_packet(self, reason_code: int, session_expiry: int | None) -> bytes:
        if not self.options.mqtt5 or (not reason_code and session_expiry is None):
            return b"\xe0\x00"
        if session_expiry is None:
            return bytes((0xE0, 1, reason_code))
        return struct.pack("!BBBBBI", 0xE0, 7, reason_code, 5, 0x11, session_expiry)

    def _discard(self) -> None:
        while (data := self.read()) is not None:
            if not data:
                self._lost("closed by us", by_us=True)
                return

    def _on_paho_disconnect(
        self,
        client: object,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if not flags.is_disconnect_packet_from_server:
            self.connection_lost()
            return
        text = reason_text(reason.value, PacketTypes.DISCONNECT)
        said = getattr(properties, "ReasonString", "")
        self._lost(f"the broker disconnected: {text}{said and f': {said}'}", reason_code=reason.value)

    def _on_close(self, client: object, userdata: object, sock: Any) -> None:
        self._loop.remove_reader(self._fileno)
        self._loop.remove_writer(self._fileno)

    def _lost(self, reason: str, *, reason_code: int | None = None, by_us: bool = False) -> None:
        if self._end is not None:
            return
        self._end = Closed(reason, reason_code, by_us)
        if not self.closed.done():
            self.closed.set_result(self._end)
        if self._tick is not None:
            self._tick.cancel()
        if not self._connack.done():
            self._connack.set_exception(NotConnected(f"{self.options.where}: {reason}"))
        self._unsent = bytearray()
        if self._socket is not None:
            self._client._sock_close()
            self._socket = None

    async def __aenter__(self) -> Self:
        await self.open()
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def _missing(packet: bytearray) -> int:
    """How many bytes are known to be missing from a packet that has come in part; -1: its length is malformed."""
    size = _header_size(packet)
    if size == 0:
        return -1 if len(packet) > 4 else 1
    remaining = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(packet[1:size]))
    return size + remaining - len(packet)


def _header_size(packet: bytearray) -> int:
    """The size of type and length, 2 to 5 bytes, or 0 when the length is not complete."""
    return next((index + 1 for index in range(1, min(len(packet), 5)) if packet[index] < 0x80), 0)


async def _in_thread(function: Callable[[], object], name: str) -> None:
    """Run `function` in a daemon thread of its own: executors may be full of handlers, and are waited for at exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as caught:  # noqa: BLE001  handed over
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done
