# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""From bytes to values."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError, field_validator

from mqttapi.errors import InvalidPayload
from mqttapi.injection import Depends
from mqttapi.injection.hints import MISSING, Hint
from mqttapi.injection.validation import payload_reader
from tests.injection.plans import endpoint_of, journey, run

SECRET = "hunter2"


class Reading(BaseModel):
    temperature: float
    unit: str = "C"


class Many(BaseModel):
    a: int
    b: int
    c: int
    d: int
    e: int


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Kind(Enum):
    A = "a"
    ONE = 1


class Level(IntEnum):
    LOW = 1


def decode(hint: Any, payload: bytes, default: Any = MISSING) -> Any:
    return payload_reader(Hint.of(hint), default)(journey(payload))


def rejection(hint: Any, payload: bytes) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(hint, payload)
    return caught.value


# ----------------------------------------------------------------------------------------------------------------- kinds


def test_bytes_come_as_they_are() -> None:
    payload = b'\xff"{}'
    assert decode(bytes, payload) is payload


def test_text_is_never_read_as_json() -> None:
    assert decode(str, b' "5" ') == ' "5" '


def test_text_that_is_not_utf8_is_rejected() -> None:
    assert rejection(str, b"abc\xff").reason == "not UTF-8 text, at byte 3"


def test_text_keeps_a_byte_order_mark() -> None:
    assert decode(str, b"\xef\xbb\xbfx") == "\ufeffx"


@pytest.mark.parametrize(
    ("hint", "payload", "value"),
    [
        (int, b"5", 5),
        (int, b" 5\n", 5),
        (int, b'"5"', 5),
        (float, b"1e3", 1000.0),
        (bool, b"true", True),
        (bool, b"off", False),
        (Decimal, b"1.50", Decimal("1.50")),
        (UUID, b'"12345678-1234-5678-1234-567812345678"', UUID("12345678-1234-5678-1234-567812345678")),
        (datetime, b"2024-01-01T00:00:00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        (Kind, b"a", Kind.A),
        (Kind, b"1", Kind.ONE),
        (Level, b"1", Level.LOW),
        (Literal["on", 5], b"5", 5),
        (Literal["on", 5], b'"on"', "on"),
        (Literal[True], b"true", True),
        (int | float, b"1.5", 1.5),
        (int | None, b"5", 5),
        (Annotated[int, Field(ge=0)], b"5", 5),
    ],
)
def test_a_scalar_is_made_of_the_text_without_white_space_and_quotes(hint, payload, value) -> None:
    decoded = decode(hint, payload)
    assert (type(decoded), decoded) == (type(value), value)


@pytest.mark.parametrize(
    ("hint", "payload"),
    [(int, b"x"), (int, b'""5""'), (int, b'"'), (int, b"  "), (Kind, b"b"), (Annotated[int, Field(ge=0)], b"-1")],
)
def test_a_text_that_is_no_such_scalar_is_rejected(hint, payload) -> None:
    rejection(hint, payload)


def test_constrained_text_and_bytes_are_validated() -> None:
    assert decode(Annotated[str, StringConstraints(to_upper=True)], b"abc") == "ABC"
    assert decode(Annotated[bytes, Field(max_length=3)], b"abc") == b"abc"
    rejection(Annotated[bytes, Field(max_length=3)], b"abcd")


def test_everything_else_is_json() -> None:
    assert decode(Reading, b'{"temperature": 1}') == Reading(temperature=1)
    assert decode(Cat | Dog, b'{"kind": "dog"}') == Dog(kind="dog")
    assert decode(list[int], b"[1, 2]") == [1, 2]


async def test_a_payload_in_handler_and_dependency_is_decoded_once() -> None:
    decoded = []

    class Counted(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def count(cls, x: int) -> int:
            decoded.append(x)
            return x

    def again(counted: Counted) -> Counted:
        return counted

    async def handler(counted: Counted, same: Annotated[Any, Depends(again)]) -> bool:
        return counted is same

    assert await run(handler, b'{"x": 1}')
    assert decoded == [1]


async def test_bytes_may_stand_beside_a_model() -> None:
    async def handler(reading: Reading, raw: bytes):
        return reading.temperature, raw

    assert await run(handler, b'{"temperature": 1}') == (1.0, b'{"temperature": 1}')


# ----------------------------------------------------------------------------------------------------------------- empty


@pytest.mark.parametrize("hint", [bytes, str, int, Reading, list[int]])
def test_an_empty_payload_is_rejected_where_nothing_stands_for_it(hint) -> None:
    assert rejection(hint, b"").reason == "payload is empty"


@pytest.mark.parametrize("hint", [bytes | None, str | None, int | None, Reading | None, Any])
def test_an_empty_payload_is_none_where_the_hint_allows_it(hint) -> None:
    assert decode(hint, b"") is None


def test_an_empty_payload_is_the_default() -> None:
    assert [decode(hint, b"", default=7) for hint in (int, int | None, Reading, Any)] == [7, 7, 7, 7]


def test_a_default_may_be_none() -> None:
    assert decode(Reading, b"", default=None) is None


async def test_the_default_of_the_parameter_is_used() -> None:
    async def handler(reading: Reading = Reading(temperature=0)):  # noqa: B008  pydantic models are made for it
        return reading.temperature

    assert [await run(handler, b""), await run(handler, b'{"temperature": 1}')] == [0, 1]


# ------------------------------------------------------------------------------------------------ replaced by middleware


def replace(hint: Any, value: Any, default: Any = MISSING) -> Any:
    context = journey(b"what came")
    context["payload"] = value
    return payload_reader(Hint.of(hint), default)(context)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Reading, {"temperature": 1}, Reading(temperature=1)),
        (Reading, b'{"temperature": 1}', Reading(temperature=1)),
        (Reading, '{"temperature": 1}', Reading(temperature=1)),
        (Reading, bytearray(b'{"temperature": 1}'), Reading(temperature=1)),
        (str, "text", "text"),
        (str, b"text", "text"),
        (bytes, "text", b"text"),
        (int, "5", 5),
        (int, 5, 5),
        (Any, [1], [1]),
    ],
)
def test_a_replaced_payload_is_validated(hint, value, expected) -> None:
    assert replace(hint, value) == expected


