from __future__ import annotations

from collections.abc import Iterator

import pytest

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
