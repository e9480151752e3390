"""What a payload becomes, and the texts that say why it becomes nothing."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from mqttapi.errors import ConfigurationError
from mqttapi.payloads import encode_payload


class Reading(BaseModel):
    temperature: float | None
    unit: str = "C"


class Station(BaseModel):
    readings: list[Reading]


@dataclasses.dataclass
class Point:
    x: float


class Colour(Enum):
    RED = "red"


class Foo: ...


@pytest.mark.parametrize(
    ("payload", "encoded"),
    [
        (None, b""),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ("é", "é".encode()),
        ('"quoted"', b'"quoted"'),
        ("", b""),
        (True, b"true"),
        (7, b"7"),
        (2.5, b"2.5"),
        ([1, "a", None], b'[1,"a",null]'),
        ({"a": {"b": 1}}, b'{"a":{"b":1}}'),
        (Reading(temperature=1.5), b'{"temperature":1.5,"unit":"C"}'),
        (Reading(temperature=None), b'{"temperature":null,"unit":"C"}'),
        ([Reading(temperature=1)], b'[{"temperature":1.0,"unit":"C"}]'),
        (Point(1.0), b'{"x":1.0}'),
        (Colour.RED, b'"red"'),
        (Decimal("1.50"), b'"1.50"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (datetime(2024, 1, 2, tzinfo=UTC), b'"2024-01-02T00:00:00Z"'),
        ({"text": "NaN and Infinity and null"}, b'{"text":"NaN and Infinity and null"}'),
    ],
)
def test_encoding(payload: object, encoded: bytes) -> None:
    assert encode_payload(payload) == encoded


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(json_values) | st.dictionaries(st.text("abc"), json_values))
def test_plain_data_comes_back_as_it_was(value: object) -> None:
    assert from_json(encode_payload(value)) == value


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (math.nan, "payload is nan, which JSON cannot say: use None, or a str"),
        ({"a": [1.0, math.inf]}, "payload['a'][1] is inf, which JSON cannot say: use None, or a str"),
        (Reading(temperature=math.nan), "payload.temperature is nan, which JSON cannot say: use None, or a str"),
        (
            Station(readings=[Reading(temperature=None), Reading(temperature=-math.inf)]),
            "payload.readings[1].temperature is -inf, which JSON cannot say: use None, or a str",
        ),
        (Point(math.nan), "payload.x is nan, which JSON cannot say: use None, or a str"),
        ((x for x in [math.nan]), "the payload holds a NaN or an infinity, which JSON cannot say"),
        (
            Foo(),
            (
                "cannot serialise payload (Foo) to JSON: Unable to serialize unknown type: <class 'test_payloads.Foo'>. "
                "Publish a pydantic model, a dataclass, plain data or bytes"
            ),
        ),
        (
            {"a": [1, {"b": Foo()}]},
            (
                "cannot serialise payload['a'][1]['b'] (Foo) to JSON: Unable to serialize unknown type: "
                "<class 'test_payloads.Foo'>. Publish a pydantic model, a dataclass, plain data or bytes"
            ),
        ),
        (
            {"raw": b"\xff"},
            (
                "cannot serialise payload['raw'] (bytes) to JSON: invalid utf-8 sequence of 1 bytes from index 0. "
                "Publish a pydantic model, a dataclass, plain data or bytes"
            ),
        ),
        (
            "a\ud800",
            "the payload is a str that has no UTF-8 form: surrogate U+D800 at 1. Publish bytes instead",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(payload: object, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        encode_payload(payload)
    assert str(caught.value).replace(__name__, "test_payloads") == text


def test_a_circle_is_refused() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ConfigurationError, match="Circular reference"):
        encode_payload(circle)


def test_a_model_that_says_how_it_writes_nan_may_have_one() -> None:
    class Loose(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="null")
        value: float

    assert encode_payload(Loose(value=math.nan)) == b'{"value":null}'
