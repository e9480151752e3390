"""From payload, topic and user properties to values: pydantic's validators, and errors without the sender's values."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from mqttapi.errors import InvalidParameter, InvalidPayload
from mqttapi.injection.hints import MISSING, Hint
from mqttapi.message import printable

if TYPE_CHECKING:
    from mqttapi.context import Context

__all__ = ["Convert", "parameter_reader", "payload_reader", "validator_of"]

Convert: TypeAlias = Callable[[Any], Any]

_SHOWN: Final = 3
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# Whatever a payload can do to a decoder; what else a model's own validators raise is a bug of theirs.
_UNDECODABLE: Final = (ValueError, RecursionError)


def validator_of(hint: Any) -> Any:
    """pydantic's validator for `hint`.

    Raises:
        PydanticUserError: When pydantic cannot validate it, or when it refers to something that is not defined.
        NameError: Likewise.
    """
    # A class is its own key; `int | str` equals `str | int`, though pydantic tells them apart.
    adapter = _adapter(hint) if isinstance(hint, type) else TypeAdapter(hint)
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    return adapter.validator


@functools.lru_cache(maxsize=1024)
def _adapter(hint: type) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


# ------------------------------------------------------------------------------------------------------------- payload


def payload_reader(hint: Hint, default: object = MISSING) -> Callable[[Context], Any]:
    """What gives a parameter the payload; it raises `InvalidPayload`.

    `bytes` are the payload as it came, `str` is its UTF-8 text, other scalars are made of that text, and everything
    else is JSON. An empty payload is the default, else None where the hint allows it.
    """
    from_wire, from_python, absent = _from_wire(hint), validator_of(hint.whole).validate_python, _absent(hint, default)

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            value = value.encode()
        if value is None or value == b"":
            return absent()
        return from_wire(bytes(value)) if isinstance(value, bytes | bytearray | memoryview) else from_python(value)

    def read(context: Context) -> Any:
        payload = context.message._payload
        try:
            if context._data and context.replaced_payload:
                return replaced(context.replaced_payload[0])
            return from_wire(payload) if payload else absent()
        except _UNDECODABLE as error:
            raise _invalid_payload(error, payload) from None

    return read


def _absent(hint: Hint, default: object) -> Callable[[], Any]:
    if default is MISSING and not hint.nullable:

        def refuse() -> Any:
            raise InvalidPayload("payload is empty")

        return refuse
    value = None if default is MISSING else default
    return lambda: value


def _from_wire(hint: Hint) -> Convert:
    if hint.only is bytes:
        return bytes if hint.plain is bytes else validator_of(hint.whole).validate_python
    if hint.plain is str:
        return _text
    if hint.only is str:
        validate = validator_of(hint.whole).validate_python
        return lambda payload: validate(_text(payload))
    if hint.is_scalar:
        from_text = _from_text(hint)
        return lambda payload: from_text(_unquoted(_text(payload).strip()))
    validate_json: Convert = validator_of(hint.whole).validate_json
    return validate_json


def _text(payload: bytes) -> str:
    return str(payload, "utf-8")


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _from_text(hint: Hint) -> Convert:
    """From a text to a scalar."""
    validator, by_text = validator_of(hint.whole), _choices(hint)
    if not by_text:
        return validator.validate_strings  # type: ignore[no-any-return]  # the validator of a hint is Any
    validate = validator.validate_python
    return lambda text: validate(by_text.get(text, text))


def _choices(hint: Hint) -> Mapping[str, object]:
    """How the members of `Literal` and Enum that are no texts are written: pydantic would not find them by their text."""
    found: list[object] = []
    for member in hint.members:
        if get_origin(member) is Literal:
            found += get_args(member)
        elif issubclass(member, Enum):
            found += [item.value for item in member]
    return {json.dumps(value): value for value in found if isinstance(value, int | float)}


# ---------------------------------------------------------------------------------------- path levels, user properties


def parameter_reader(label: str, hint: Hint, *, from_text: bool) -> Convert:
    """What validates a value from a topic or from user properties; it raises `InvalidParameter`.

    Args:
        label: What the error calls it.
        hint: What the value has to be.
        from_text: Whether the value is a text; else a converter has made something of it already.
    """
    validate: Convert = _from_text(hint) if from_text and hint.is_scalar else validator_of(hint.whole).validate_python

    def read(value: Any) -> Any:
        try:
            return validate(value)
        except _UNDECODABLE as error:
            failure = InvalidParameter(f"{label}: {_reason(error)}")
            failure.errors = _problems(error)
            raise failure from None

    return read


# -------------------------------------------------------------------------------------------------------------- errors


def _invalid_payload(error: Exception, payload: bytes) -> InvalidPayload:
    if isinstance(error, ValidationError) and payload.startswith(_BYTE_ORDER_MARK):
        reason = "payload begins with a byte order mark, which JSON does not allow"
    else:
        reason = _reason(error)
    failure = InvalidPayload(reason)
    failure.errors = _problems(error)
    return failure


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text, at byte {error.start}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problems = _problems(error)
    if not problems:
        return f"cannot be decoded ({type(error).__name__})"
    shown = [_line(problem) for problem in problems[:_SHOWN]]
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "; ".join(shown + more)


def _problems(error: Exception) -> Sequence[Mapping[str, Any]]:
    """pydantic's errors, as `ValidationError.errors()` gives them, without anything that the sender wrote."""
    if not isinstance(error, ValidationError):
        return ()
    return tuple(
        {"type": problem["type"], "loc": problem["loc"], "msg": _message(problem)}
        for problem in error.errors(include_input=False, include_url=False)
    )


def _message(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "union_tag_invalid":  # quotes the tag that came
        return f"{problem['ctx']['discriminator']} is none of the expected tags: {problem['ctx']['expected_tags']}"
    return str(problem["msg"])


def _line(problem: Mapping[str, Any]) -> str:
    # Keys of a dict are part of the location, and come from the sender.
    location = ".".join(str(part) for part in problem["loc"])
    message = _short(problem["msg"], 200)
    return f"{_short(location, 80)}: {message}" if location else message


def _short(text: str, limit: int) -> str:
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
