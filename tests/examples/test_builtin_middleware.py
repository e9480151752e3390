from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from examples.builtin_middleware import SECRETS, app
from mqttapi.middleware import sign
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    import pytest


async def send(client: TestClient, topic: str, payload: bytes = b"", *, age: int = 0, id: str = "") -> str:
    now = str(int(time.time()) - age)
    signature = sign(SECRETS["7"], topic, payload, now)
    given: dict[str, Any] = {"timestamp": now, "signature": signature, "message-id": id}
    return (await client.publish(topic, payload, user_properties=given.items())).outcome


async def test_who_signs_is_known_and_has_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        outcomes = [await send(client, "devices/7/data", b"21") for _ in range(3)]
        assert await send(client, "devices/8/data", b"21") == "rejected"
    assert outcomes == ["done", "done", "rejected"]
    assert capsys.readouterr().out == "7: 21.0 °C\n" * 2


async def test_an_order_that_comes_twice_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        outcomes = [await send(client, "devices/7/orders", b"pump", id=id) for id in "112"]
    assert outcomes == ["done", "dropped", "done"]
    assert capsys.readouterr().out == "7 orders pump\n" * 2


async def test_a_door_does_not_open_late(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        assert await send(client, "devices/7/open", age=31) == "dropped"
        assert await send(client, "devices/7/open") == "done"
    assert capsys.readouterr().out == "the door of 7 opens\n"
