from __future__ import annotations

from typing import SupportsIndex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.errors import InvalidTopicFilter
from mqttapi.topics import TopicCache, TopicTree, overlaps
from tests.topics.oracle import filters, textbook_match, topics


def tree_of(*texts: str) -> TopicTree[int]:
    tree: TopicTree[int] = TopicTree()
    for value, text in enumerate(texts):
        tree.add(text, value)
    return tree


@given(st.lists(filters, max_size=12), topics)
def test_finds_every_matching_filter_once_and_no_other(texts: list[str], topic: str) -> None:
    expected = [value for value, text in enumerate(texts) if textbook_match(text, topic)]
    assert sorted(tree_of(*texts).match(topic)) == expected


@given(st.lists(filters, max_size=12), filters)
def test_finds_every_overlapping_filter_once_and_no_other(texts: list[str], filter: str) -> None:
    expected = [value for value, text in enumerate(texts) if overlaps(text, filter)]
    assert sorted(tree_of(*texts).overlapping(filter)) == expected


@given(st.lists(st.tuples(filters, st.booleans()), max_size=12), topics)
def test_what_was_removed_is_not_found(texts: list[tuple[str, bool]], topic: str) -> None:
    tree = tree_of(*(text for text, _ in texts))
    for value, (text, removed) in enumerate(texts):
        if removed:
            tree.remove(text, value)
    expected = [value for value, (text, removed) in enumerate(texts) if not removed and textbook_match(text, topic)]
    assert sorted(tree.match(topic)) == expected


@given(st.lists(filters, max_size=12))
def test_an_emptied_tree_holds_no_nodes(texts: list[str]) -> None:
    """A tree that changes for months must not grow."""
    tree = tree_of(*texts)
    for value, text in enumerate(texts):
        tree.remove(text, value)
    assert tree._root.is_empty()


@pytest.mark.parametrize("text", ["a", "a/#", "a/+", "a/b/c", "#"])
def test_removing_what_was_not_added_is_an_error(text: str) -> None:
    tree: TopicTree[int] = TopicTree()
    tree.add("a/b", 1)
    with pytest.raises(KeyError):
        tree.remove(text, 1)
    with pytest.raises(KeyError):
        tree.remove("a/b", 2)
    assert tree.match("a/b") == [1]


def test_a_group_is_left_out() -> None:
    tree = tree_of("$share/g/a/+")
    assert tree.match("a/b") == [0]
    tree.remove("$share/g/a/+", 0)
    assert tree.match("a/b") == []


def test_a_filter_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidTopicFilter):
        tree_of("a/#/b")


def test_wildcards_in_an_arriving_topic_are_plain_text() -> None:
    tree = tree_of("a/b", "a/+")
    assert tree.match("a/+") == [1]
    assert tree.match("a/#") == [1]
    assert tree.match("#") == []


def test_a_topic_of_32768_levels_needs_no_recursion() -> None:
    tree = tree_of("#", "+/#", "/" * 65_534)
    assert sorted(tree.match("/" * 65_534)) == [0, 1, 2]


class Counting(str):
    """A level that counts how often it is looked up."""

    __slots__ = ()
    lookups = 0

    def __hash__(self) -> int:
        Counting.lookups += 1
        return super().__hash__()


class CountingTopic(str):
    __slots__ = ()

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return [Counting(level) for level in super().split(sep, maxsplit)]


@pytest.mark.parametrize("others", [10, 5_000])
def test_the_work_does_not_depend_on_the_number_of_filters(others: int) -> None:
    """Counted in look-ups of a level, not in seconds."""
    tree = tree_of("s/+/data", "s/1/data", *(f"s/{n}/other/{n}" for n in range(2, others)), *map(str, range(others)))
    Counting.lookups = 0
    assert sorted(tree.match(CountingTopic("s/1/data"))) == [0, 1]
    assert Counting.lookups == 4  # 's' once, '1' once, 'data' below '1' and below '+'


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_the_cache_gives_what_was_put() -> None:
    cache: TopicCache[int] = TopicCache(4)
    cache.put("a", 1)
    assert cache.get("a") == 1
    assert cache.get("b") is None
    cache.clear()
    assert cache.get("a") is None


def test_hot_stays_the_same_object() -> None:
    """Callers bind `cache.hot.get` once."""
    cache: TopicCache[int] = TopicCache(4)
    get = cache.hot.get
    for number in range(100):
        cache.put(str(number), number)
    assert get("99") == 99


@given(st.integers(2, 8), st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.booleans()), max_size=100))
def test_the_cache_is_bounded_and_never_wrong(size: int, steps: list[tuple[str, bool]]) -> None:
    cache: TopicCache[str] = TopicCache(size)
    for topic, asks in steps:
        if asks:
            assert cache.get(topic) in (None, topic.upper())
        else:
            cache.put(topic, topic.upper())
            assert cache.hot[topic] == topic.upper()
        assert len(cache) <= size


def test_what_is_asked_for_survives_a_flood_of_new_topics() -> None:
    cache: TopicCache[int] = TopicCache(100)
    cache.put("known", 1)
    for number in range(1_000):
        cache.put(str(number), number)
        if number % 20 == 0:
            assert cache.get("known") == 1


def test_long_topics_are_not_kept() -> None:
    cache: TopicCache[int] = TopicCache(4)
    cache.put("x" * 1_025, 1)
    cache.put("x" * 1_024, 2)
    assert len(cache) == 1


def test_a_size_below_two_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be 2 or more topics, got 1"):
        TopicCache(1)
