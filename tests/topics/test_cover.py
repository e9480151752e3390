"""`TopicTemplate.covers`, decided by the topics that two templates match."""

from __future__ import annotations

from itertools import product

from mqttapi.topics import TopicTemplate

_TOPICS = [
    "/".join(levels)
    for count in (1, 2, 3, 4)
    for levels in product(["a", "7", "a-7", "", "$a"], repeat=count)
    if any(levels)
]
_LEVELS = ["a", "7", "<x>", "<x:int>", "a-<x>", "+"]
_LAST = [*_LEVELS, "#", "<z?>", "<z:path>", "<z:path?>", "<z:int?>"]
_TEXTS = [
    *(text for text in _LAST if "?" not in text),
    *(f"{first.replace('x', 'y')}/{last}" for first, last in product(_LEVELS, _LAST)),
    "$a/<x>",
    "$a/#",
]


def matched(template: TopicTemplate) -> set[str]:
    return {topic for topic in _TOPICS if template.match(topic) is not None}


def test_a_cover_matches_whatever_the_covered_one_does() -> None:
    """Exhaustive: each template against each."""
    templates = [(TopicTemplate(text), matched(TopicTemplate(text))) for text in _TEXTS]
    for (a, of_a), (b, of_b) in product(templates, templates):
        if a.covers(b):
            assert of_a >= of_b, (a, b)


def test_without_constraints_every_cover_of_parameters_is_found() -> None:
    plain = [TopicTemplate(text) for text in _TEXTS if ":int" not in text and "-" not in text and "+" not in text]
    templates = [(template, matched(template)) for template in plain if "#" not in template.text]
    for (a, of_a), (b, of_b) in product(templates, templates):
        assert a.covers(b) is (of_a >= of_b), (a, b)


def test_a_constraint_covers_itself_and_the_texts_it_accepts() -> None:
    numbers = TopicTemplate("a/<n:int>")
    assert numbers.covers(TopicTemplate("a/<m:int>"))
    assert numbers.covers(TopicTemplate("a/7"))
    assert not numbers.covers(TopicTemplate("a/b"))
    assert not numbers.covers(TopicTemplate("a/<m>"))


def test_the_same_where_covers_another_only_where_it_is_the_same_thing() -> None:
    kinds = {"kind": "[a-z]+"}
    assert not TopicTemplate("<kind>", where=kinds).covers(TopicTemplate("<kind>", where={"kind": "[a-z]"}))
    assert TopicTemplate("<kind>").covers(TopicTemplate("<kind>", where=kinds))
