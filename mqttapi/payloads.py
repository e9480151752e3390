"""Objects to payloads: the mirror of how a handler's payload is decoded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from mqttapi.errors import ConfigurationError

__all__ = ["encode_payload"]


def encode_payload(payload: Any) -> bytes:
    """Bytes as they are, `str` as UTF-8 (never JSON), None as nothing, anything else as JSON by pydantic.

    Raises:
        ConfigurationError: a value has no JSON form. NaN and infinities have none (RFC 8259) and are refused, except
            where a model's own `ser_json_inf_nan` says how they are written.
    """
    if payload.__class__ is bytes:
        return payload
    match payload:
        case None:
            return b""
        case str():
            return _encode_text(payload)
        case bytes() | bytearray() | memoryview():
            return bytes(payload)
    try:
        encoded = to_json(payload, inf_nan_mode="constants")
    except (PydanticSerializationError, RecursionError) as error:
        raise ConfigurationError(_explain(payload, error)) from None
    if b"null" in encoded or b"NaN" in encoded or b"Infinity" in encoded:
        _refuse_non_finite(payload, encoded)
    return encoded


def _encode_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"the payload is a str that has no UTF-8 form: surrogate U+{ord(text[error.start]):04X} at {error.start}. "
            "Publish bytes instead"
        ) from None


def _refuse_non_finite(payload: object, encoded: bytes) -> None:
    """JSON by pydantic has a NaN as `NaN`, or inside a model as `null`: neither is what was meant."""
    for path, value in _walk(payload, "payload"):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{path} is {value!r}, which JSON cannot say: use None, or a str")
    try:
        from_json(encoded, allow_inf_nan=False)
    except ValueError:  # in a place that cannot be walked, such as a generator
        raise ConfigurationError("the payload holds a NaN or an infinity, which JSON cannot say") from None


def _explain(payload: object, error: Exception) -> str:
    """Name the innermost value that cannot be serialised."""
    culprit, kind = "payload", payload
    if not isinstance(error, RecursionError) and "Circular" not in str(error):
        for path, value in _walk(payload, "payload"):
            try:
                to_json(value)
            except PydanticSerializationError as inner:
                culprit, kind, error = path, value, inner
    rule = str(error).removeprefix("Error serializing to JSON: ")
    return (
        f"cannot serialise {culprit} ({type(kind).__qualname__}) to JSON: {rule}. "
        "Publish a pydantic model, a dataclass, plain data or bytes"
    )


def _walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Every value that can be named, outermost first."""
    yield path, value
    match value:
        case str() | bytes() | bytearray():
            return
        case BaseModel():
            if "ser_json_inf_nan" in value.model_config:
                return
            children: Iterable[tuple[str, object]] = ((f"{path}.{name}", item) for name, item in value)
        case Mapping():
            children = ((f"{path}[{key!r}]", item) for key, item in value.items())
        case list() | tuple() | set() | frozenset():
            children = ((f"{path}[{index}]", item) for index, item in enumerate(value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            children = ((f"{path}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value))
        case _:
            return
    for name, item in children:
        yield from _walk(item, name)
