# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Path parameters, user properties, rows."""

from __future__ import annotations

import linecache
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType
from uuid import UUID

import pytest
from pydantic import Field
from sqlmodel import Field as Column
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from mqttapi.errors import InvalidParameter
from mqttapi.injection import Depends, UserProperty, analyse, compile_plan
from mqttapi.topics import Converter, TopicTemplate
from tests.injection.plans import endpoint_of, journey, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DeviceId = NewType("DeviceId", str)
IDENTITY = UUID("12345678-1234-5678-1234-567812345678")


class Kind(Enum):
    A = "a"
    ONE = 1


class Pump(SQLModel, table=True):
    id: int = Column(primary_key=True)
    name: str = ""


def code_of(handler: Any, **given: Any) -> str:
    """The plan's code, as tracebacks show it."""
    endpoint: Any = endpoint_of(handler, **given)
    return "".join(linecache.getlines(endpoint.__code__.co_filename))


# ------------------------------------------------------------------------------------------------------------------ path


@pytest.mark.parametrize(
    ("hint", "template", "topic", "value"),
    [
        (int, "a/<x>", "a/5", 5),
        (float, "a/<x>", "a/1.5", 1.5),
        (Decimal, "a/<x>", "a/1.50", Decimal("1.50")),
        (UUID, "a/<x>", f"a/{IDENTITY}", IDENTITY),
        (bool, "a/<x>", "a/on", True),
        (Kind, "a/<x>", "a/a", Kind.A),
        (Kind, "a/<x>", "a/1", Kind.ONE),
        (Literal["a", 1], "a/<x>", "a/1", 1),
        (Annotated[int, Field(ge=0)], "a/<x>", "a/5", 5),
        (Annotated[int, Field(ge=0)], "a/<x:int>", "a/5", 5),
        (DeviceId, "a/<x>", "a/5", "5"),
        (float, "a/<x:int>", "a/5", 5.0),
        (Literal[1, 2], "a/<x:int>", "a/1", 1),
        (Kind, "a/<x:int>", "a/1", Kind.ONE),
        (UUID, "a/<x:uuid>", f"a/{IDENTITY}", IDENTITY),
        (str, "a/<x:path>", "a/b/c", "b/c"),
        (int, "a/dev-<x>", "a/dev-5", 5),
    ],
)
async def test_a_level_is_validated_as_its_hint_says(hint, template, topic, value) -> None:
    async def handler(x):
        return x

    handler.__annotations__["x"] = hint
    got = await run(handler, template=template, topic=topic)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("hint", "template"),
    [
        (str, "a/<x>"),
        (DeviceId, "a/<x>"),
        (Any, "a/<x:int>"),
        (int, "a/<x:int>"),
        (UUID, "a/<x:uuid>"),
        (str | None, "a/<x?>"),
        (int | None, "a/<x:int?>"),
    ],
)
def test_a_level_that_is_right_already_costs_no_call(hint, template) -> None:
    async def handler(x): ...

    handler.__annotations__["x"] = hint
    assert "(context.values_[0])" in code_of(handler, template=template)
    assert "read" not in code_of(handler, template=template)


async def test_a_class_of_a_converter_of_ones_own_needs_no_validation() -> None:
    class Colour:
        def __init__(self, text: str) -> None:
            self.text = text

    async def handler(colour: Colour):
        return colour.text

    template = TopicTemplate("a/<colour:colour>", converters={"colour": Converter("colour", "[a-z]+", Colour, Colour)})
    endpoint = compile_plan(analyse(handler, template=template))
    context = journey(template="a/<colour>", topic="a/red")
    values = template.match("a/red")
    assert values is not None
    context.values_ = values
    assert await endpoint(context) == "red"


@pytest.mark.parametrize(("hint", "topic"), [(int, "a/x"), (Annotated[int, Field(ge=0)], "a/-1"), (Kind, "a/b")])
async def test_a_level_that_does_not_validate_is_rejected(hint, topic) -> None:
    async def handler(x): ...

    handler.__annotations__["x"] = hint
    with pytest.raises(InvalidParameter):
        await run(handler, template="a/<x>", topic=topic)


async def test_the_reason_names_the_parameter_and_not_the_value() -> None:
    async def handler(x: int): ...

    with pytest.raises(InvalidParameter) as caught:
        await run(handler, template="a/<x>", topic="a/hunter2")
    assert caught.value.reason == (
        "path parameter 'x': Input should be a valid integer, unable to parse string as an integer"
    )
    assert caught.value.errors == (
        {
            "type": "int_parsing",
            "loc": (),
            "msg": "Input should be a valid integer, unable to parse string as an integer",
        },
    )


