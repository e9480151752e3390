# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""What is refused at registration, word for word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import fastapi
import pydantic
import pytest
import sqlmodel
from pydantic import BaseModel
from sqlalchemy.orm import Session

from mqttapi.injection import Depends, Payload, UserProperty, analyse
from mqttapi.resources.outbox import Outbox
from mqttapi.resources.relay import Relay
from mqttapi.topics import TopicTemplate
from tests.injection.plans import refusal

CHOICES = (
    "Injectable are Context, Message, Store, Depends(...), UserProperty(...) and the payload: "
    "a model, dataclass, TypedDict, dict, list or bytes under any name, "
    "a scalar when called 'payload' or marked Payload()."
)


class Reading(BaseModel):
    temperature: float


class Alarm(BaseModel):
    level: int


class Device(sqlmodel.SQLModel, table=True):
    id: int | None = sqlmodel.Field(default=None, primary_key=True)


class Point(sqlmodel.SQLModel, table=True):
    x: int = sqlmodel.Field(primary_key=True)
    y: int = sqlmodel.Field(primary_key=True)


class Store: ...


class Unfinished(BaseModel):
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


def text_of(handler: Any, **given: Any) -> str:
    return refusal(handler, resources=[Store], **given)


# ---------------------------------------------------------------------------------------------------- unknown parameters


def test_a_misspelt_path_parameter() -> None:
    async def ingest(devce_id: str, reading: Reading): ...

    assert text_of(ingest) == (
        "ingest(): 'devce_id' is neither in 'sensors/<device_id>/data' (device_id) nor injectable. "
        f"Did you mean 'device_id'? {CHOICES}"
    )


def test_a_misspelt_name_of_rule_4() -> None:
    async def ingest(mesage): ...

    assert text_of(ingest, template="a/b") == (
        f"ingest(): 'mesage' is neither in 'a/b' (no parameters) nor injectable. Did you mean 'message'? {CHOICES}"
    )


def test_a_class_that_is_no_resource() -> None:
    class Database: ...

    async def ingest(db: Database): ...

    assert text_of(ingest) == (
        "ingest(): 'db' is neither in 'sensors/<device_id>/data' (device_id) nor injectable. "
        f"Database is no resource of the app, and no payload that pydantic could validate. {CHOICES}"
    )


def test_an_unknown_parameter_of_a_dependency() -> None:
    def tenant(tennant: str): ...

    async def ingest(tenant: Annotated[str, Depends(tenant)]): ...

    assert text_of(ingest).startswith("tenant() for ingest(): 'tennant' is neither in ")


@pytest.mark.parametrize(
    ("code", "parameter"), [("async def ingest(*args): ...", "*args"), ("async def ingest(**rest): ...", "**rest")]
)
def test_any_number_of_arguments(code, parameter) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    assert text_of(names["ingest"]) == (
        f"ingest(): '{parameter}' would get nothing: payload keys never become arguments. "
        "Name each parameter; for the whole payload write 'payload: dict'."
    )


def test_a_synchronous_session() -> None:
    async def ingest(session: Session): ...

    async def ingest_with_sqlmodel(session: sqlmodel.Session): ...

    assert text_of(ingest) == (
        "ingest(): 'session: Session' is synchronous and would block the event loop. Use AsyncSession; "
        "a plain 'def' handler, which runs in a thread, may get a Session of its own through Depends(...)."
    )
    assert "'session: Session' is synchronous" in text_of(ingest_with_sqlmodel)


def test_a_synchronous_session_through_a_marker_is_the_users_business() -> None:
    def handler(session: Annotated[Session, Depends(lambda: None)], typo): ...

    assert text_of(handler).startswith("handler(): 'typo'")


# -------------------------------------------------------------------------------------------------------------- payloads


def test_two_payloads() -> None:
    async def ingest(reading: Reading, alarm: Alarm): ...

    assert text_of(ingest) == (
        "ingest(): 'reading: Reading' and 'alarm: Alarm' would both get the payload, and a message has one. "
        "Keep one of them."
    )


def test_one_payload_twice() -> None:
    async def ingest(old: Reading, new: Reading): ...

    assert "'old: Reading' and 'new: Reading' would both get the payload" in text_of(ingest)


