"""Each message reaches each route that matches once, whatever the broker does with overlapping filters.

The oracle is a broker: it sends a link a copy per subscription that matches, with its identifier; or one copy with all
identifiers; or, where there are none, one copy per link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttapi import App, ConfigurationError, Router
from mqttapi.runtime.dispatcher import IGNORED, Dispatcher
from mqttapi.runtime.fence import fence_topic
from mqttapi.runtime.links import LinkPlan, Subscribed, plan, subscription_id, subscriptions
from mqttapi.runtime.runs import Target
from mqttapi.topics import matches, register_converter
from tests.runtime.routes import add, runners_of

TEMPLATES = ("a/<n:int>", "a/<x>", "a/b", "a/#", "#", "<x>/b", "a/dev-<x>", "a/<x?>", "<x:int>/<y>", "+/b/#")
TOPICS = ("a", "a/b", "a/7", "a/dev-1", "7/b", "a/b/c", "x", "7/x", "$SYS/b")
APPS = st.lists(
    st.tuples(st.sampled_from(TEMPLATES), st.sampled_from([False, False, "g", "h"]), st.booleans()),
    min_size=1,
    max_size=6,
)

NARROW_APPS = st.lists(  # of routes that refuse most of what their filters bring
    st.tuples(
        st.sampled_from(["a/<n:int>", "a/dev-<x>", "<x:int>/b", "<x:int>/<y:int>"]),
        st.sampled_from([False, "g"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def app_of(routes: Sequence[tuple[str, Any, bool]]) -> App:
    """An isolated route of a group would have to agree with others on its filter: that is refused, and tested there."""
    app = App()
    for number, (template, shared, isolate) in enumerate(routes):
        add(app, template, name=str(number), shared=shared, isolate=isolate and not shared)
    return app


def names(targets: Sequence[Target]) -> list[str]:
    return [target.runner.route.name for target in targets]


def _routes(ran: Counter[str]) -> dict[str, int]:
    return {name: runs for name, runs in ran.items() if name not in {"ignored", "unmatched"}}


class Links:
    """An app's links, at a broker that has the one habit or the other."""

    def __init__(self, app: App, *, by_id: bool, mode: Any = "all") -> None:
        self.runners = runners_of(app)
        self.wanted = subscriptions(self.runners, "mqttapi")
        self.by_id = by_id
        self.links = plan(self.wanted, by_id=by_id)
        self.dispatchers = [
            Dispatcher(
                self.wanted,
                (*link.subscribed, *link.covered),
                by_id=by_id,
                mode=mode,
                fallbacks=[runner for runner in self.runners if runner.route.fallback],
            )
            for link in self.links
        ]

    def publish(self, topic: str, *, merged: bool = False, retain: bool = False) -> Counter[str]:
        """How often each route runs; what is for nobody is counted as `ignored` or `unmatched`."""
        ran: Counter[str] = Counter()
        for link, dispatcher in zip(self.links, self.dispatchers, strict=True):
            find = dispatcher.retained_targets if retain else dispatcher.targets
            for ids in self._copies(link, topic, merged=merged):
                targets = find(topic, ids)
                ran.update(names(targets) or ["ignored" if targets is IGNORED else "unmatched"])
        return ran

    def _copies(self, link: LinkPlan, topic: str, *, merged: bool) -> list[tuple[int, ...]]:
        ids = tuple(subscription_id(each.filter) for each in link.subscribed if matches(each.filter, topic))
        if not ids:
            return []
        if not self.by_id:
            return [()]
        return [ids] if merged else [(number,) for number in ids]


@given(APPS, st.sampled_from(TOPICS), st.booleans(), st.booleans())
def test_each_route_that_matches_runs_once(
    routes: list[tuple[str, Any, bool]], topic: str, by_id: bool, merged: bool
) -> None:
    links = Links(app_of(routes), by_id=by_id)
    expected = Counter(runner.route.name for runner in links.runners if runner.route.template.match(topic) is not None)
    for _ in range(2):  # the second time from the cache
        ran = links.publish(topic, merged=merged)
        assert not (expected and ran["unmatched"])
        assert _routes(ran) == expected
    assert all(dispatcher.strays == 0 for dispatcher in links.dispatchers)


