"""Rules 1, 3 and 5 in detail: what a parameter gets of the topic, the user properties and the payload."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from mqttapi.errors import ConfigurationError, InvalidParameter
from mqttapi.injection.functions import Parameter, parameters_of
from mqttapi.injection.hints import MISSING, Hint, is_scalar, is_table, show
from mqttapi.injection.rows import column_of, key_reader, row_loader, session_type
from mqttapi.injection.sources import Attribute, Call, Dependency, Read, Resource, Source
from mqttapi.injection.validation import Convert, parameter_reader, payload_reader, validator_of

if TYPE_CHECKING:
    from mqttapi.context import Context
    from mqttapi.message import Message
    from mqttapi.topics import TemplateParameter, TopicTemplate

__all__ = ["path_source", "payload_source", "user_property_source"]

_COLLECTIONS: Final = (list, tuple, set, frozenset, Sequence, AbstractSet)


# ---------------------------------------------------------------------------------------------------------------- path


def path_source(
    where: str, parameter: Parameter, hint: Hint, template: TopicTemplate, resources: Collection[type[Any]]
) -> Source:
    """A level of the topic, validated where its hint asks for more than its converter gives."""
    slot = template.parameters[parameter.name]
    code = f"context.values_[{template.names.index(parameter.name)}]"
    label = f"path parameter {parameter.name!r}"
    if parameter.default is not MISSING and not slot.optional:
        raise ConfigurationError(
            f"{where} has a default, but {template.text!r} always has a value for it. "
            f"Take the default out, or write '<{parameter.name}?>', which may be missing at the end of a template."
        )
    if slot.optional and parameter.default is MISSING and not hint.nullable:
        raise ConfigurationError(
            f"{where} may be missing in {template.text!r}. Give it a default, or allow None: '{parameter} | None'."
        )
    if is_table(hint.only):
        return _row_source(where, label, hint, slot, code, resources)
    _check_agreement(where, hint, slot, template)
    read: Convert | None = None
    if not (hint.is_any or hint.plain is slot.type):
        read = parameter_reader(label, hint, from_text=slot.type is str)
    default = None if parameter.default is MISSING else parameter.default
    if slot.optional and (read is not None or default is not None):
        read = _or_default(default, read)
    return Attribute(code) if read is None else Read(read, code)


def _or_default(default: Any, read: Convert | None) -> Convert:
    """A level that is missing is None among the values."""

    def read_or_default(value: Any) -> Any:
        if value is None:
            return default
        return value if read is None else read(value)

    return read_or_default


def _check_agreement(where: str, hint: Hint, slot: TemplateParameter, template: TopicTemplate) -> None:
    if hint.is_any or any(_can_be(member, slot.type) for member in hint.members):
        return
    if slot.type is str:
        raise ConfigurationError(
            f"{where} is a parameter of {template.text!r}, and a level of a topic is text, which cannot be "
            f"{show(hint.whole)}. Rename it to get the payload, or make its hint str or another scalar."
        )
    raise ConfigurationError(
        f"{where} contradicts {template.text!r}: '<{slot.name}:{slot.converter}>' gives {show(slot.type)}. "
        f"Make that the hint, or write '<{slot.name}>'."
    )


def _can_be(member: Any, given: type) -> bool:
    """Whether a value of the type that a converter gives can be a `member` of the hint, or be validated as one."""
    if given is str:
        return is_scalar(member)
    if get_origin(member) is Literal:
        return any(isinstance(value, given) for value in get_args(member))
    if not isinstance(member, type):
        return False
    if issubclass(member, Enum):
        return any(isinstance(item.value, given) for item in member)
    return issubclass(given, member) or (given is int and member in {float, complex, Decimal})


def _row_source(
    where: str, label: str, hint: Hint, slot: TemplateParameter, code: str, resources: Collection[type[Any]]
) -> Dependency:
    session = session_type(resources)
    if session is None:
        raise ConfigurationError(
            f"{where} is a table: its row is loaded through an AsyncSession, and the app has no such resource. "
            "Register one, or take the key and load the row yourself."
        )
    column = column_of(where, hint.only, slot.converter)
    kind = hint.only.model_fields[column].annotation
    if slot.type is not str and not any(_can_be(member, slot.type) for member in Hint.of(kind).members):
        raise ConfigurationError(
            f"{where}: '<{slot.name}:{slot.converter}>' gives {show(slot.type)}, and the column {column!r} of "
            f"{show(hint.only)} is {show(kind)}, so no row would be found. Write '<{slot.name}>', or name the column."
        )
    load = row_loader(label, hint, column)
    key = _or_default(None, key_reader(label, hint.only, column, from_text=slot.type is str))
    sources: tuple[Source, ...] = (Resource(session, optional=False), Read(key, code), Attribute("context"))
    parameters = parameters_of(load, where)
    return Dependency(Call(load, load, True, False, False, tuple(zip(parameters, sources, strict=True))))


# ------------------------------------------------------------------------------------------------------------- payload


def payload_source(where: str, parameter: Parameter, hint: Hint) -> Source | None:
    """The payload as the hint wants it; None where pydantic has no way to validate that."""
    default = parameter.default
    if hint.whole is MISSING:
        return Attribute('context["payload"]') if default is MISSING else Read(_decoded_or(default), "context")
    _check_kinds(where, hint)
    if table := _table_within(hint.whole):
        raise ConfigurationError(
            f"{where}: {show(table)} is a table, and SQLModel does not validate tables. Take the payload as a model "
            f"without table=True, and make the row of it: {show(table)}.model_validate(...)."
        )
    try:
        validator_of(hint.whole)
    except PydanticSchemaGenerationError:
        return None
    except (NameError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigurationError(f"{where} cannot be the payload: {reason}.") from None
    return Read(payload_reader(hint, default), "context", hint, _key(hint, default))


def _key(hint: Hint, default: Any) -> Hashable:
    key = hint.whole, type(default), default
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _decoded_or(default: Any) -> Convert:
    def read(context: Context) -> Any:
        return context["payload"] if context.replaced_payload or context.message.payload else default

    return read


def _check_kinds(where: str, hint: Hint) -> None:
    scalars = [member for member in hint.members if is_scalar(member)]
    others = [member for member in hint.members if not is_scalar(member)]
    if scalars and others:
        raise ConfigurationError(
            f"{where} mixes {show(scalars[0])}, which is read as text, and {show(others[0])}, which is read as JSON. "
            "Keep one kind."
        )


def _table_within(hint: Any) -> type[Any] | None:
    if is_table(hint):
        return hint
    return next((table for inner in get_args(hint) if (table := _table_within(inner))), None)


# ------------------------------------------------------------------------------------------------------ user properties


def user_property_source(where: str, name: str, parameter: Parameter, hint: Hint) -> Read:
    """The first user property of that name, or all of them for a list."""
    every = (get_origin(hint.only) or hint.only) in _COLLECTIONS
    if not (hint.is_any or hint.is_scalar or every):
        raise ConfigurationError(
            f"{where} cannot be a user property, which is text. Make its hint str or another scalar, or a list of them."
        )
    label = f"user property {name!r}"
    required, default = parameter.default is MISSING and not hint.nullable, parameter.default
    if default is MISSING:
        default = None
    convert: Convert = _same
    if not (hint.is_any or hint.plain is str):
        convert = parameter_reader(label, hint, from_text=not every)

    def read(message: Message) -> Any:
        values = [value for key, value in message.user_properties if key == name]
        if values:
            return convert(values if every else values[0])
        if required:
            raise InvalidParameter(f"{label} is missing")
        return default

    return Read(read, "context.message")


def _same(value: Any) -> Any:
    return value