def test_a_replaced_payload_that_is_such_an_object_already_is_kept() -> None:
    reading = Reading(temperature=1)
    assert replace(Reading, reading) is reading


@pytest.mark.parametrize(
    ("hint", "value"), [(Reading, {"x": 1}), (Reading, "{"), (str, 5), (bytes, {}), (int, "x"), (str, "\ud800")]
)
def test_a_replaced_payload_that_does_not_validate_is_rejected(hint, value) -> None:
    with pytest.raises(InvalidPayload):
        replace(hint, value)


@pytest.mark.parametrize("value", [None, b"", ""])
def test_a_payload_replaced_by_nothing_is_empty(value) -> None:
    assert replace(int, value, default=7) == 7
    with pytest.raises(InvalidPayload, match="payload is empty"):
        replace(int, value)


def test_a_replaced_payload_nested_too_deeply_is_rejected() -> None:
    value: Any = {}
    for _ in range(100_000):
        value = {"a": value}
    with pytest.raises(InvalidPayload):
        replace(Deep, value)


class Deep(BaseModel):
    a: Deep | None = None


async def test_a_replaced_payload_arrives_without_hint_too() -> None:
    async def handler(payload):
        return payload

    context = journey(b"{}")
    context["payload"] = 5
    assert await endpoint_of(handler)(context) == 5


# --------------------------------------------------------------------------------------------------------------- reasons


def test_the_reason_names_place_and_rule() -> None:
    assert rejection(Reading, b'{"temperature": "hot", "unit": 5}').reason == (
        "temperature: Input should be a valid number, unable to parse string as a number; "
        "unit: Input should be a valid string"
    )


def test_the_reason_lists_the_first_errors_and_counts_the_rest() -> None:
    assert rejection(Many, b"{}").reason == "a: Field required; b: Field required; c: Field required; and 2 more"


def test_json_errors_say_where() -> None:
    assert rejection(Reading, b'{"temperature": }').reason == "Invalid JSON: expected value at line 1 column 17"


def test_a_byte_order_mark_before_json_is_named() -> None:
    assert rejection(Reading, b"\xef\xbb\xbf{}").reason == (
        "payload begins with a byte order mark, which JSON does not allow"
    )