@given(APPS, st.sampled_from(TOPICS), st.booleans())
def test_the_first_alone_runs_where_that_is_the_rule(
    routes: list[tuple[str, Any, bool]], topic: str, by_id: bool
) -> None:
    links = Links(app_of(routes), by_id=by_id, mode="first")
    winner = next((r for r in links.runners if r.route.template.match(topic) is not None), None)
    assert _routes(links.publish(topic)) == ({} if winner is None else {winner.route.name: 1})


@example([("a/<n:int>", False, False), ("a/<n:int>", False, True)], "a/b", False, False)
@given(NARROW_APPS, st.sampled_from(TOPICS), st.booleans(), st.booleans())
def test_what_arrives_and_matches_nothing_reaches_the_fallback_once(
    routes: list[tuple[str, Any, bool]], topic: str, by_id: bool, listening: bool
) -> None:
    app = app_of(routes)

    @app.fallback(filter="#" if listening else None, name="fallback", shared=False)
    async def fallback() -> None: ...

    links = Links(app, by_id=by_id)
    arrives = any(matches(each.filter, topic) for each in links.wanted)
    matched = [r for r in links.runners if not r.route.fallback and r.route.template.match(topic) is not None]
    assert links.publish(topic)["fallback"] == (1 if arrives and not matched else 0)


# What no subscription of this version explains


def dispatcher_of(app: App, **options: Any) -> tuple[Dispatcher, list[tuple[str, int]]]:
    runners = runners_of(app)
    fallbacks = [runner for runner in runners if runner.route.fallback]
    dispatcher = Dispatcher(subscriptions(runners, "g"), fallbacks=fallbacks, **options)
    left: list[tuple[str, int]] = []
    dispatcher.on_left_behind = lambda topic, number, _: left.append((topic, number))
    return dispatcher, left


def test_a_fence_is_for_nobody_and_is_not_counted() -> None:
    """Whoever sent it, and whatever it was sent for: the app may have subscribed to everything."""
    app = App()
    add(app, "#", name="everything")
    subscribed = subscriptions(runners_of(app), "g")
    dispatcher, left = Dispatcher(subscribed), []
    dispatcher.on_left_behind = lambda *found: left.append(found)
    topic = fence_topic("plant-host-3")
    for ids in ((), (subscription_id("#"),), (7,)):
        assert dispatcher.targets(topic, ids) is IGNORED
        assert dispatcher.retained_targets(topic, ids) is IGNORED
    assert (dispatcher.strays, left) == (0, [])
    assert names(dispatcher.targets("mqttapi/fence", ())) == ["everything"]


def test_an_unknown_identifier_goes_by_the_topic_and_is_counted_each_time() -> None:
    app = App()
    add(app, "a/#")
    add(app, "a/<x>")
    dispatcher, left = dispatcher_of(app)
    unknown = subscription_id("+/b")
    assert names(dispatcher.targets("a/b", (unknown,))) == ["a/<x>", "a/#"]
    dispatcher.targets("a/b", (unknown,))
    assert dispatcher.strays == 2
    assert left == [("a/b", unknown)] * 2
    assert names(dispatcher.targets("a/b", (unknown, subscription_id("a/#")))) == ["a/#"]
    assert dispatcher.strays == 2


def test_a_known_identifier_whose_filter_does_not_match_is_a_stray_too() -> None:
    app = App()
    add(app, "a/#")
    add(app, "b/<x>")
    dispatcher, left = dispatcher_of(app)
    assert names(dispatcher.targets("a/b", (subscription_id("b/+"),))) == ["a/#"]
    assert (dispatcher.strays, left) == (1, [])


def test_without_an_identifier_everything_that_matches_runs() -> None:
    app = App()
    add(app, "a/#")
    add(app, "a/<x>")
    dispatcher, _ = dispatcher_of(app)
    assert names(dispatcher.targets("a/b")) == ["a/<x>", "a/#"]
    assert dispatcher.targets("b") == ()
    assert dispatcher.strays == 1


