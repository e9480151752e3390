"""What strangers choose is remembered only where it is short: topics, and what answers are sent to."""

from __future__ import annotations

from mqttapi import App
from mqttapi.publisher import Publish, _check_again
from mqttapi.runtime.dispatcher import Dispatcher
from mqttapi.runtime.links import subscription_id, subscriptions
from mqttapi.transport.encoding import _known, _prefixed
from tests.runtime.routes import add, runners_of


def test_the_targets_of_long_topics_are_found_but_not_remembered() -> None:
    app = App()
    add(app, "a/<x>")
    dispatcher = Dispatcher(subscriptions(runners_of(app), "g"))
    ids = (subscription_id("a/+"),)
    for topic in ("a/short", "a/" + "x" * 1000):
        assert len(dispatcher.targets(topic, ids)) == 1
    assert [*dispatcher._cache.hot] == ["a/short"]
    assert dispatcher.strays == 0


def test_long_texts_of_publishes_are_not_remembered() -> None:
    topic = "r/" + "x" * 60_000
    before = _check_again.cache_info().currsize, _known.cache_info().currsize
    Publish(topic, response_topic=topic)
    assert _prefixed(topic) == len(topic).to_bytes(2, "big") + topic.encode()
    assert (_check_again.cache_info().currsize, _known.cache_info().currsize) == before
