from __future__ import annotations

import pytest

from examples.publishing import app
from mqttapi import InvalidTopic
from mqttapi.testing import TestClient


async def test_a_handler_publishes() -> None:
    async with TestClient(app) as client:
        await client.publish("rooms/kitchen/temperature", 18)
        await client.publish("rooms/kitchen/temperature", 20)
        [publish] = client.published
    assert (publish.topic, publish.payload, publish.expiry) == ("rooms/kitchen/heating", b'{"celsius":21.0}', 60)


async def test_what_is_returned_is_published() -> None:
    async with TestClient(app) as client:
        await client.publish("doors/north/open")
        assert [(publish.topic, publish.payload) for publish in client.published] == [
            ("siren", b"on"),
            ("log/north", b'{"open":true}'),
        ]


async def test_a_value_cannot_add_a_level() -> None:
    async with TestClient(app):
        with pytest.raises(InvalidTopic):
            await app.publish("rooms/<room>/heating", params={"room": "a/b"})
