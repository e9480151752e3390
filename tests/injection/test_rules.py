# Handlers without hints are among what is tested.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The six rules, in their order."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from mqttapi.context import Context
from mqttapi.errors import ConfigurationError
from mqttapi.injection import Depends, Payload, UserProperty, analyse
from mqttapi.message import Message
from mqttapi.topics import TopicTemplate
from tests.injection.plans import endpoint_of, journey, refusal, run


class Reading(BaseModel):
    temperature: float


class Store:
    pass


JSON = b'{"temperature": 21.5}'
READING = Reading(temperature=21.5)


def answer() -> int:
    return 42


Number = Annotated[int, Depends(answer)]


# ------------------------------------------------------------------------------------------------------ 1: markers


async def test_a_marker_decides_before_the_name_of_a_path_parameter() -> None:
    async def handler(device_id: Annotated[int, Depends(answer)]):
        return device_id

    assert await run(handler) == 42


async def test_a_marker_decides_before_the_hint_of_the_message() -> None:
    async def handler(it: Annotated[Message, Depends(answer)]):
        return it

    assert await run(handler) == 42


async def test_a_marker_may_be_the_default() -> None:
    async def handler(number: int = Depends(answer), tenant: str = UserProperty("tenant"), data: int = Payload()):
        return number, tenant, data

    assert await run(handler, b"5", user_properties=[("tenant", "acme")]) == (42, "acme", 5)


async def test_a_scalar_marked_payload_is_the_payload_under_any_name() -> None:
    async def handler(count: Annotated[int, Payload()]):
        return count

    assert await run(handler, b"5") == 5


async def test_a_marker_behind_an_alias_decides() -> None:
    async def handler(number: Number):
        return number

    assert await run(handler) == 42


# --------------------------------------------------------------------------------------- 2: message, context, resources


async def test_the_message_and_the_context_come_under_any_name() -> None:
    async def handler(wire: Message, trip: Context):
        return wire, trip

    context = journey()
    assert await endpoint_of(handler)(context) == (context.message, context)


async def test_a_resource_comes_by_its_type() -> None:
    store = Store()

    async def handler(anything: Store):
        return anything

    assert await run(handler, resources={Store: store}) is store


async def test_a_hint_of_rule_2_decides_before_the_name_of_a_path_parameter() -> None:
    async def handler(device_id: Message):
        return device_id

    assert isinstance(await run(handler), Message)


async def test_a_resource_that_may_be_missing_is_the_resource() -> None:
    store = Store()

    async def handler(store: Store | None):
        return store

    assert await run(handler, resources={Store: store}) is store


async def test_a_generic_hint_finds_the_resource_of_its_origin() -> None:
    class Pool(list[Any]):
        pass

    pool = Pool()

    async def handler(pool: Pool):
        return pool

    assert await run(handler, resources={Pool: pool}) is pool


# ---------------------------------------------------------------------------------------------------------- 3: the path


async def test_a_name_in_the_template_is_a_path_parameter() -> None:
    async def handler(device_id: str):
        return device_id

    assert await run(handler) == "7"


async def test_topic_payload_and_message_may_be_names_of_path_parameters() -> None:
    async def handler(message, topic, payload):
        return message, topic, payload

    assert await run(handler, template="<topic>/<message>/<payload>", topic="a/b/c") == ("b", "a", "c")


# ------------------------------------------------------------------------------------------------- 4: names without hint


async def test_a_handler_without_hints_gets_payload_topic_client_message_and_context() -> None:
    publisher = object()

    async def handler(device_id, payload, client, topic, message, context):
        return device_id, payload, client, topic, type(message), type(context)

    expected = ("7", {"temperature": 21.5}, publisher, "sensors/7/data", Message, Context)
    assert await run(handler, JSON, app=SimpleNamespace(publisher=publisher)) == expected


async def test_a_payload_without_hint_that_is_not_json_is_bytes() -> None:
    async def handler(payload):
        return payload

    assert await run(handler, b"\xff") == b"\xff"


async def test_a_payload_without_hint_has_its_default_for_an_empty_one() -> None:
    async def handler(payload=None):
        return payload

    assert [await run(handler, b""), await run(handler, b"5")] == [None, 5]


# ---------------------------------------------------------------------------------------------------------- 5: payloads


@dataclass
class Point:
    temperature: float


class Shape(TypedDict):
    temperature: float


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Reading, READING),
        (Point, Point(21.5)),
        (Shape, {"temperature": 21.5}),
        (dict, {"temperature": 21.5}),
        (dict[str, float], {"temperature": 21.5}),
        (bytes, JSON),
        (Any, {"temperature": 21.5}),
        (object, {"temperature": 21.5}),
        (Reading | Point, READING),
        (Reading | list[Reading], READING),
        (Reading | None, READING),
    ],
)
async def test_what_cannot_come_from_a_topic_is_the_payload_under_any_name(hint, value) -> None:
    async def handler(anything):
        return anything

    handler.__annotations__["anything"] = hint
    assert await run(handler, JSON) == value


async def test_a_scalar_called_payload_is_the_payload() -> None:
    async def handler(payload: int):
        return payload

    assert await run(handler, b"5") == 5


async def test_keys_of_the_payload_never_become_arguments() -> None:
    async def handler(device_id: str, reading: dict[str, str]):
        return device_id

    assert await run(handler, b'{"device_id": "forged", "reading": "x"}') == "7"


# ------------------------------------------------------------------------------------------------------------- 6: errors


@pytest.mark.parametrize("default", ["", " = 5"])
def test_anything_else_is_refused_with_a_default_too(default) -> None:
    names: dict[str, Any] = {}
    exec(f"async def handler(count: int{default}): ...", names)
    assert refusal(names["handler"]).startswith("handler(): 'count' is neither in 'sensors/<device_id>/data'")


# ------------------------------------------------------------------------------------------------ what may be a handler


class Handlers:
    async def method(self, device_id: str):
        return device_id

    async def __call__(self, device_id: str) -> str:
        return device_id

    @staticmethod
    async def static(device_id: str) -> str:
        return device_id


async def test_methods_instances_and_partials_may_be_handlers() -> None:
    async def two(device_id: str, extra: int):
        return device_id if extra == 1 else None

    handlers: list[Any] = [Handlers().method, Handlers(), Handlers.static, functools.partial(two, extra=1)]
    assert [await run(handler) for handler in handlers] == ["7"] * 4


async def test_a_decorated_handler_has_the_parameters_of_the_inner_one() -> None:
    def twice(function):
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return [await function(*args, **kwargs), await function(*args, **kwargs)]

        return wrapper

    @twice
    async def handler(device_id: str):
        return device_id

    assert await run(handler) == ["7", "7"]


async def test_parameters_by_name_only_and_by_position_only_are_filled() -> None:
    async def handler(device_id: str, /, *, reading: Reading):
        return device_id, reading

    assert await run(handler, JSON) == ("7", READING)


def test_a_lambda_with_a_name_is_accepted() -> None:
    template = TopicTemplate("a")
    assert analyse(lambda payload: payload, template=template, name="echo").in_thread
    with pytest.raises(ConfigurationError, match=r"^echo\(\): 'x' is neither"):
        analyse(lambda x: x, template=template, name="echo")
