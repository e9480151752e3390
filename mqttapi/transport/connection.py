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
import logging
import ssl
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes

from mqttapi.config import tls_failure
from mqttapi.errors import ConfigurationError, ConnectionRefused, NotConnected
from mqttapi.transport.credentials import ask
from mqttapi.transport.handshake import (
    Connack,
    ConnectionOptions,
    connect_socket,
    decode_connack,
    header_size,
    in_thread,
    missing_bytes,
    reason_text,
)
from mqttapi.transport.packet_ids import PacketIds
from mqttapi.transport.subscribing import Requests, Subscription
from mqttapi.transport.wire import CHUNK, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["Closed", "Connack", "Connection", "ConnectionOptions", "Subscription", "internals_available"]

log = logging.getLogger(__name__)

_CONNACK: Final = 0x20
_TLS_ALERT: Final = 0x15
_PINGREQ: Final = b"\xc0\x00"
_NEEDED: Final = ("_create_socket", "_mid_generate", "_packet_queue", "_sock_close")
_NEEDED_TO_FEED: Final = ("_in_packet", "_packet_handle")
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


def internals_available() -> list[str]:
    """The names in paho-mqtt that a connection and its `feed_packet` need and the installed version lacks.

    Without those of `feed_packet` the plain path, where paho reads, is left.
    """
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="probe")
    return [name for name in _NEEDED + _NEEDED_TO_FEED if not hasattr(client, name)]


