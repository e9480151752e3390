"""Payloads whose hint accepts more than it says.

pydantic tries all members of a union: a payload that one of them refuses may still fit another. Where a member takes
whatever comes, nothing is ever rejected. Each member is asked with a payload that nobody would make a member for.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from mqttapi.cli.checks.finding import Finding
from mqttapi.injection import hints, signature
from mqttapi.injection.hints import is_scalar, show
from mqttapi.injection.sources import Dependency

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["bytes_in_union", "tolerant_union"]

_STRANGE_TEXT: Final = "\0mqttapi"
_STRANGE: Final = {"object": rb'{"\u0000mqttapi": null}', "array": b"[null]"}
"""By what it is in JSON; of texts there is no more to say than that bytes are one."""


def tolerant_union(subject: Subject) -> Iterator[Finding]:
    """`Reading | dict`, `int | str`: an invalid payload arrives as the member that takes everything."""
    for route in subject.routes:
        for where, members in _unions(route):
            for loose, strict in _swallowed(members):
                always = members.index(loose) < members.index(strict) and not _is_model(loose)
                yield Finding(
                    "warning",
                    (route,),
                    f"{where}: what is no {show(strict)} arrives as {show(loose)}, and is not rejected"
                    + (f"; as {show(loose)} stands first, even a valid one does" if always else ""),
                    f"pydantic tries all members, and {show(loose)} accepts what {show(strict)} refuses: nobody sees why.",
                    f"Take {show(strict)} alone: what does not validate is rejected, and goes to the dead letter. Tell "
                    "several kinds of messages apart by a field, Field(discriminator=...), or by their topics.",
                )
                break


def bytes_in_union(subject: Subject) -> Iterator[Finding]:
    """`Reading | bytes`: what is no JSON does not arrive as bytes."""
    for route in subject.routes:
        for where, members in _unions(route):
            if bytes in members:
                yield Finding(
                    "warning",
                    (route,),
                    f"{where}: bytes within a union are a text in JSON, not the payload as it came",
                    "The payload is decoded as JSON before a member is chosen: what is no JSON is rejected.",
                    "Take bytes alone and validate in the handler, or leave bytes out.",
                )


def _unions(route: Route) -> Iterator[tuple[str, Sequence[Any]]]:
    """The payloads of a handler and its dependencies that may be several things: what they are called, and these."""
    plan = route.signature
    for call, parameter, hint in signature._payloads((*plan.dependencies, Dependency(plan.handler))):
        members = [member for member in hints._members(hint.whole)[0] if member is not NoneType]
        tagged = any(getattr(item, "discriminator", None) is not None for item in hint.metadata)
        if len(members) > 1 and not tagged:
            yield f"{call.name}: '{parameter}'", members


def _swallowed(members: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """A member that accepts everything of some kind, and one of that kind that does not."""
    if anything := [member for member in members if member in {Any, object}]:
        yield anything[0], next(member for member in members if member not in anything)
    if all(map(is_scalar, members)):
        yield from _pairs(members, [member for member in members if _accepts_text(member)])
        return
    for kind, json in _STRANGE.items():
        of_kind = [member for member in members if _kind_of(member) == kind]
        yield from _pairs(of_kind, [member for member in of_kind if _accepts_json(member, json)])


def _pairs(members: Sequence[Any], accepting: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    refusing = [member for member in members if member not in accepting]
    if accepting and refusing:
        yield accepting[0], refusing[0]


def _accepts_text(member: Any) -> bool:
    """As the payload of a scalar is read."""
    try:
        TypeAdapter(member).validate_strings(_STRANGE_TEXT)
    except ValueError:
        return False
    return True


def _accepts_json(member: Any, json: bytes) -> bool:
    try:
        TypeAdapter(member).validate_json(json)
    except ValueError:
        return False
    return True


def _kind_of(member: Any) -> str:
    """What a member is in JSON; empty where pydantic cannot tell."""
    try:
        return str(TypeAdapter(member).json_schema().get("type", ""))
    except PydanticUserError:
        return ""


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)