async def test_a_level_of_a_million_digits_is_rejected() -> None:
    async def handler(x: int): ...

    with pytest.raises(InvalidParameter):
        await run(handler, template="a/<x>", topic="a/" + "1" * 60_000)


async def test_a_level_that_is_missing_is_the_default_or_none() -> None:
    async def plain(x=None):
        return x

    async def page(x: int = 1):
        return x

    async def name(x: str = "none"):
        return x

    async def maybe(x: int | None):
        return x

    handlers = (plain, page, name, maybe)
    assert [await run(h, template="a/<x?>", topic="a") for h in handlers] == [None, 1, "none", None]
    assert [await run(h, template="a/<x?>", topic="a/5") for h in handlers] == ["5", 5, "5", 5]


async def test_a_dependency_gets_path_parameters_too() -> None:
    def twice(device_id: int) -> int:
        return 2 * device_id

    async def handler(device_id: str, double: Annotated[int, Depends(twice)]):
        return device_id, double

    assert await run(handler) == ("7", 14)


# ------------------------------------------------------------------------------------------------------- user properties

PROPERTIES = [("tenant", "acme"), ("n", "5"), ("n", "6")]


@pytest.mark.parametrize(
    ("hint", "name", "value"),
    [
        (str, "tenant", "acme"),
        (Any, "tenant", "acme"),
        (str | None, "tenant", "acme"),
        (int, "n", 5),
        (list[str], "n", ["5", "6"]),
        (list[int], "n", [5, 6]),
        (tuple[int, ...], "n", (5, 6)),
        (list, "n", ["5", "6"]),
        (str | None, "absent", None),
        (list[str] | None, "absent", None),
    ],
)
async def test_a_user_property_is_what_its_hint_says(hint, name, value) -> None:
    async def handler(it):
        return it

    handler.__annotations__["it"] = Annotated[hint, UserProperty(name)]
    assert await run(handler, user_properties=PROPERTIES) == value


async def test_a_user_property_without_hint_is_text() -> None:
    async def handler(it=UserProperty("tenant")):  # noqa: B008
        return it

    assert await run(handler, user_properties=PROPERTIES) == "acme"


async def test_a_user_property_that_is_missing_is_the_default() -> None:
    async def handler(it: Annotated[int, UserProperty("absent")] = 3):
        return it

    assert await run(handler) == 3


async def test_a_user_property_that_is_missing_without_default_is_rejected() -> None:
    async def handler(it: Annotated[int, UserProperty("absent")]): ...

    with pytest.raises(InvalidParameter, match=r"^user property 'absent' is missing$"):
        await run(handler)


async def test_a_user_property_that_does_not_validate_is_rejected() -> None:
    async def handler(it: Annotated[int, UserProperty("tenant")]): ...

    with pytest.raises(InvalidParameter, match=r"^user property 'tenant': Input should be a valid integer"):
        await run(handler, user_properties=PROPERTIES)


# ------------------------------------------------------------------------------------------------------------------ rows


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.tables["pump"].create)
    async with AsyncSession(engine) as opened:
        opened.add(Pump(id=7, name="big"))
        await opened.commit()
        yield opened
    await engine.dispose()


async def test_a_table_as_hint_of_a_path_parameter_gets_the_row(session) -> None:
    async def handler(device: Pump):
        return device.name

    given: dict[str, Any] = {"template": "devices/<device>", "topic": "devices/7", "resources": {AsyncSession: session}}
    assert await run(handler, **given) == "big"


async def test_a_row_that_is_not_there_is_rejected_or_none(session) -> None:
    async def handler(device: Pump): ...

    async def tolerant(device: Pump | None):
        return device

    given: dict[str, Any] = {"template": "devices/<device>", "topic": "devices/8", "resources": {AsyncSession: session}}
    assert await run(tolerant, **given) is None
    with pytest.raises(InvalidParameter, match=r"^path parameter 'device': Pump not found$"):
        await run(handler, **given)


async def test_a_key_that_does_not_validate_is_rejected_before_a_session_is_made() -> None:
    def session() -> Any:
        pytest.fail("made a session")

    async def handler(device: Pump): ...

    with pytest.raises(InvalidParameter, match=r"^path parameter 'device': Input should be a valid integer"):
        await run(handler, template="d/<device>", topic="d/x", resources={AsyncSession: Depends(session)})
