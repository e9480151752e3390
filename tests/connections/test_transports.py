"""An app over TCP, TLS, mutual TLS, WebSockets and Unix sockets: the same promises."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mqttapi import App, Session
from mqttapi.config import Settings
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.process import HOST, free_port
from tests.support.waiting import eventually

MESSAGES = {"ws": 30, "wss": 30}  # mosquitto serves its WebSockets ten times a second
TRANSPORTS = pytest.mark.parametrize("transport", ["mqtt", "mqtts", "ws", "wss", "unix"])


class WithSecureWebSockets(Mosquitto):
    """Mosquitto's listeners are told apart by the last `listener` line."""

    wss_port = 0

    def _listeners(self) -> list[str]:
        self.wss_port = self.wss_port or free_port()
        certificate = [line for line in super()._listeners() if line.startswith(("certfile", "keyfile", "cafile"))]
        secure = [f"listener {self.wss_port} {HOST}", "protocol websockets", "socket_domain ipv4", *certificate]
        return [*super()._listeners(), *secure]

    def address(self, transport: str) -> str:
        """The URL of a listener."""
        urls = {
            "mqtt": self.url,
            "mqtts": self.tls_url,
            "ws": self.websocket_url,
            "wss": f"wss://localhost:{self.wss_port}/mqtt",
            "unix": self.unix_url,
        }
        return urls[transport]


@pytest.fixture(scope="module")
def broker() -> Iterator[WithSecureWebSockets]:
    with WithSecureWebSockets(tls="mutual", websockets=True, unix=True, persistence=False) as mosquitto:
        yield mosquitto


def settings(broker: Mosquitto, transport: str, **values: Any) -> Settings:
    certificate, key = broker.client_cert
    if transport in {"mqtts", "wss"}:
        values |= {"tls_ca_file": broker.ca_file, "tls_cert_file": certificate, "tls_key_file": key}
    return Settings(instance=transport, grace=5.0, **values)


@TRANSPORTS
@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_messages_come_and_go(broker: WithSecureWebSockets, transport: str, version: str) -> None:
    app = App(f"go{version[0]}", settings=settings(broker, transport, protocol=version))
    handled: Counter[int] = Counter()

    @app.topic(f"{transport}{version[0]}/in/<number:int>")
    async def relay(number: int, payload: bytes) -> None:
        await app.publish(f"{transport}{version[0]}/out", payload)
        handled[number] += 1

    async with client(broker.url) as other, app.running(broker=broker.address(transport)):
        await other.subscribe(f"{transport}{version[0]}/out", qos=1)
        sizes = {number: 1 + 5000 * number for number in range(10)}
        for number, size in sizes.items():
            await other.publish(f"{transport}{version[0]}/in/{number}", b"x" * size, qos=1)
        await eventually(lambda: len(handled) == len(other.messages) == 10)
        assert {len(message.payload) for message in other.messages} == set(sizes.values())
        assert not app.readiness
    assert set(handled.values()) == {1}


@TRANSPORTS
async def test_a_full_window_in_the_middle_of_a_read_stalls_nothing(
    broker: WithSecureWebSockets, transport: str
) -> None:
    """Reading stops with messages parsed in part, with records decrypted and not; all of them come in the end."""
    app = App("window", settings=settings(broker, transport, max_in_flight=3), session=Session(expiry=60))
    handled: list[bytes] = []
    numbers = [number.to_bytes(4) for number in range(MESSAGES.get(transport, 300))]

    @app.topic(f"{transport}/burst", ordered_by="topic")
    async def slow(payload: bytes) -> None:
        await asyncio.sleep(0.001)
        handled.append(payload[:4])

    async with app.running(broker=broker.address(transport)):
        pass
    async with client(broker.url) as other:
        for number in numbers:
            await other.publish(f"{transport}/burst", number * 1500, qos=1)
    async with app.running(broker=broker.address(transport)):
        await eventually(lambda: len(handled) >= len(numbers), within=30, what=lambda: f"{len(handled)}")
    assert handled == numbers


async def test_messages_of_qos_0_that_pour_in_stop_at_the_bound_and_go_on(broker: WithSecureWebSockets) -> None:
    transport = "mqtts"
    app = App("pour", settings=settings(broker, transport, max_in_flight=5))
    handled: Counter[bytes] = Counter()
    gate = asyncio.Event()

    @app.topic(f"{transport}/pour", qos=0, ordered_by=None)
    async def wait(payload: bytes) -> None:
        await gate.wait()
        handled[payload[:4]] += 1

    async with client(broker.url) as other, app.running(broker=broker.address(transport)):
        for number in range(500):
            await other.publish(f"{transport}/pour", number.to_bytes(4) * 500, qos=0)
        await eventually(lambda: app.stats.in_flight >= 5)
        gate.set()
        await eventually(lambda: len(handled) == 500, within=20, what=lambda: f"{len(handled)}; {app.stats}")
    assert set(handled.values()) == {1}
