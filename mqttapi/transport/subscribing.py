"""What a client asks of its broker, and the wait for the answer: SUBSCRIBE and SUBACK, UNSUBSCRIBE and UNSUBACK."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from mqttapi.errors import NotConnected
from mqttapi.transport.handshake import make_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

    from mqttapi.transport.connection import Connection
    from mqttapi.transport.packet_ids import PacketIds

__all__ = ["Requests", "Subscription"]

_T = TypeVar("_T")
_MOST: Final = 268_435_460  # bytes of any packet
_AROUND: Final = 13  # type, length, packet id, properties with a subscription identifier


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


class Requests:
    """Those of one connection that await their answers."""

    def __init__(self, connection: Connection, packet_ids: PacketIds) -> None:
        self._connection = connection
        self._packet_ids = packet_ids
        self._answers: dict[int, asyncio.Future[list[int]]] = {}
        self._client = client = connection._client
        client.on_subscribe = client.on_unsubscribe = self._on_answer

    async def subscribe(self, subscriptions: Sequence[Subscription], timeout: float | None) -> list[int]:
        """Subscribe, and return the reason codes in order: 0x80 and more are for the caller to judge.

        One SUBSCRIBE is sent per subscription identifier, as the identifier belongs to the packet, and more where one is
        longer than the broker takes. `timeout` (seconds; None: the connection's) does not run while reading is paused.

        Raises:
            NotConnected: there was no SUBACK in time, or the connection was lost.
        """
        connection = self._connection
        groups: dict[int | None, list[int]] = {}
        for index, subscription in enumerate(subscriptions):
            groups.setdefault(subscription.id, []).append(index)
        codes = [0] * len(subscriptions)
        with self._expecting() as expect:
            sent = [
                (part, expect(self._send_subscribe([subscriptions[index] for index in part], id)))
                for id, group in groups.items()
                for part in self._parts(group, [subscriptions[index].filter for index in group])
            ]
            for group, answer in sent:
                granted = await self._answer(answer, "SUBACK", timeout)
                if len(granted) != len(group):
                    text = f"SUBACK with {len(granted)} reason codes for {len(group)} filters"
                    connection.abort(0x82, text)
                    raise NotConnected(f"{connection.options.where} sent a {text} [MQTT-3.9.3-1]")
                for index, code in zip(group, granted, strict=True):
                    codes[index] = code
        return codes

    async def unsubscribe(self, filters: Sequence[str], timeout: float | None) -> list[int]:
        """Unsubscribe, and return the reason codes in order (MQTT 3.1.1: none).

        Raises:
            NotConnected: there was no UNSUBACK in time (some brokers send none), or the connection was lost.
        """
        with self._expecting() as expect:
            sent = [expect(self._client.unsubscribe(part)[1]) for part in self._parts(filters, filters)]
            return [code for answer in sent for code in await self._answer(answer, "UNSUBACK", timeout)]

    def _parts(self, items: Sequence[_T], filters: Sequence[str]) -> Iterator[list[_T]]:
        """`items`, which have these filters, in as few packets as the broker's Maximum Packet Size allows."""
        room = limit = (self._connection.maximum_packet_size or _MOST) - _AROUND
        part: list[_T] = []
        for item, filter in zip(items, filters, strict=True):
            size = len(filter.encode()) + 3
            if part and size > room:
                yield part
                part, room = [], limit
            part.append(item)
            room -= size
        yield part

    def _send_subscribe(self, subscriptions: Sequence[Subscription], id: int | None) -> int | None:
        if not self._connection.options.mqtt5:
            return self._client.subscribe([(each.filter, each.qos) for each in subscriptions])[1]
        properties = None
        if id is not None:
            properties = make_properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=id)
        filters = [
            (each.filter, SubscribeOptions(each.qos, each.no_local, each.retain_as_published, each.retain_handling))
            for each in subscriptions
        ]
        return self._client.subscribe(filters, properties=properties)[1]

    @contextlib.contextmanager
    def _expecting(self) -> Iterator[Callable[[int | None], asyncio.Future[list[int]]]]:
        """Gives a function from a packet id (None: paho has no connection) to the future of its answer."""
        ids: list[int] = []

        def expect(packet_id: int | None) -> asyncio.Future[list[int]]:
            if packet_id is None:
                raise NotConnected(f"not connected to {self._connection.options.where}: {self._end_reason}")
            ids.append(packet_id)
            self._answers[packet_id] = answer = asyncio.get_running_loop().create_future()
            return answer

        try:
            yield expect
        finally:
            for packet_id in ids:
                del self._answers[packet_id]
                self._packet_ids.release(packet_id)

    async def _answer(self, answer: asyncio.Future[list[int]], kind: str, timeout: float | None) -> list[int]:
        """Wait for a SUBACK or UNSUBACK; time during which nothing is read does not count."""
        connection = self._connection
        seconds = connection.timeout if timeout is None else timeout
        while True:
            pauses = connection._pauses
            await asyncio.wait((answer, connection.closed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if connection._end is not None:
                raise NotConnected(f"no {kind} from {connection.options.where}: {self._end_reason}")
            if not connection.paused and pauses == connection._pauses:
                raise NotConnected(f"no {kind} from {connection.options.where} within {seconds:g} s")

    @property
    def _end_reason(self) -> str:
        end = self._connection._end
        return end.reason if end is not None else "it is not open"

    def _on_answer(
        self, client: object, userdata: object, mid: int, reason_codes: Sequence[ReasonCode], properties: object
    ) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result([code.value for code in reason_codes])
