from __future__ import annotations

from examples.reply import app
from mqttapi.testing import TestClient


async def test_what_is_returned_is_the_answer() -> None:
    async with TestClient(app) as client:
        delivery = await client.publish(
            "calculator/add", {"a": 1, "b": 2}, response_topic="answers/7", correlation_data=b"\x00\xff"
        )
    assert delivery.reply is not None
    assert (delivery.reply.topic, delivery.reply.payload) == ("answers/7", b'{"total":3}')
    assert delivery.reply.correlation_data == b"\x00\xff"


async def test_who_asks_for_no_answer_gets_none() -> None:
    async with TestClient(app) as client:
        await client.publish("calculator/add", {"a": 1, "b": 2})
        assert client.published == []


async def test_a_handler_may_answer_more_than_once() -> None:
    async with TestClient(app) as client:
        await client.publish("calculator/slowly", {"a": 1, "b": 2}, response_topic="answers/7")
        assert [publish.payload for publish in client.published] == [b"working on it", b'{"total":3}']
