from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.support.mosquitto import Mosquitto, answers_connect
from tests.support.mqtt import client
from tests.support.packets import PacketType
from tests.support.proxy import Direction, Proxy
from tests.support.threads import threaded
from tests.support.waiting import eventually

MakeProxy = Callable[..., Awaitable[Proxy]]


async def test_it_records_packets_of_both_directions(shared_mosquitto: Mosquitto, proxy: MakeProxy) -> None:
    link = await proxy(shared_mosquitto.port)
    async with client(link.url) as c:
        assert await c.subscribe("records/#") == [2]
        await c.publish("records/1", "x", qos=2, content_type="text/plain")
        assert (await c.message()).payload == b"x"
        await c.ping()
    (connect,) = link.packets(Direction.TO_BROKER, PacketType.CONNECT)
    assert connect.connect.keep_alive == 60
    (sent,) = link.packets(Direction.TO_BROKER, PacketType.PUBLISH)
    (received,) = link.packets(Direction.TO_CLIENT, PacketType.PUBLISH)
    assert (sent.topic, sent.qos) == (received.topic, received.qos) == ("records/1", 2)
    assert received.publish.content_type == "text/plain"


async def test_a_dropped_acknowledgement_never_arrives(shared_mosquitto: Mosquitto, proxy: MakeProxy) -> None:
    link = await proxy(shared_mosquitto.port)
    link.drop(Direction.TO_CLIENT, PacketType.PINGRESP, times=1)
    async with client(link.url) as c:
        c.send(b"\xc0\x00")
        await link.wait_for(Direction.TO_CLIENT, PacketType.PINGRESP)
        await c.ping()
        assert [packet.kind for packet in c.received].count(PacketType.PINGRESP) == 1


async def test_reset_and_refuse_then_accept(shared_mosquitto: Mosquitto, proxy: MakeProxy) -> None:
    link = await proxy(shared_mosquitto.port)
    async with client(link.url) as c:
        await link.refuse()
        link.reset()
        await eventually(lambda: c.closed)
        with pytest.raises(ConnectionRefusedError):
            async with client(link.url):
                pass
        await link.accept()
        async with client(link.url) as second:
            await second.ping()


async def test_a_connection_is_cut_in_the_middle_of_a_packet(shared_mosquitto: Mosquitto, proxy: MakeProxy) -> None:
    link = await proxy(shared_mosquitto.port)
    async with client(link.url) as c:
        link.cut_after(Direction.TO_BROKER, 10)
        with pytest.raises(ConnectionResetError):
            await c.publish("cut/here", "0123456789", qos=1)
    assert link.connections[0].closed


async def test_a_paused_proxy_passes_everything_later(shared_mosquitto: Mosquitto, proxy: MakeProxy) -> None:
    link = await proxy(shared_mosquitto.port)
    async with client(link.url) as c:
        await c.subscribe("paused")
        link.pause(Direction.TO_CLIENT)
        async with client(shared_mosquitto.url) as other:
            for number in range(3):
                await other.publish("paused", str(number))
        link.resume()
        assert [m.payload for m in await c.wait_for(3)] == [b"0", b"1", b"2"]


def test_a_test_without_a_loop_runs_it_in_a_thread(shared_mosquitto: Mosquitto) -> None:
    with threaded(Proxy(shared_mosquitto.port)) as (link, portal):
        assert answers_connect(link.port)
        portal.call(link.reset)
        assert link.packets(Direction.TO_BROKER)[0].version == 4
