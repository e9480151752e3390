"""What is subscribed to on which link: each filter somewhere, no two on one link overlap, and places are stable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi import App, ConfigurationError, RouteOptions
from mqttapi.routing import Retained
from mqttapi.runtime.links import (
    LinkPlan,
    Subscribed,
    filter_with_id,
    overlapping_routes,
    plan,
    subscription_id,
    subscriptions,
)
from mqttapi.topics import covers, matches, overlaps, share
from tests.runtime.routes import add, runners_of
from tests.topics.oracle import filters, topics

GROUPS = st.sampled_from([None, None, "g", "h"])
RETAINED: st.SearchStrategy[Retained] = st.sampled_from(["all", "all", "all", "new"])


@st.composite
def subscribed(draw: st.DrawFn) -> list[Subscribed]:
    wanted = draw(st.dictionaries(st.tuples(GROUPS, filters), st.tuples(st.integers(0, 2), RETAINED), max_size=12))
    return [
        Subscribed(share(group, filter), qos, retained=retained) for (group, filter), (qos, retained) in wanted.items()
    ]


def served(link: LinkPlan) -> tuple[Subscribed, ...]:
    return (*link.subscribed, *link.covered)


@given(subscribed())
def test_no_two_filters_on_a_link_overlap_and_each_one_is_served_by_one_link(wanted: list[Subscribed]) -> None:
    links = plan(wanted, by_id=False)
    for link in links:
        for number, one in enumerate(link.subscribed):
            assert not any(overlaps(one.filter, other.filter) for other in link.subscribed[:number])
        for under in link.covered:
            (cover,) = (each for each in link.subscribed if overlaps(each.filter, under.filter))
            assert covers(cover.filter, under.filter)
            assert (under.shared, cover.shared, cover.retained) == (False, False, under.retained)
            assert cover.qos >= under.qos
    everything = [each.filter for link in links for each in served(link)]
    assert sorted(everything) == sorted(each.filter for each in wanted)
    assert len({link.suffix for link in links}) == len(links)
    assert links[0].suffix == ""


@given(subscribed(), st.randoms())
def test_the_order_of_registration_changes_nothing(wanted: list[Subscribed], random: Any) -> None:
    mixed = list(wanted)
    random.shuffle(mixed)

    def places(links: Sequence[LinkPlan]) -> set[tuple[str, str]]:
        return {(link.suffix, each.filter) for link in links for each in link.subscribed}

    assert places(plan(wanted, by_id=False)) == places(plan(mixed, by_id=False))


@given(subscribed())
def test_a_filter_that_overlaps_none_changes_no_others_place(wanted: list[Subscribed]) -> None:
    more = plan([*wanted, Subscribed("somewhere/else", 1)], by_id=False)
    without = [
        link._replace(subscribed=tuple(each for each in link.subscribed if each.filter != "somewhere/else"))
        for link in more
    ]
    clear = not any(overlaps(each.filter, "somewhere/else") for each in wanted)
    assert not clear or without == plan(wanted, by_id=False)


@given(subscribed())
def test_one_link_is_enough_where_the_broker_names_the_subscription(wanted: list[Subscribed]) -> None:
    assert plan(wanted, by_id=True) == [LinkPlan("", tuple(wanted))]


def placed(links: Sequence[LinkPlan]) -> dict[str, list[str]]:
    return {link.suffix: [each.filter for each in link.subscribed] for link in links}


def of(*texts: str) -> list[Subscribed]:
    return [Subscribed(text, 1) for text in texts]


def test_partial_overlaps_of_a_group_get_links_of_their_own() -> None:
    wanted = of("$share/m/z/+/t", "$share/m/z/1/+", "other")
    assert placed(plan(wanted, by_id=False)) == {"": ["other", "$share/m/z/+/t"], "-l1": ["$share/m/z/1/+"]}


def test_a_group_is_covered_by_nothing_and_covers_nothing() -> None:
    wanted = of("s/#", "s/+", "$share/g/s/+", "$share/g/#")
    links = plan(wanted, by_id=False)
    assert placed(links) == {"": ["s/#"], "-l1": ["$share/g/#"], "-l2": ["$share/g/s/+"]}
    assert [each.filter for each in links[0].covered] == ["s/+"]


def test_the_widest_of_several_covers_serves() -> None:
    (link,) = plan(of("a/b/c", "a/+/c", "a/#", "#", "+/#"), by_id=False)
    assert [each.filter for each in link.subscribed] == ["#"]


# Isolation


def isolated(*routes: tuple[str, dict[str, Any]]) -> list[Subscribed]:
    app = App()
    for number, (template, options) in enumerate(routes):
        add(app, template, name=str(number), **options)
    return subscriptions(runners_of(app), "g")


def test_an_isolated_route_has_a_link_whose_name_stays() -> None:
    wanted = isolated(("a", {}), ("b/<x?>", {"isolate": True}))
    first, alone = plan(wanted, by_id=True)
    assert placed([first]) == {"": ["a"]}
    assert [each.filter for each in alone.subscribed] == ["b", "b/+"]
    assert re.fullmatch("-i[0-9a-f]{6}", alone.suffix)
    more = isolated(("c", {"isolate": True}), ("b/<x?>", {"isolate": True}), ("d", {}))
    assert alone.suffix in {link.suffix for link in plan(more, by_id=False)}


def test_two_isolated_routes_on_one_filter_have_a_link_each() -> None:
    wanted = isolated(("a", {}), ("a", {"isolate": True}), ("a", {"isolate": True}))
    links = plan(wanted, by_id=False)
    assert [[each.filter for each in link.subscribed] for link in links] == [["a"], ["a"], ["a"]]
    assert len({link.suffix for link in links}) == 3


def test_one_subscription_of_a_group_cannot_be_isolated_for_one_route_only() -> None:
    with pytest.raises(ConfigurationError) as caught:
        isolated(("a", {"shared": True}), ("a", {"shared": True, "isolate": True}))
    assert str(caught.value) == (
        "'0' and '1' share the subscription '$share/g/a', but isolate is False for the one and True for the other: "
        "a subscription has one of each. Give both the same"
    )


# One subscription, several routes


def test_routes_on_one_filter_share_a_subscription_with_the_highest_qos() -> None:
    wanted = isolated(("a/<x>", {"qos": 0}), ("a/<y>", {"qos": 2}), ("a/<z>", {"shared": True, "qos": 1}))
    assert [(each.filter, each.qos, each.routes) for each in wanted] == [("a/+", 2, "0, 1"), ("$share/g/a/+", 1, "2")]


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ({"retained": "new"}, {}, "retained is 'new' for the one and 'all' for the other"),
        ({}, {"options": RouteOptions(no_local=True)}, "no_local is False for the one and True for the other"),
        (
            {"options": RouteOptions(retain_as_published=True)},
            {},
            "retain_as_published is True for the one and False for the other",
        ),
    ],
)
def test_what_routes_on_one_filter_disagree_on_is_an_error_that_names_both(
    one: dict[str, Any], other: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        isolated(("a/<x>", one), ("a/+", other))
    assert str(caught.value) == (
        f"'0' and '1' share the subscription 'a/+', but {text}: a subscription has one of each. Give both the same"
    )


def test_each_pair_of_overlapping_routes_is_found_once() -> None:
    wanted = isolated(("a/<x?>", {}), ("a/+", {"shared": True}), ("b", {}), ("#", {}))
    assert [(one.name, other.name) for one, other in overlapping_routes(wanted)] == [
        ("0", "1"),
        ("0", "3"),
        ("1", "3"),
        ("2", "3"),
    ]


# Identifiers


@given(filters, topics, st.sampled_from([None, "g", "h"]))
def test_a_filter_is_found_by_its_identifier_and_a_topic(filter: str, topic: str, group: str | None) -> None:
    full = share(group, filter)
    number = subscription_id(full)
    assert 1 <= number <= 268_435_455
    found = filter_with_id(number, topic, ["g", "h"])
    assert found == (full if matches(filter, topic) else None)


def test_a_topic_of_very_many_levels_is_given_up() -> None:
    topic = "/".join("x" * 13)
    assert filter_with_id(subscription_id(topic), topic, []) is None
    assert filter_with_id(subscription_id("x/#"), "/".join("x" * 12), ["g"]) == "x/#"