def test_what_waits_for_a_subscription_that_has_moved_to_another_link_is_not_lost() -> None:
    app = App()
    add(app, "a/#")
    add(app, "a/<x>", isolate=True)
    runners = runners_of(app)
    wanted = subscriptions(runners, "g")
    first = Dispatcher(wanted, wanted[:1])
    left: list[str | None] = []
    first.on_left_behind = lambda _topic, _number, text: left.append(text)
    assert names(first.targets("a/b", (subscription_id("a/#"),))) == ["a/#"]
    assert names(first.targets("a/b", (subscription_id("a/+"),))) == ["a/<x>"]
    assert left == ["a/+"]
    assert first.strays == 0
    mute = Dispatcher(wanted, wanted[:1], by_id=False)
    assert set(names(mute.targets("a/b", (subscription_id("a/+"),)))) == {"a/#", "a/<x>"}


def test_two_filters_with_one_identifier_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttapi.runtime.dispatcher.subscription_id", lambda _: 7)
    with pytest.raises(ConfigurationError) as caught:
        Dispatcher([Subscribed("a", 1), Subscribed("b", 1)])
    assert str(caught.value) == (
        "the filters 'b' and 'a' have the same subscription identifier (7): rename the group of one of them"
    )


# Retained messages


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize(("policy", "live", "retained"), [("all", 1, 1), ("new", 1, 1), ("skip", 1, 0), ("only", 0, 1)])
def test_the_flag_decides_who_wants_a_message(by_id: bool, policy: str, live: int, retained: int) -> None:
    app = App()
    add(app, "a/#", retained=policy, name="policy")
    add(app, "a/<x>", retained="all")
    links = Links(app, by_id=by_id)
    for ran, wanted in ((links.publish("a/b"), live), (links.publish("a/b", retain=True), retained)):
        assert (ran["policy"], ran["a/<x>"], ran["unmatched"]) == (wanted, 1, 0)
    assert links.publish("a", retain=policy == "skip")["unmatched"] == 0


def test_where_the_first_skips_retained_messages_the_next_has_them() -> None:
    app = App()
    add(app, "a/<x>", retained="skip")
    add(app, "a/#")
    dispatcher, _ = dispatcher_of(app, mode="first")
    both = (subscription_id("a/+"), subscription_id("a/#"))
    assert names(dispatcher.targets("a/b", both)) == ["a/<x>"]
    assert names(dispatcher.retained_targets("a/b", both)) == ["a/#"]
    assert dispatcher.targets("a/b", both[1:]) is IGNORED


# Fallbacks


def test_of_several_fallbacks_the_one_with_the_nearest_prefix_runs() -> None:
    app = App()
    add(app, "plant/<n:int>")
    router = Router(prefix="plant")

    @app.fallback(name="far")
    async def far() -> None: ...

    @router.fallback(name="near")
    async def near() -> None: ...

    app.include_router(router)
    dispatcher, _ = dispatcher_of(app)
    number = (subscription_id("plant/+"),)
    assert names(dispatcher.targets("plant/7", number)) == ["plant/<n:int>"]
    assert names(dispatcher.targets("plant/x", number)) == ["near"]
    assert names(dispatcher.targets("elsewhere")) == ["far"]
    assert names(dispatcher.targets("$SYS/x")) == ["far"]


def test_a_converter_that_fails_costs_its_route_that_topic_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """`Decimal` raises what is no ValueError. Who raises at the dispatcher ends the connection, for ever."""
    register_converter("amount", ".+", Decimal, Decimal)
    app = App()
    add(app, "a/<n:amount>")
    add(app, "a/+")
    dispatcher = Dispatcher(subscriptions(runners_of(app), "group"))
    assert [names(dispatcher.targets(topic)) for topic in ("a/1.5", "a/x", "a/y")] == [
        ["a/<n:amount>", "a/+"],
        ["a/+"],
        ["a/+"],
    ]
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("a/<n:amount> does not match a/x, as a converter in 'a/<n:amount>' failed.")
    assert caplog.records[0].exc_info is not None