def test_the_reason_is_one_printable_line() -> None:
    payload = json.dumps({"a\nCRITICAL forged \x1b[31m" + "x" * 500: "x"}).encode()
    reason = rejection(dict[str, int], payload).reason
    assert reason.isprintable()
    assert len(reason) < 300


TAGGED = Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("hint", "payload"),
    [
        (Reading, {"temperature": SECRET}),
        (int, SECRET),
        (Kind, SECRET),
        (UUID, SECRET),
        (datetime, SECRET),
        (TAGGED, {"kind": SECRET}),
        (list[Reading], [{"temperature": 1, "unit": [SECRET]}]),
        (Reading, SECRET),
    ],
)
def test_no_value_of_the_sender_is_in_reason_errors_or_traceback(hint, payload, caplog) -> None:
    raw = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
    error = rejection(hint, raw)
    logging.getLogger("test").error("rejected", exc_info=error)
    written = "".join(traceback.format_exception(error))
    assert SECRET not in error.reason + str(error) + repr(error) + repr(error.errors) + caplog.text + written


def test_a_tag_that_is_unknown_is_explained() -> None:
    assert rejection(TAGGED, b'{"kind": "cow"}').reason == "'kind' is none of the expected tags: 'cat', 'dog'"


def test_pydantics_errors_are_kept_without_input() -> None:
    assert rejection(Reading, b"{}").errors == ({"type": "missing", "loc": ("temperature",), "msg": "Field required"},)


def test_a_bug_in_a_validator_is_no_fault_of_the_message() -> None:
    class Buggy(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def check(cls, x: int) -> int:
            raise KeyError(x)

    with pytest.raises(KeyError):
        decode(Buggy, b'{"x": 1}')


# -------------------------------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("hint", [Any, dict, list, Reading, Deep, int, Decimal, str | None, Kind, bool])
@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 1_000_000,
        b'{"temperature":' + b"1" * 1_000_000 + b"}",
        b"\xc0\xaf",
        b"\xff\xfe",
        b"\x00",
        b'"\\ud800"',
        b"1e999999999",
    ],
    ids=["lists", "objects", "closed", "digits", "digits within", "overlong", "utf16", "nul", "surrogate", "exponent"],
)
def test_whatever_comes_is_decoded_or_rejected(hint, payload) -> None:
    assert _outcome(hint, payload)[0] in {"value", "rejected"}


@given(st.binary(max_size=64), st.sampled_from([Any, Reading, list[int], dict[str, float], Reading | None, Cat | Dog]))
def test_json_is_decoded_as_pydantic_does(payload, hint) -> None:
    try:
        expected: Any = ("value", TypeAdapter(hint).validate_json(payload)) if payload else _empty(hint)
    except ValidationError:
        expected = ("rejected", None)
    assert repr(_outcome(hint, payload)) == repr(expected)


SCALAR_TEXTS = st.text(alphabet='0123456789.-+eE" \ntruefalsä', max_size=8)


@given(
    SCALAR_TEXTS | st.integers().map(str) | st.floats().map(str), st.sampled_from([int, float, bool, Decimal, Level])
)
def test_scalars_are_decoded_as_a_naive_reading_of_the_rule_does(text, hint) -> None:
    stripped = text.strip()
    if stripped.startswith('"') and stripped.endswith('"') and len(stripped) >= 2:
        stripped = stripped[1:-1]
    try:
        expected: Any = ("value", TypeAdapter(hint).validate_python(stripped))
    except ValidationError:
        expected = ("rejected", None)
    assert repr(_outcome(hint, text.encode() or b" ")) == repr(expected)


@given(st.binary())
def test_text_is_what_python_makes_of_utf8(payload) -> None:
    try:
        expected: Any = ("value", payload.decode()) if payload else ("rejected", None)
    except UnicodeDecodeError:
        expected = ("rejected", None)
    assert _outcome(str, payload) == expected


def _empty(hint: Any) -> tuple[str, Any]:
    return ("value", None) if hint in (Any, Reading | None) else ("rejected", None)


def _outcome(hint: Any, payload: bytes) -> tuple[str, Any]:
    try:
        return "value", decode(hint, payload)
    except InvalidPayload:
        return "rejected", None
