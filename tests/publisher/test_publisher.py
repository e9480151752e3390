"""The values that go out, the refusals before anything is sent, and what the `Publisher` hands on."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from mqttapi.errors import ConfigurationError, InvalidTopic, NotConnected
from mqttapi.publisher import NO_REPLY, Publish, Publisher, PublishResult


class Outbox:
    """An `Outgoing` that confirms at once, or never."""

    has_properties = True

    def __init__(self, *, confirms: bool = True) -> None:
        self.sent: list[Publish] = []
        self.confirms = confirms
        self.future: asyncio.Future[PublishResult] | None = None

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        self.sent.append(publish)
        self.future = asyncio.get_running_loop().create_future()
        if self.confirms:
            self.future.set_result(PublishResult(publish.topic, publish.qos, 1))
        return self.future


async def test_publish_hands_on_what_was_said() -> None:
    outbox = Outbox()
    result = await Publisher(outbox).publish(
        "a/b",
        {"x": 1},
        qos=2,
        retain=True,
        expiry=5,
        content_type="application/json",
        user_properties={"k": "v"},
        response_topic="r",
        correlation_data=b"\x00",
    )
    assert result == PublishResult("a/b", 2, 1)
    assert outbox.sent == [Publish("a/b", b'{"x":1}', 2, True, 5, "application/json", (("k", "v"),), "r", b"\x00")]


async def test_params_fill_the_template() -> None:
    outbox = Outbox()
    publisher = Publisher(outbox)
    await publisher.publish("alerts/<id>", params={"id": 7})
    publisher.publish_nowait("alerts/{id}", params={"id": "x"})
    await publisher.send(Publish("alerts/<id>", "text", params={"id": "y"}))
    assert [publish.topic for publish in outbox.sent] == ["alerts/7", "alerts/x", "alerts/y"]
    assert outbox.sent[-1].payload == b"text"
    assert outbox.sent[-1].params is None


@pytest.mark.parametrize("name", ["publish", "publish_nowait"])
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("qoss", "publish to 'a/b': unknown option 'qoss'. Did you mean 'qos'?"),
        (
            "ttl",
            (
                "publish to 'a/b': unknown option 'ttl'. Known are: qos, retain, expiry, content_type, user_properties, "
                "response_topic, correlation_data, params, payload_format_indicator."
            ),
        ),
    ],
)
async def test_an_unknown_option_is_named_with_the_nearest(name: str, option: str, text: str) -> None:
    outbox = Outbox()
    publish: Any = getattr(Publisher(outbox), name)
    with pytest.raises(ConfigurationError) as caught:
        await publish("a/b", **{option: 1})
    assert str(caught.value) == text
    assert not outbox.sent


async def test_params_of_none_leave_the_topic_literal() -> None:
    outbox = Outbox()
    await Publisher(outbox).publish("alerts/<id>", params=None)
    assert outbox.sent[0].topic == "alerts/<id>"


async def test_without_params_a_topic_is_literal() -> None:
    outbox = Outbox()
    await Publisher(outbox).publish("alerts/<id>")
    assert outbox.sent[0].topic == "alerts/<id>"


@pytest.mark.parametrize("value", ["x/y", "+", "#", "", "a\0"])
async def test_a_parameter_cannot_inject_a_topic(value: object) -> None:
    outbox = Outbox()
    with pytest.raises(InvalidTopic):
        await Publisher(outbox).publish("a/<id>", params={"id": value})
    assert not outbox.sent


@pytest.mark.parametrize("topic", ["a/+", "#", "", "a\0b", "a\ud800", "é" * 32_768, 7, None])
async def test_what_is_no_topic_name_is_refused_before_it_is_sent(topic: Any) -> None:
    outbox = Outbox()
    with pytest.raises(InvalidTopic):
        await Publisher(outbox).publish(topic)
    assert not outbox.sent


async def test_topics_of_the_broker_are_refused_unless_allowed() -> None:
    with pytest.raises(InvalidTopic) as caught:
        Publisher(Outbox()).publish_nowait("$SYS/x")
    assert str(caught.value) == (
        "publish to '$SYS/x': topics that begin with '$' belong to the broker; App(system_topics=True) allows them"
    )
    with pytest.raises(InvalidTopic):
        Publisher(Outbox()).publish_nowait("<first>/x", params={"first": "$SYS"})
    outbox = Outbox()
    await Publisher(outbox, system_topics=True).publish("$SYS/x")
    assert outbox.sent


async def test_an_app_that_does_not_run_says_so() -> None:
    with pytest.raises(NotConnected) as caught:
        await Publisher().publish("a/b")
    assert str(caught.value) == (
        "publish to 'a/b': the app is not running. "
        "Publish from a handler or the lifespan, or inside `async with app.running():`"
    )


async def test_a_timeout_gives_up_and_withdraws() -> None:
    outbox = Outbox(confirms=False)
    with pytest.raises(NotConnected) as caught:
        await Publisher(outbox).publish("a/<id>", timeout=0.01, params={"id": "b"})
    assert str(caught.value) == "publish to 'a/b': no answer from the broker in 0.01 s"
    assert outbox.future is not None
    assert outbox.future.cancelled()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"qos": 3}, "qos must be 0, 1 or 2, got 3"),
        ({"qos": -1}, "qos must be 0, 1 or 2, got -1"),
        ({"qos": "1"}, "qos must be 0, 1 or 2, got '1'"),
        ({"qos": True}, "qos must be 0, 1 or 2, got True"),
        ({"qos": 1.0}, "qos must be 0, 1 or 2, got 1.0"),
        ({"retain": None}, "retain must be True or False, got None"),
        ({"retain": 2}, "retain must be True or False, got 2"),
        ({"expiry": -1}, "expiry must be 0 to 4294967295 seconds, or None for never, got -1"),
        ({"expiry": 2**32}, "expiry must be 0 to 4294967295 seconds, or None for never, got 4294967296"),
        ({"expiry": float("nan")}, "expiry must be 0 to 4294967295 seconds, or None for never, got nan"),
        ({"expiry": "5"}, "expiry must be 0 to 4294967295 seconds, or None for never, got '5'"),
        ({"expiry": True}, "expiry must be 0 to 4294967295 seconds, or None for never, got True"),
        ({"user_properties": ["ab"]}, "user_properties must be (name, value) pairs of str, got 'ab'"),
        ({"user_properties": {"n": 7}}, "user property 'n' must be a str, got 7: write str(…)"),
        ({"user_properties": [(1, "a")]}, "the name of a user property must be a str, got 1: write str(…)"),
        (
            {"user_properties": {"n": "a\0"}},
            "user property 'n' must not hold the character U+0000 [MQTT-1.5.4-2]: 'a\\\\x00'",
        ),
        ({"content_type": "é" * 40_000}, "content_type must be at most 65535 bytes of UTF-8, got 80000"),
        ({"content_type": "\udfff"}, "content_type must not hold a surrogate [MQTT-1.5.4-1]: U+DFFF at 0"),
        ({"content_type": b"x"}, "content_type must be a str, got b'x': write str(…)"),
        ({"correlation_data": "x"}, "correlation_data must be bytes, got str"),
        (
            {"payload_format_indicator": 2},
            "payload_format_indicator must be 0 (bytes) or 1 (UTF-8 text) [MQTT5 §3.3.2.3.2], got 2",
        ),
        (
            {"payload_format_indicator": True},
            "payload_format_indicator must be 0 (bytes) or 1 (UTF-8 text) [MQTT5 §3.3.2.3.2], got True",
        ),
        ({"correlation_data": b"x" * 65_536}, "correlation_data must be at most 65535 bytes, got 65536"),
    ],
)
def test_an_argument_that_breaks_a_rule_is_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Publish("a/b", **arguments)
    assert str(caught.value) == text


def test_a_response_topic_is_a_topic_name() -> None:
    with pytest.raises(InvalidTopic):
        Publish("a/b", response_topic="r/+")


def test_user_properties_keep_order_and_repetitions() -> None:
    pairs = [("k", "1"), ("a", "2"), ("k", "1")]
    assert Publish("a", user_properties=pairs).user_properties == tuple(pairs)
    assert Publish("a", user_properties=iter(pairs)).user_properties == tuple(pairs)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Publish("a").topic = "b"  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        PublishResult("a", 1).topic = "b"  # type: ignore[misc]  # that is the point


def test_no_reply_shows_its_name() -> None:
    assert repr(NO_REPLY) == "NO_REPLY"
