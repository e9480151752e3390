from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given

from mqttapi.topics import covers, matches, overlaps
from tests.topics.oracle import filters, textbook_match

# For filters of up to 3 levels over {a, $a}, topics of up to 4 levels over {a, $a, x} decide every question: a longer
# topic, or another name, is treated like one of these.
WITNESSES = ["/".join(levels) for count in (1, 2, 3, 4) for levels in product(["a", "$a", "x"], repeat=count)]
SMALL = [
    "/".join(levels)
    for count in (1, 2, 3)
    for levels in product(["a", "$a", "+", "#"], repeat=count)
    if "#" not in levels[:-1]
]


def test_all_small_pairs_against_the_topics_they_match() -> None:
    """Exhaustive, decided by the sets of topics that the filters match."""
    matched = {filter: {topic for topic in WITNESSES if textbook_match(filter, topic)} for filter in SMALL}
    for a, b in product(SMALL, SMALL):
        assert overlaps(a, b) is bool(matched[a] & matched[b]), (a, b)
        assert covers(a, b) is (matched[a] >= matched[b]), (a, b)


@given(filters, filters)
def test_overlap_is_symmetric_and_follows_from_cover(a: str, b: str) -> None:
    assert overlaps(a, b) is overlaps(b, a)
    if covers(a, b):
        assert overlaps(a, b)


@given(filters, filters, filters)
def test_cover_is_an_order(a: str, b: str, c: str) -> None:
    assert covers(a, a)
    if covers(a, b) and covers(b, c):
        assert covers(a, c)


@given(filters, filters)
def test_an_instance_of_the_covered_filter_matches_the_cover(a: str, b: str) -> None:
    for fill in ("x", "", "a"):
        topic = "/".join({"+": fill, "#": fill}.get(level, level) for level in b.split("/"))
        if topic and textbook_match(b, topic):
            assert overlaps(b, b)
            if covers(a, b):
                assert matches(a, topic)
            if matches(a, topic):
                assert overlaps(a, b)


@pytest.mark.parametrize(
    ("cover", "filter", "expected"),
    [
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/+", True),
        ("a/#", "a", True),
        ("a/+", "a/#", False),
        ("a/+/#", "a/#", False),
        ("+/#", "#", True),
        ("#", "+/#", True),
        ("$share/g/a/#", "a/b", True),
        ("a/#", "$share/g/a/+", True),
    ],
)
def test_cover_by_hand(cover: str, filter: str, expected: bool) -> None:
    assert covers(cover, filter) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("s/#", "s/+/t", True),
        ("z/+/t", "z/1/+", True),
        ("+/t", "z/1", False),
        ("a/#", "a", True),
        ("a/+", "a", False),
        ("#", "$SYS/#", False),
        ("+/x", "$SYS/x", False),
        ("$share/g/a", "$share/h/+", True),
    ],
)
def test_overlap_by_hand(a: str, b: str, expected: bool) -> None:
    assert overlaps(a, b) is expected