def test_two_payloads_across_dependencies() -> None:
    def level(alarm: Alarm): ...

    def nested(level: Annotated[int, Depends(level)]): ...

    async def ingest(reading: Reading, nested: Annotated[int, Depends(nested)]): ...

    assert text_of(ingest) == (
        "'reading: Reading' of ingest() and 'alarm: Alarm' of level() are two different payloads, "
        "and a message has one. Use one model in both."
    )


def test_two_payloads_with_a_dependency_of_the_route() -> None:
    def level(alarm: Alarm): ...

    async def ingest(reading: Reading): ...

    assert "'alarm: Alarm' of level() and 'reading: Reading' of ingest()" in text_of(
        ingest, dependencies=[Depends(level)]
    )


@pytest.mark.parametrize("hint", ["Device", "list[Device]", "Device | None", "Annotated[Device, Payload()]"])
def test_a_table_as_payload(hint) -> None:
    async def ingest(device): ...

    ingest.__annotations__["device"] = hint
    assert "Device is a table, and SQLModel does not validate tables." in text_of(ingest)


def test_a_table_as_payload_word_for_word() -> None:
    async def ingest(device: Device): ...

    assert text_of(ingest) == (
        "ingest(): 'device: Device': Device is a table, and SQLModel does not validate tables. Take the payload as a "
        "model without table=True, and make the row of it: Device.model_validate(...)."
    )


@pytest.mark.parametrize("hint", ["Reading | int", "dict | str", "bytes | Literal['a']"])
def test_a_scalar_beside_something_else(hint) -> None:
    async def ingest(payload): ...

    ingest.__annotations__["payload"] = hint
    assert " is read as text, and " in text_of(ingest)


def test_a_scalar_beside_a_model_word_for_word() -> None:
    async def ingest(data: Reading | int | None): ...

    assert text_of(ingest) == (
        "ingest(): 'data: Reading | int | None' mixes int, which is read as text, and Reading, which is read as JSON. "
        "Keep one kind."
    )


def test_a_model_that_is_not_finished() -> None:
    async def ingest(data: Unfinished): ...

    assert text_of(ingest) == ("ingest(): 'data: Unfinished' cannot be the payload: name 'Nowhere' is not defined.")


def test_a_payload_that_pydantic_cannot_validate() -> None:
    class Database: ...

    async def ingest(data: Annotated[Database, Payload()]): ...

    assert text_of(ingest) == ("ingest(): 'data: Database' cannot be the payload: pydantic has no way to validate it.")


def test_an_unresolved_hint() -> None:
    async def ingest(reading: Raeding): ...  # type: ignore[name-defined]  # noqa: F821

    assert text_of(ingest) == (
        "ingest(): the hint 'Raeding' of 'reading' cannot be resolved: name 'Raeding' is not defined. "
        "Import or define it in the module of ingest(), not under 'if TYPE_CHECKING'."
    )


def test_a_hint_that_raises_something_else_says_only_that() -> None:
    async def ingest(tenant: Annotated[str, UserProperty()]): ...  # pyright: ignore[reportCallIssue]

    assert text_of(ingest) == (
        "ingest(): the hint 'Annotated[str, UserProperty()]' of 'tenant' cannot be resolved: "
        "UserProperty.__new__() missing 1 required positional argument: 'name'."
    )


# ------------------------------------------------------------------------------- what FastAPI's and pydantic's users know


async def connect() -> dict[str, int]:
    return {}


FOREIGN = (
    "ingest(): 'data: dict[str, int]': fastapi.params.Depends means nothing here. Take that of MQTTAPI: "
    "'from mqttapi import Depends'."
)


def test_fastapis_depends_as_a_default() -> None:
    theirs: Any = fastapi.Depends(connect)

    async def ingest(data: dict[str, int] = theirs): ...

    assert text_of(ingest) == FOREIGN


def test_fastapis_depends_in_the_hint() -> None:
    async def ingest(data: Annotated[dict[str, int], fastapi.Depends(connect)]): ...

    assert text_of(ingest) == FOREIGN


def test_pydantics_field_as_a_default() -> None:
    async def ingest(payload: int = pydantic.Field(gt=3)): ...

    assert text_of(ingest) == (
        "ingest(): 'payload: int': as a default Field(...) would be the value itself. Write "
        "'payload: Annotated[int, Field(...)]', and a default behind the '='."
    )


