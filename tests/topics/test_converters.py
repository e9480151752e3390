from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.errors import InvalidTemplate
from mqttapi.topics import TopicTemplate, converters, register_converter


@pytest.fixture
def hexadecimal() -> Iterator[None]:
    register_converter("test_hex", "[0-9a-f]+", lambda text: int(text, 16), int)
    yield
    del converters._registered["test_hex"]


def test_a_registered_converter_is_known_to_every_template(hexadecimal: None) -> None:
    template = TopicTemplate("a/<x:test_hex>")
    assert template.match("a/ff") == (255,)
    assert template.match("a/fg") is None
    assert template.parameters["x"].type is int


def test_it_may_be_registered_again(hexadecimal: None) -> None:
    register_converter("test_hex", "[0-9A-F]+")
    assert TopicTemplate("a/<x:test_hex>").match("a/FF") == ("FF",)


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "int", "path"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidTemplate, match="converter"):
        register_converter(name, ".*")


DIGITLESS = ["[a-z]+", "(?i:[A-Z_-]{2,8})", "a|b", "dev-[a-z]*", r"-?[a-z\.]", "", "x{3}", "[-a-z@]+"]
"""Patterns that no number fits."""
FOR_NUMBERS = [r"\d+", "[0-9]{4}", ".*", r"\w+", "[^a-z]", "[+-z]+", "[ -~]+", "[[:digit:]]", r"[\+-z]", r"\x31", "-?7"]


@pytest.mark.parametrize("pattern", DIGITLESS)
@pytest.mark.parametrize("converter", ["int", "float"])
def test_a_pattern_that_no_number_fits_is_refused_beside_a_converter_for_numbers(pattern: str, converter: str) -> None:
    with pytest.raises(InvalidTemplate, match="never matches"):
        TopicTemplate(f"a/<x:{converter}>", where={"x": pattern})
    with pytest.raises(InvalidTemplate, match="never matches"):
        TopicTemplate(f"a/<x:{converter}>", where={"x": re.compile(pattern)})


@pytest.mark.parametrize("pattern", FOR_NUMBERS)
def test_a_pattern_that_some_number_fits_is_none_of_these(pattern: str) -> None:
    template = TopicTemplate("a/<x:int>", where={"x": pattern})
    assert any(template.match(f"a/{number}") for number in range(-9999, 10000))


@given(st.from_regex(r"[-+a-c0-2()|?*.^\[\]{},\\dws]{1,8}", fullmatch=True))
def test_only_what_never_matches_is_refused(pattern: str) -> None:
    """By trying: what is refused as a pattern without digits matches no number."""
    try:
        free = TopicTemplate("a/<x>", where={"x": pattern})
    except InvalidTemplate:
        return
    try:
        TopicTemplate("a/<x:int>", where={"x": pattern})
    except InvalidTemplate:
        assert not any(free.match(f"a/{number}") for number in range(-222, 223))


@pytest.mark.parametrize(
    ("pattern", "is_refused"), [("yes|no", True), ("true|yes", False), (re.compile("TRUE", re.IGNORECASE), False)]
)
def test_a_pattern_beside_bool(pattern: str, is_refused: bool) -> None:
    text = "'bool' takes true, false, 1, 0, and this pattern matches none of them"
    with pytest.raises(InvalidTemplate, match=text) if is_refused else contextlib.nullcontext():
        TopicTemplate("a/<x:bool>", where={"x": pattern})