class Connection(aiomqtt.Client):
    """A connection that is opened once.

    `open()` returns when the broker has accepted; nothing is read behind the CONNACK before `start(receiver)`, so that
    the caller can prepare its session first. `receiver` is then called whenever the socket is readable and calls
    `read()`; without one, paho reads and gives messages to `on_message`.
    """

    def __init__(self, options: ConnectionOptions, *, packet_ids: PacketIds | None = None) -> None:
        """`packet_ids` is given where SUBSCRIBE and UNSUBSCRIBE share their ids with publishes."""
        super().__init__(**options.client_arguments())
        if missing := [name for name in _NEEDED if not hasattr(self._client, name)]:
            raise ConfigurationError(f"the installed paho-mqtt has no {', '.join(missing)}: install paho-mqtt 2.2")
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
        self.reads_only_if_read = False
        """Whether nothing is read from a broker that leaves what it is sent unread: it makes us owe it ever more."""
        self._choked = False  # such a broker
        self._pauses = 0
        self.maximum_packet_size: int | None = None
        """Bytes of a packet that the broker takes, where it said so."""
        self._connack: asyncio.Future[Connack] = self._loop.create_future()
        self._head = bytearray()
        self._wire: Wire | None = None  # while the connection stands
        self._loop_thread = threading.get_ident()
        self._tick: asyncio.TimerHandle | None = None
        self._period = 0.0
        self._ticks = 0.0  # of `_period` seconds in a keepalive
        self._quiet = 0  # ticks since we sent something
        self._silent = 0  # ticks since the broker sent something

        client = self._client
        client.disable_logger()  # what matters is in `closed` and in the errors of `open`
        client.manual_ack_set(True)
        client.connect_timeout = options.timeout
        client.on_connect = None
        client.on_disconnect = self._on_paho_disconnect
        client.on_message = self._on_paho_message
        client.on_publish = None
        client.on_socket_open = self._on_open
        client.on_socket_close = self._on_close
        client.on_socket_register_write = client.on_socket_unregister_write = None
        client._create_socket = lambda: connect_socket(options)  # type: ignore[method-assign]  # errors that tell more
        client._packet_queue = self._queue_packet  # type: ignore[method-assign]  # one path for everything that is sent
        self._packet_ids = packet_ids or PacketIds()
        client._mid_generate = self._packet_ids.take  # type: ignore[method-assign]  # one allocator
        self._requests = Requests(self, self._packet_ids)

    # Opening

    async def open(self) -> Connack:
        """Connect, and wait for the CONNACK.

        Raises:
            ConnectionRefused: for good: credentials, protocol, client id, TLS.
            NotConnected: for now: nothing listens, no answer in time, the server is busy …
        """
        try:
            if self.options.credentials is not None:
                self._identify(*await ask(self.options.credentials, timeout=self.timeout))
            async with asyncio.timeout(self.timeout):
                await in_thread(self._client_connect, f"mqttapi-connect-{self.options.client_id}")
                return await self._connack
        except TimeoutError:
            self._give_up("no answer in time")
            raise NotConnected(f"no CONNACK from {self.options.where} within {self.timeout:g} s") from None
        except BaseException as error:
            self._give_up(str(error))
            raise

    def _identify(self, username: str | None, password: str | None) -> None:
        if username is None and password is not None and self.options.mqtt5:
            username = ""  # see `client_arguments`
        self._client.username_pw_set(username, password)

    def _give_up(self, reason: str) -> None:
        if not self._connack.cancel() and not self._connack.cancelled():
            self._connack.exception()  # seen
        self._lost(reason, by_us=True)

    def start(self, receiver: Callable[[], None] | None = None) -> None:
        """Begin to read, with `receiver` or by paho."""
        if receiver is not None:
            self.receiver = receiver
        if self._wire is not None and not self.paused and not self._choked:
            self._wire.watch(self._readable)

    def _on_open(self, client: object, userdata: object, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._attach, sock)  # we are in the thread that connects

    def _attach(self, sock: Any) -> None:
        if self._end is not None:  # `open` was given up meanwhile
            self._client._sock_close()
            return
        self._wire = Wire(
            sock,
            self._loop,
            failed=self._on_write_failed,
            drained=self._on_drained,
            congested=self._on_congested,
        )
        self._wire.watch(self._read_connack)

    def _read_connack(self) -> None:
        """Read one packet, byte for byte: what is behind it is for the receiver."""
        wire, head = self._wire, self._head
        assert wire is not None  # noqa: S101  nobody else watches it
        while (size := missing_bytes(head)) > 0:
            data = wire.read(size)
            if data is None:
                return
            if not data:
                self._refuse(self._closed_early(wire.error))
                return
            head += data
            if head[0] != _CONNACK:
                head += wire.read(7) or b""
                break
        wire.unwatch()
        self._handle_connack(head)

    def _closed_early(self, error: Exception | None) -> Exception:
        options = self.options
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            # With TLS 1.3 the server judges our certificate this late.
            return ConnectionRefused(tls_failure(error, options.broker, options.ca_file))
        hint = "" if options.broker.tls else ": does this port want TLS (mqtts:// or wss://)?"
        text = f"{options.where} closed the connection before its CONNACK{_because(error)}{hint}"
        return NotConnected(text, closed_before_connack=True)

    def _handle_connack(self, packet: bytearray) -> None:
        where = self.options.where
        if packet[0] == _TLS_ALERT:
            self._refuse(ConnectionRefused(f"{where} answers with TLS: use mqtts:// (or wss://) for this port"))
        elif packet[0] != _CONNACK or missing_bytes(packet) < 0:
            self._refuse(NotConnected(f"{where} does not speak MQTT: its first bytes are {packet[:8].hex(' ')}"))
        else:
            body = packet[header_size(packet) :]
            answer = decode_connack(bytes(body), self.options)
            if isinstance(answer, Exception):
                self._refuse(answer)
                return
            self._start_keepalive(self._keepalive if answer.server_keep_alive is None else answer.server_keep_alive)
            self.maximum_packet_size = answer.maximum_packet_size
            if not self._connack.done():
                self._connack.set_result(answer)

    def _refuse(self, error: Exception) -> None:
        if not self._connack.done():
            self._connack.set_exception(error)
        self._lost(str(error))

    # Reading

    def read(self, size: int = CHUNK) -> bytes | None:
        """What is there, up to `size` bytes: b"" means closed, None that it would block."""
        return self._wire.read(size) if self._wire is not None else b""

    def touch(self) -> None:
        """The broker is alive: called by `receiver`s that read elsewhere."""
        self._silent = 0

    def pause_reading(self) -> None:
        """Read nothing more; PINGREQ still goes out, and the broker's silence is no reason to give it up."""
        if not self.paused:
            self.paused = True
            self._pauses += 1
            if self._wire is not None:
                self._wire.unwatch()

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
        wire = self._wire
        if self.paused or self._choked or wire is None:
            return
        self._silent = 0
        try:
            self.receiver()
        except Exception:
            log.exception("the receiver of %s failed: this is a bug in mqttapi", self.options.client_id)
            self.abort(0x83, "internal error")
        if self._end is None and wire.pending:
            self._loop.call_soon(self._readable)  # the socket itself has nothing more to report

    def _read_with_paho(self) -> None:
        while self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS and self._wire is not None:
            if not self._wire.pending:
                return

    def connection_lost(self) -> None:
        """To be called by a receiver that has read b""."""
        self._lost(f"the broker closed the connection{_because(self._wire.error if self._wire is not None else None)}")

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
        return self._wire.unsent if self._wire is not None else 0

    def write(self, data: bytes | bytearray) -> None:
        """Send whole packets, at once where the socket takes them. Never raises; nothing happens once closed."""
        self._quiet = 0
        if self._wire is not None:
            self._wire.write(data)

    def _on_write_failed(self, error: Exception) -> None:
        if self._connack.done():  # else the reader finds out more
            self._lost(f"writing failed: {error}")

    def _on_congested(self) -> None:
        if self.reads_only_if_read and not self._choked and self._wire is not None:
            self._choked = True
            self._wire.unwatch()

    def _on_drained(self) -> None:
        if self._choked:
            self._choked = False
            self.start()
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
        """See `Requests.subscribe`."""
        return await self._requests.subscribe(subscriptions, timeout)

    async def unsubscribe_all(self, filters: Sequence[str], *, timeout: float | None = None) -> list[int]:
        """See `Requests.unsubscribe`."""
        return await self._requests.unsubscribe(filters, timeout)

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

    async def close(self, reason_code: int = 0, *, session_expiry: int | None = None, timeout: float = 2.0) -> bool:
        """Send what is unsent and DISCONNECT, and wait until the broker has closed, for `timeout` seconds at most.

        `reason_code` 0x04 asks for the will. `session_expiry` (seconds) replaces what CONNECT said; both are MQTT 5.
        Gives whether the broker has closed in time, and so has read all of it.
        """
        answered = False
        if self._wire is not None:
            self.write(self._disconnect_packet(reason_code, session_expiry))
            # A socket closed with bytes unread resets the connection, and the broker may lose what we sent.
            self.receiver = self._discard
            self.paused = self._choked = self.reads_only_if_read = False
            self.start()
            await asyncio.wait((self.closed,), timeout=timeout)
            answered = self._end is not None and self._end.by_us  # else writing has failed
        self._lost("closed by us", by_us=True)
        return answered

    def abort(self, reason_code: int, reason: str) -> None:
        """Send DISCONNECT with `reason_code` (MQTT 5) if the socket takes it, and close at once."""
        if self.options.mqtt5:
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

    def _on_close(self, client: object, userdata: object, sock: object) -> None:
        if self._wire is not None:
            self._wire.detach()
            self._wire = None

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
        if self._wire is not None:
            self._client._sock_close()

    async def __aenter__(self) -> Self:
        await self.open()
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def _because(error: Exception | None) -> str:
    return f" ({error})" if error is not None else ""