def test_fastapis_header_as_a_default() -> None:
    async def ingest(payload: str = fastapi.Header()): ...

    assert text_of(ingest) == (
        "ingest(): 'payload: str': fastapi.params.Header means nothing here. A part of the topic needs no marker, a user "
        "property is UserProperty('name'), the payload is Payload()."
    )


@pytest.mark.parametrize("hint", [Iterable[int], Iterator[int], Iterable[int] | None])
def test_items_that_nobody_validates_in_time(hint) -> None:
    async def ingest(readings: hint): ...  # pyright: ignore[reportInvalidTypeForm]

    assert text_of(ingest).endswith(
        "the items would be validated when the handler reads them, too late to reject the message. Write list[...] or "
        "Sequence[...]."
    )


@pytest.mark.parametrize("hint", [[5], {"temperature": 5}])
def test_a_list_or_dict_in_place_of_a_type(hint) -> None:
    async def ingest(payload: hint): ...  # pyright: ignore[reportInvalidTypeForm]

    assert text_of(ingest).endswith(f"{hint!r} is a value and no type. Write list[...], dict[...] or a model.")


def test_what_a_dependency_gives_is_not_validated_and_may_be_anything() -> None:
    def numbers() -> Iterable[int]:
        return iter((1, 2))

    async def ingest(some: Annotated[Iterable[int], Depends(numbers)], other: Annotated[T, Depends(numbers)]): ...

    analyse(ingest, template=TopicTemplate("a"))


T = TypeVar("T")


@pytest.mark.parametrize("hint", [T, list[T], T | None])  # type: ignore[valid-type]
def test_a_type_variable_of_which_pydantic_would_make_anything(hint) -> None:
    async def ingest(payload: hint): ...  # pyright: ignore[reportInvalidTypeForm]

    assert text_of(ingest).endswith(
        "nothing says what the type variable T is, so anything would do. Write the type; a class that inherits such a "
        "method overrides it."
    )


# ------------------------------------------------------------------------------------------------------- path parameters


def test_a_default_for_a_level_that_is_always_there() -> None:
    async def ingest(device_id: str = "7"): ...

    assert text_of(ingest) == (
        "ingest(): 'device_id: str' has a default, but 'sensors/<device_id>/data' always has a value for it. "
        "Take the default out, or write '<device_id?>', which may be missing at the end of a template."
    )


def test_a_level_that_may_be_missing_needs_a_default_or_none() -> None:
    async def ingest(page: int): ...

    assert text_of(ingest, template="a/<page?>") == (
        "ingest(): 'page: int' may be missing in 'a/<page?>'. Give it a default, or allow None: 'page: int | None'."
    )


@pytest.mark.parametrize("hint", [str, Literal["a"], bytes, Reading])
def test_a_hint_that_contradicts_its_converter(hint) -> None:
    async def ingest(n): ...

    ingest.__annotations__["n"] = hint
    assert "contradicts 'a/<n:int>': '<n:int>' gives int." in text_of(ingest, template="a/<n:int>")


def test_a_hint_that_contradicts_its_converter_word_for_word() -> None:
    async def ingest(n: str): ...

    assert text_of(ingest, template="a/<n:int>") == (
        "ingest(): 'n: str' contradicts 'a/<n:int>': '<n:int>' gives int. Make that the hint, or write '<n>'."
    )


def test_a_path_parameter_that_cannot_be_text() -> None:
    async def ingest(device_id: Reading): ...

    assert text_of(ingest) == (
        "ingest(): 'device_id: Reading' is a parameter of 'sensors/<device_id>/data', and a level of a topic is text, "
        "which cannot be Reading. Rename it to get the payload, or make its hint str or another scalar."
    )


def test_a_table_for_a_path_parameter_without_a_session() -> None:
    async def ingest(device: Device): ...

    assert text_of(ingest, template="devices/<device>") == (
        "ingest(): 'device: Device' is a table: its row is loaded through an AsyncSession, and the app has no such "
        "resource. Register one, or take the key and load the row yourself."
    )


def test_a_table_with_a_key_of_several_columns() -> None:
    from sqlmodel.ext.asyncio.session import AsyncSession

    async def ingest(point: Point): ...

    assert refusal(ingest, template="points/<point>", resources=[AsyncSession]) == (
        "ingest(): 'point: Point': the primary key of Point has several columns (x, y). "
        "Take the levels as parameters, and load the row in a dependency."
    )


