"""`no_local`: what the app has published itself, other routes and other apps get."""

from __future__ import annotations

from typing import Any

import mqtt5
import pytest

from mqttapi import App, Publish, RouteOptions
from mqttapi.config import Settings
from mqttapi.runtime.echo import MARK, Echo
from mqttapi.topics import TopicTemplate
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually


def listening(instance: str = "test", **values: Any) -> tuple[App, list[str], list[str]]:
    """An app with a route of each kind on the same topics, and what they got."""
    app = App("echo", settings=Settings(instance=instance, **values))
    others: list[str] = []
    everything: list[str] = []

    @app.topic("a/<id>", options=RouteOptions(no_local=True))
    async def from_others(payload: str) -> None:
        others.append(payload)

    @app.topic("a/#")
    async def all_of_it(payload: str) -> None:
        everything.append(payload)

    return app, others, everything


async def test_a_route_does_not_get_what_the_app_has_published(mosquitto: Mosquitto) -> None:
    app, others, everything = listening()
    async with app.running(broker=mosquitto.url), client(mosquitto.url) as publisher:
        await app.publish("a/1", "own")
        await publisher.publish("a/1", b"other", qos=1)
        await eventually(lambda: sorted(everything) == ["other", "own"] and others)
    assert others == ["other"]


async def test_nor_what_the_app_has_published_before_it_was_started_again(mosquitto: Mosquitto) -> None:
    first, _, _ = listening()
    async with first.running(broker=mosquitto.url):
        await first.publish("a/1", "own", retain=True)
    second, others, everything = listening()
    async with second.running(broker=mosquitto.url):
        await eventually(lambda: everything)
    assert (others, set(everything)) == ([], {"own"})


async def test_another_instance_gets_it(mosquitto: Mosquitto) -> None:
    app, others, _ = listening("one")
    other_app, others_of_other, _ = listening("two")
    async with app.running(broker=mosquitto.url), other_app.running(broker=mosquitto.url):
        await app.publish("a/1", "own")
        await eventually(lambda: others_of_other == ["own"])
    assert others == []


async def test_other_topics_have_no_mark(mosquitto: Mosquitto) -> None:
    app, _, _ = listening()
    async with app.running(broker=mosquitto.url), client(mosquitto.url) as listener:
        await listener.subscribe("b/#")
        await app.publish("b/1", "x", user_properties={"k": "v"})
        message = (await listener.message("b/1")).decode(mqtt5.PublishPacket)
    assert message.user_properties == [("k", "v")]


def test_a_mark_is_for_its_topic_and_its_sender() -> None:
    templates = [TopicTemplate("a/<id>"), TopicTemplate("b")]
    echo = Echo("one", templates)
    marks = [
        str(echo.marked(Publish("a/1")).user_properties),
        str(echo.marked(Publish("b")).user_properties),
        str(Echo("two", templates).marked(Publish("b")).user_properties),
    ]
    assert len({*marks}) == 3
    assert all(MARK in mark for mark in marks)


async def test_on_mqtt_3_1_1_it_is_warned_of(mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    app, others, _ = listening(protocol="3.1.1")
    async with app.running(broker=mosquitto.url):
        await app.publish("a/1", "own")
        await eventually(lambda: others == ["own"])
    assert "no_local means nothing on MQTT 3.1.1: its routes receive what the app publishes itself" in caplog.messages
