from __future__ import annotations

import httpx
import pytest

from examples.external_api import app
from mqttapi.testing import TestClient


class Weather:
    """The API, as far as the app can see."""

    def __init__(self) -> None:
        self.answers = [204]
        self.received: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.received.append(request.content)
        return httpx.Response(self.answers.pop(0))


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Weather:
    weather = Weather()
    client = httpx.AsyncClient(base_url="https://weather.example", transport=httpx.MockTransport(weather))
    monkeypatch.setitem(app.dependency_overrides, httpx.AsyncClient, client)
    return weather


async def test_a_reading_is_passed_on(weather: Weather) -> None:
    async with TestClient(app) as client:
        assert (await client.publish("sensors/7/data", {"temperature": 21})).outcome == "done"
    assert weather.received == [b'{"device":"7","temperature":21.0}']


async def test_an_api_that_is_away_is_tried_again(weather: Weather) -> None:
    weather.answers = [503, 204]
    async with TestClient(app) as client:
        assert (await client.publish("sensors/7/data", {"temperature": 21})).outcome == "done"
    assert len(weather.received) == 2


async def test_an_answer_of_error_is_a_failure(weather: Weather) -> None:
    weather.answers = [400]
    async with TestClient(app, raise_exceptions=False) as client:
        assert (await client.publish("sensors/7/data", {"temperature": 21})).outcome == "failed"


async def test_the_real_client_is_opened_and_closed() -> None:
    async with TestClient(app):
        pass