# --------------------------------------------------------------------------------------------------------------- markers


NO_FUNCTION: Any = 5


def one() -> int:
    return 1


@pytest.mark.parametrize(
    ("hint", "default", "names"),
    [
        (Annotated[int, Payload(), UserProperty("x")], None, "Payload(...) and UserProperty(...)"),
        (Annotated[int, Payload()], Depends(one), "Payload(...) and Depends(...)"),
    ],
)
def test_two_markers(hint, default, names) -> None:
    async def ingest(n=default): ...

    if default is None:
        ingest.__defaults__ = None
    ingest.__annotations__["n"] = hint
    assert text_of(ingest) == f"ingest(): 'n: int' has two markers, {names}. Keep one."


def test_a_marker_without_brackets() -> None:
    async def ingest(n: Annotated[int, Payload]): ...

    assert text_of(ingest) == "ingest(): 'n: int': Payload needs brackets: Payload(...)."


def test_a_default_besides_depends() -> None:
    async def ingest(n: Annotated[int, Depends(one)] = 5): ...

    assert text_of(ingest) == (
        "ingest(): 'n: int' has a default besides Depends(...), which always gives a value. Drop it."
    )


def test_depends_without_anything_to_call() -> None:
    async def ingest(n=Depends()): ...  # noqa: B008

    assert text_of(ingest) == "ingest(): 'n': Depends() needs a class for a hint, or a function: Depends(f)."


def test_depends_on_what_cannot_be_called() -> None:
    async def ingest(n: Annotated[int, Depends(NO_FUNCTION)]): ...

    assert text_of(ingest) == "ingest(): 'n: int': Depends(5) cannot be called. Give a function or a class."


def test_a_dependency_whose_parameters_are_unknown() -> None:
    async def ingest(n: Annotated[dict[str, int], Depends(dict)]): ...

    assert text_of(ingest).startswith("dict() for ingest(): its parameters cannot be read: ")


def test_a_thread_for_an_asynchronous_dependency() -> None:
    async def late() -> int:
        return 1

    async def ingest(n: Annotated[int, Depends(late, thread=True)]): ...

    assert text_of(ingest) == ("late() for ingest() is asynchronous and cannot run in a thread. Leave thread=True out.")


def test_a_dependency_cycle() -> None:
    def first(x: int = Depends(one)): ...

    def second(x: Annotated[int, Depends(first)]): ...

    first.__defaults__ = (Depends(second),)

    async def ingest(x: Annotated[int, Depends(first)]): ...

    assert text_of(ingest) == ("dependency cycle: ingest() → first() → second() → first(). Take one of the steps out.")


def test_a_user_property_that_cannot_be_text() -> None:
    async def ingest(tenant: Annotated[Reading, UserProperty("tenant")]): ...

    assert text_of(ingest) == (
        "ingest(): 'tenant: Reading' cannot be a user property, which is text. "
        "Make its hint str or another scalar, or a list of them."
    )


# -------------------------------------------------------------------------------------------------------------- handlers


def test_a_class_as_handler() -> None:
    assert text_of(Store) == (
        "Store is a class. A handler is a function: 'async def', or plain 'def'. Of a class: Store.method, or "
        "(Store, 'method')."
    )


def test_what_cannot_be_called_as_handler() -> None:
    assert text_of(5) == "5 is of type int. A handler is a function: 'async def', or plain 'def'."


def test_a_lambda_without_name() -> None:
    assert text_of(lambda payload: payload) == "a lambda has no name for its route. Give name='...', or write a 'def'."


def generator():
    yield 1


async def asynchronous_generator():
    yield 1


@pytest.mark.parametrize("handler", [generator, asynchronous_generator])
def test_a_generator_as_handler(handler) -> None:
    assert text_of(handler) == (
        f"{handler.__name__}(): a handler cannot 'yield'. "
        "Return a value; 'yield' belongs in a dependency, Depends(...)."
    )


def test_what_the_outbox_alone_asks_for_is_not_offered() -> None:
    async def handler(unknown: complex): ...

    assert "Injectable are Context, Message, Outbox, Depends(...)" in refusal(handler, resources=[Relay, Outbox])
