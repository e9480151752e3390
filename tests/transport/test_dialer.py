"""How long to wait between attempts, who else may use the id, and which version of MQTT to speak."""

from __future__ import annotations

import asyncio
from statistics import mean
from typing import TYPE_CHECKING

import pytest

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.transport.connection import Closed
from mqttapi.transport.dialer import MAX_DELAY, RIVAL_PAUSE, SHORT_LIFE, Dialer
from tests.support.packets import PacketType, connack
from tests.support.process import free_port
from tests.transport.options import options_for

if TYPE_CHECKING:
    from tests.support.fake_broker import Connection as Peer
    from tests.support.fake_broker import FakeBroker, Reply
    from tests.support.packets import Packet

LOST = Closed("the broker closed the connection")


def dialer(url: str = "mqtt://127.0.0.1:1", **options: object) -> Dialer:
    return Dialer(options_for(url, **options), protocol_fallback=True)


def lived(each: Dialer, seconds: float, closed: Closed = LOST) -> None:
    """A connection stood for so long."""
    each._since = asyncio.get_running_loop().time() - seconds
    each.ended(closed)


def delays(each: Dialer) -> list[float]:
    return [each.delay() for _ in range(300)]


async def attempt(each: Dialer) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        await each.open()
    return caught.value


async def test_attempts_come_ever_slower_and_never_stop() -> None:
    each = dialer(f"mqtt://127.0.0.1:{free_port()}")
    for _ in range(50):
        assert isinstance(await attempt(each), NotConnected)
    assert each.failures == 50
    assert 0.9 * MAX_DELAY < max(delays(each)) <= MAX_DELAY


async def test_the_pause_is_anything_up_to_its_bound() -> None:
    """Full jitter: a thousand apps do not come back at once."""
    each = dialer()
    each.failures = 7
    seen = delays(each)
    assert min(seen) < 1
    assert max(seen) <= 12.8
    assert 5 < mean(seen) < 8


async def test_the_first_attempt_after_a_loss_is_nearly_immediate() -> None:
    each = dialer()
    each.failures = 9
    lived(each, SHORT_LIFE)
    assert max(delays(each)) <= 0.2


async def test_connections_that_stand_for_a_moment_count_as_failures() -> None:
    each = dialer()
    for _ in range(12):
        lived(each, 1, Closed("server busy", reason_code=0x89))
    assert each.failures == 12
    assert not each.rival


@pytest.mark.parametrize("closed", [Closed("we aborted", by_us=True), Closed("shutting down", reason_code=0x8B)])
async def test_a_rival_is_suspected_after_three_silent_ends_in_a_row(closed: Closed) -> None:
    each = dialer()
    for silent in (LOST, LOST, closed, LOST, LOST):
        lived(each, 0.1, silent)
        assert not each.rival
    lived(each, 0.1)
    assert each.rival
    assert min(delays(each)) >= RIVAL_PAUSE
    lived(each, SHORT_LIFE)
    assert not each.rival


async def test_a_takeover_is_certain() -> None:
    each = dialer()
    lived(each, 100, Closed("session taken over", reason_code=0x8E))
    assert each.rival


async def test_what_goes_on_failing_is_news_once() -> None:
    each = dialer()
    assert [each.is_news(text) for text in ("a", "b", "a")] == [True, True, False]
    lived(each, 1)
    assert not each.is_news("a")
    lived(each, SHORT_LIFE)
    assert each.is_news("a")


async def test_a_clean_start_is_for_the_first_connection(fake_broker: FakeBroker) -> None:
    """Where the session outlives the connection: else nothing would be resumed."""
    for expiry in (60, 0):
        each = dialer(fake_broker.url, clean_start=True, session_expiry=expiry)
        for _ in range(2):
            connection, _connack = await each.open()
            await connection.close()
    sent = [packet.connect.clean_start for packet in fake_broker.packets(PacketType.CONNECT)]
    assert sent == [True, False, True, True]


def closing(*versions: int) -> Reply:
    """Close the connection on CONNECTs of these versions, without a word."""

    def answer(peer: Peer, packet: Packet) -> bytes | None:
        if peer.version in versions:
            peer.close()
            return None
        return connack(version=peer.version)

    return answer


async def test_where_mqtt_5_is_refused_3_1_1_follows_at_once(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, lambda peer, _: connack(int(peer.version == 5), version=4))
    each = dialer(fake_broker.url)
    connection, _connack = await each.open()
    assert connection.options.protocol == each.options.protocol == "3.1.1"
    assert [peer.version for peer in fake_broker.connections] == [5, 4]
    await connection.close()


async def test_three_closes_without_a_word_are_taken_for_a_refusal_of_mqtt_5(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, closing(5))
    each = dialer(fake_broker.url)
    await attempt(each)
    await attempt(each)
    connection, _connack = await each.open()
    assert [peer.version for peer in fake_broker.connections] == [5, 5, 5, 4]
    await connection.close()


async def test_3_1_1_is_given_up_where_it_is_no_better(fake_broker: FakeBroker) -> None:
    """A proxy whose broker is away closes every connection: the app is not left with 3.1.1 for that."""
    fake_broker.reply(PacketType.CONNECT, closing(4, 5))
    each = dialer(fake_broker.url)
    for _ in range(6):
        await attempt(each)
    assert [peer.version for peer in fake_broker.connections] == [5, 5, 5, 4, 5, 5, 5, 4]
    assert each.options.protocol == "5"


async def test_a_version_that_has_worked_stays(fake_broker: FakeBroker) -> None:
    each = dialer(fake_broker.url)
    connection, _connack = await each.open()
    await connection.close()
    fake_broker.reply(PacketType.CONNECT, connack(1, version=4))
    assert isinstance(await attempt(each), ConnectionRefused)
    assert {peer.version for peer in fake_broker.connections} == {5}
