"""How to test an app; needs no broker."""

import pytest

from examples.quickstart import app
from mqttapi.testing import TestClient


def test_a_hot_reading_raises_an_alert() -> None:
    with TestClient(app).sync() as client:
        delivery = client.publish("sensors/7/data", {"temperature": 90})
        assert delivery.outcome == "done"
        assert client.published[0].topic == "alerts/7"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio  # anyio is there already, with its plugin for pytest
async def test_the_same_as_a_coroutine() -> None:
    async with TestClient(app) as client:
        await client.publish("sensors/7/data", {"temperature": 20})
        assert client.published == []


def test_what_does_not_validate_is_rejected() -> None:
    with TestClient(app).sync() as client:
        delivery = client.publish("sensors/7/data", {"temperature": "hot"})
        assert delivery.outcome == "rejected"
        assert delivery.reason == "temperature: Input should be a valid number, unable to parse string as a number"
