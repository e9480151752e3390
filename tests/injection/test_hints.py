# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import types
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional, Union

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from mqttapi.injection import Depends, Payload
from mqttapi.injection.hints import Hint, is_scalar, show
from mqttapi.injection.params import MARKERS
from tests.injection.plans import refusal, run

if TYPE_CHECKING:
    from decimal import Decimal

DeviceId = NewType("DeviceId", str)
Percent = Annotated[int, Field(ge=0, le=100)]
Marked = TypeAliasType("Marked", Annotated[int, Depends(int)])
Alias = TypeAliasType("Alias", Percent)  # `type Alias = Percent`


class Model(BaseModel):
    x: int


class Kind(Enum):
    A = "a"


@pytest.mark.parametrize(
    ("hint", "members", "nullable", "constrained"),
    [
        (int, (int,), False, False),
        (int | None, (int,), True, False),
        (Optional[int], (int,), True, False),  # noqa: UP045
        (Union[int, str], (int, str), False, False),  # noqa: UP007
        (DeviceId, (str,), False, False),
        (Percent, (int,), False, True),
        (Percent | None, (int,), True, True),
        (Alias, (int,), False, True),
        (Alias | None, (int,), True, True),
        (Any, (), True, False),
        (object, (), True, False),
        (None, (), True, False),
        (list[int], (list[int],), False, False),
    ],
)
def test_a_hint_is_taken_apart(hint, members, nullable, constrained) -> None:
    taken = Hint.of(hint)
    assert (taken.members, taken.nullable, taken.constrained) == (members, nullable, constrained)


def test_markers_are_not_for_pydantic() -> None:
    assert Hint.of(Annotated[int, Payload()], without=MARKERS).whole is int


def test_markers_are_found_behind_a_type_alias() -> None:
    assert Hint.of(Marked).metadata == (Depends(int),)


def test_only_any_allows_everything() -> None:
    assert [hint.is_any for hint in map(Hint.of, (Any, object, None, int, int | None))] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("member", [str, int, float, bool, Kind, Literal["a"]])
def test_scalars(member) -> None:
    assert is_scalar(member)


@pytest.mark.parametrize("member", [bytes, Model, dict, list[int], Any, types.NoneType])
def test_what_is_no_scalar(member) -> None:
    assert not is_scalar(member)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Model, "Model"),
        (Model | None, "Model | None"),
        (Percent, "int"),
        (DeviceId, "DeviceId"),
        (Alias, "Alias"),
        (dict[str, Model], "dict[str, Model]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Any, "Any"),
    ],
)
def test_a_hint_is_shown_as_one_would_write_it(hint, text) -> None:
    assert show(hint) == text


# --------------------------------------------------------------------------------------------------- hints that are texts


async def test_a_class_that_is_local_to_the_running_function_is_found() -> None:
    class Local(BaseModel):
        x: int

    async def handler(data: Local, rest: Annotated[Model, Depends(lambda: Model(x=1))]):
        return data.x, rest.x

    assert await run(handler, b'{"x": 5}') == (5, 1)


async def test_a_class_that_a_handler_closes_over_is_found() -> None:
    def make():
        class Local(BaseModel):
            x: int

        async def handler(data: Local):
            return isinstance(data, Local)

        return handler

    assert await run(make(), b'{"x": 5}') is True


async def test_a_local_class_as_dependency_has_its_hints_resolved() -> None:
    class Local(BaseModel):
        x: int

    class Service:
        def __init__(self, data: Local, device_id: str) -> None:
            self.data, self.device_id = data, device_id

    async def handler(service: Annotated[Service, Depends()]):
        return service.data.x, service.device_id

    assert await run(handler, b'{"x": 5}') == (5, "7")


def test_a_hint_that_is_there_for_type_checkers_only_is_refused() -> None:
    async def handler(payload: Decimal): ...

    assert refusal(handler) == (
        "handler(): the hint 'Decimal' of 'payload' cannot be resolved: name 'Decimal' is not defined. "
        "Import or define it in the module of handler(), not under 'if TYPE_CHECKING'."
    )


def test_a_text_within_a_hint_is_resolved() -> None:
    async def handler(data: dict[str, Missing]): ...  # type: ignore[name-defined]  # noqa: F821

    assert "'dict[str, Missing]' of 'data' cannot be resolved: name 'Missing' is not defined" in refusal(handler)
