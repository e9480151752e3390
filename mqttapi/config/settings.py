"""Every setting: its environment variable, its bounds, its default and what it means.

Sources, the strongest first: keyword arguments, environment, `.env`. An empty variable counts as not given.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from dotenv.parser import parse_stream
from pydantic import AfterValidator, AliasGenerator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mqttapi.errors import ConfigurationError
from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

__all__ = ["Rule", "Setting", "Settings", "defaults", "unknown_variables"]

_PREFIXES: Final = ("MQTT_", "MQTTAPI_")
_UNPREFIXED: Final = frozenset({"worker_count", "redis_url", "database_url"})
_CONNECTION: Final = frozenset(
    {"url", "broker", "port", "username", "password", "password_file", "protocol", "client_id", "instance", "keepalive"}
    | {"group_name", "tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password", "tls_insecure"}
)
# Two ways to say one thing: the nearer source counts, not the nearer source of each.
_ALTERNATIVES: Final = (("broker", "url"), ("password", "password_file"), ("password_file", "password"))
# Kubernetes sets these in every pod beside a service called "mqtt".
_SERVICE_LINK: Final = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP)(_.+)?)")
_SIZE_UNITS: Final = {"b": 1, "kb": 1000, "kib": 2**10, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}


def _variable(name: str) -> str:
    if name in _UNPREFIXED:
        return name.upper()
    return f"{'MQTT' if name in _CONNECTION else 'MQTTAPI'}_{name.upper()}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be, in the words of an error, and its unit in the table of defaults."""

    text: str
    unit: str = ""


def _bytes(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]+)\s*([a-z]+)", value.lower())):
        factor = _SIZE_UNITS.get(found[2])
        return value if factor is None else int(found[1]) * factor
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _not_a_service_link(value: object) -> object:
    return None if isinstance(value, str) and value.startswith("tcp://") else value


def _url(schemes: str) -> AfterValidator:
    def check(value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(rf"({schemes})://", value.get_secret_value()):
            raise ValueError
        return value

    return AfterValidator(check)


_File = Annotated[Path | None, Rule("the path of a file", "path")]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Rule("a number of seconds above 0", "seconds")]
_Size = Annotated[
    int, Field(ge=1), BeforeValidator(_bytes), Rule("a number of bytes above 0, such as 33554432 or 32MiB", "bytes")
]


class Settings(BaseSettings):
    """The settings of an app, frozen. `Settings()` reads the environment and `.env`; keywords go before both.

    Raises `ConfigurationError` with the name, the value (never that of a secret) and the rule of each wrong setting.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=_variable),
        case_sensitive=True,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        env_prefix="MQTTAPI_",
        extra="ignore",  # a `.env` is shared with other programs; `unknown_variables` tells what was meant for us
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    also_known: ClassVar[frozenset[str]] = frozenset()
    """Variables that are no settings, and are not to be warned of."""

    url: SecretStr | None = None
    """Broker: `mqtt://user:password@host:port`, or with `mqtts`, `ws`, `wss`, `unix`. Goes before `MQTT_BROKER`."""
    broker: str | None = None
    """Host of the broker. TLS is on where the port is 8883 or a TLS setting is given."""
    port: Annotated[int | None, Field(ge=1, le=65535), BeforeValidator(_not_a_service_link), Rule("1-65535")] = None
    """Port of `MQTT_BROKER`; 1883 unless given, 8883 with TLS."""
    username: str | None = None
    """User, where the URL names none."""
    password: SecretStr | None = None
    """Password of that user."""
    password_file: _File = None
    """File that holds the password, such as a mounted secret; a line break at its end is not part of it."""
    protocol: Annotated[Literal["5", "3.1.1"], Rule("5 or 3.1.1")] = "5"
    """Version of MQTT, `5` or `3.1.1`."""
    client_id: Annotated[
        str | None,
        Field(max_length=256, pattern=r"^[^/+#\s\p{C}]+$"),
        Rule("1-256 characters without '/', '+', '#' and spaces, such as plant-1 (brokers refuse others)"),
    ] = None
    """Stem of the client ids in place of `<app>-<instance>`; each worker adds its slot."""
    instance: str | None = None
    """Tells the replicas of an app apart, and stays over restarts; the host's name unless given."""
    keepalive: Annotated[
        int, Field(ge=1, le=65535), Rule("1-65535 s (0 would disable the detection of dead peers)", "seconds")
    ] = 60
    """Keep Alive to ask for; the server's own goes before it [MQTT-3.2.2-21]."""
    group_name: Annotated[
        str | None, Field(pattern=r"^[^/+#\p{C}]+$"), Rule("a name without '/', '+' and '#' [MQTT-4.8.2-2]")
    ] = None
    """Share name of routes with `shared=True`; the app's name unless given."""
    tls_ca_file: _File = None
    """PEM file with the only CAs to trust; those of the system unless given."""
    tls_cert_file: _File = None
    """PEM file with the client's certificate."""
    tls_key_file: _File = None
    """PEM file with the client's key, unless it is in the certificate's file."""
    tls_key_password: SecretStr | None = None
    """Password of that key."""
    tls_insecure: Annotated[bool, Rule("true or false")] = False
    """Accept any certificate from anyone: for experiments; warns at each start."""

    worker_count: Annotated[int | None, Field(ge=1, le=512), Rule("1-512", "processes")] = None
    """Processes for shared routes without `workers=`; 1 unless given."""
    redis_url: Annotated[
        SecretStr | None, _url("redis|rediss|unix"), Rule("a URL with redis://, rediss:// or unix://")
    ] = None
    """Redis, such as `redis://:password@localhost:6379/0`."""
    redis_timeout: _Seconds = 2.0
    """Longest time that one command to Redis takes, waiting for a connection and second tries included."""
    database_url: Annotated[
        SecretStr | None, _url(r"[A-Za-z0-9+_]+"), Rule("a URL such as sqlite+aiosqlite:///app.db")
    ] = None
    """Database: `sqlite+aiosqlite:///app.db` unless given, or `postgresql+asyncpg://user:password@host/name`."""
    database_pool: Annotated[int, Field(ge=1, le=1000), Rule("1-1000", "connections")] = 5
    """Connections to the database, per worker."""
    database_timeout: _Seconds = 30.0
    """Longest wait for one of these connections, for SQLite's lock, and for the answer of PostgreSQL."""

    max_in_flight: Annotated[int, Field(ge=1, le=65535), Rule("1-65535 (MQTT Receive Maximum)", "messages")] = 1000
    """Messages held per link: handlers that have not ended. Announced as Receive Maximum [MQTT5 §3.1.2.11.3]."""
    max_in_flight_bytes: _Size = 32 * 2**20
    """Bytes of topics, payloads and properties held per link; at the bound nothing more is read."""
    max_queued: Annotated[int, Field(ge=1), Rule("a whole number above 0", "messages")] = 1000
    """Messages of QoS 0 held per route whose `overflow` is not `block`."""
    max_payload: _Size = 2**20
    """Longer payloads are skipped, rejected and acknowledged."""
    max_packet: Annotated[_Size, Field(le=268_435_460), Rule("1-268435460 bytes, such as 16MiB", "bytes")] = 16 * 2**20
    """Announced as Maximum Packet Size: what is longer is dropped by the broker [MQTT-3.1.2-25]."""
    max_hold: _Seconds = 60.0
    """Longest time that one message is held: attempts, pauses and waits together."""
    grace: _Seconds = 30.0
    """Time to drain after a request to stop."""
    max_outgoing: Annotated[int, Field(ge=1), Rule("a whole number above 0", "messages")] = 10_000
    """Publishes that wait for the broker."""
    max_outgoing_bytes: _Size = 32 * 2**20
    """Bytes of the publishes that wait for the broker."""
    session_expiry: Annotated[
        int, Field(ge=0, le=0xFFFF_FFFF), Rule("0-4294967295 s (the largest means never)", "seconds")
    ] = 86_400
    """How long the broker keeps the session of an app that is away, where the app says no `session=`."""
    runtime_dir: _File = None
    """Directory for locks; `$XDG_RUNTIME_DIR/mqttapi` unless given, else one in the temporary directory."""
    state_dir: _File = None
    """Directory for what outlives a process; `$STATE_DIRECTORY` unless given, else `~/.local/state/mqttapi`."""
    spool_max_bytes: _Size = 64 * 2**20
    """Bytes of dead letters on disk, per app: those that the broker refuses, or that nobody has subscribed to."""
    health: Annotated[int | None, Field(ge=1, le=65535), Rule("1-65535")] = None
    """Port on which `mqttapi run` answers `/live` and `/ready` over HTTP; none unless given."""
    health_host: str = "127.0.0.1"
    """Where that port is open: to this machine only, or in a container `0.0.0.0`."""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        BeforeValidator(_lower),
        Rule("debug, info, warning, error or critical"),
    ] = "info"
    """Least level that is logged."""
    log_format: Annotated[Literal["plain", "json"], BeforeValidator(_lower), Rule("plain or json")] = "plain"
    """`plain` text, or one `json` object per line."""
    env_file: _File = None
    """File of variables to read; `.env` in the working directory unless given, where there is one."""

    def __init__(self, **values: Any) -> None:
        _check_keywords(values, type(self).model_fields)
        values["env_file"] = file = _env_file(values.get("env_file"))
        for name, other in _ALTERNATIVES:
            if other not in values and (values.get(name) is not None or (_given(name) and not _given(other))):
                values[other] = None
        given = {_alias(name, type(self).model_fields[name]): value for name, value in values.items()}
        try:
            super().__init__(_env_file=file, **given)
        except ValidationError as error:
            problem = "; ".join(_problem(details, type(self).model_fields, values) for details in error.errors())
        else:
            return
        raise ConfigurationError(problem)  # outside of `except`: the cause holds the values

    @classmethod
    def load(cls, env_file: str | Path | None = None) -> Self:
        """The settings from the environment and from `env_file`: `$MQTTAPI_ENV_FILE` unless given, else `.env`.

        A file that is named must exist; a `.env` need not. Raises `ConfigurationError`.
        """
        return cls() if env_file is None else cls(env_file=env_file)

    def secret_password(self) -> SecretStr | None:
        """The password from `MQTT_PASSWORD`, or read now from `MQTT_PASSWORD_FILE`. Raises `ConfigurationError`."""
        if self.password_file is None:
            return self.password
        try:
            text = self.password_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"MQTT_PASSWORD_FILE: cannot read {str(self.password_file)!r}: {_reason(error)}"
        else:
            return SecretStr(text.removesuffix("\n").removesuffix("\r"))
        raise ConfigurationError(problem)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("MQTT_PASSWORD and MQTT_PASSWORD_FILE are both given: keep one")
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ValueError("MQTT_TLS_KEY_FILE is given without MQTT_TLS_CERT_FILE: a key needs its certificate")
        if self.max_payload > self.max_packet:
            raise ValueError(
                f"MQTTAPI_MAX_PAYLOAD ({self.max_payload}) must not be above MQTTAPI_MAX_PACKET ({self.max_packet}): "
                "a payload travels in a packet"
            )
        return self


class Setting(NamedTuple):
    """One row of the table of defaults. A default of None is described in `meaning`."""

    name: str
    variable: str
    default: object
    unit: str
    meaning: str


def defaults() -> Iterator[Setting]:
    """Every setting, in the order of `Settings`."""
    for name, info in Settings.model_fields.items():
        rule = _rule(info)
        yield Setting(name, _variable(name), info.default, rule.unit if rule else "", info.description or "")


def unknown_variables(
    names: Iterable[str] | None = None, env_file: Path | None = None, *, also_known: Collection[str] = ()
) -> list[str]:
    """A warning for each name that begins with `MQTT_` or `MQTTAPI_` and is no setting, with the nearest that is one.

    Without `names` those of the environment and of the `.env` that `Settings.load(env_file)` reads are looked at. Those
    that are `also_known` are left out.
    """
    if names is None:
        file = _env_file(env_file)
        names = {*os.environ, *(_names_in(file) if file else ())}
    known = {setting.name: setting.variable for setting in defaults()}
    return [
        f"unknown setting {printable(name)}{_nearest(re.sub('^MQTT(API)?_', '', name).lower(), known)}"
        for name in sorted({*names} - {*also_known, *known.values()})
        if name.startswith(_PREFIXES) and not _SERVICE_LINK.fullmatch(name)
    ]


def _nearest(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {known[near[0]]}?" if near else ""


def _given(name: str) -> bool:
    return bool(os.environ.get(_variable(name)))


def _alias(name: str, info: FieldInfo) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else name


def _rule(info: FieldInfo) -> Rule | None:
    return next((item for item in reversed(info.metadata) if isinstance(item, Rule)), None)


def _check_keywords(values: Iterable[str], fields: Iterable[str]) -> None:
    for name in values:
        if name not in fields:
            raise ConfigurationError(f"Settings() has no {name!r}{_nearest(name, {field: field for field in fields})}")


def _problem(details: ErrorDetails, fields: dict[str, FieldInfo], keywords: Iterable[str]) -> str:
    if not details["loc"]:
        return details["msg"].removeprefix("Value error, ")
    variable = details["loc"][0]
    name, info = next((name, info) for name, info in fields.items() if _alias(name, info) == variable)
    rule = _rule(info)
    shown = name if name in keywords else variable
    if details["type"] == "missing":
        return f"{shown} must be given"  # the input is that of the whole, secrets and all
    text = f"{shown} must be {rule.text}" if rule else f"{shown}: {details['msg']}"
    return f"{text}, got {'a secret' if 'Secret' in str(info.annotation) else repr(details['input'])[:100]}"


def _env_file(path: str | Path | None) -> Path | None:
    named = path or os.environ.get("MQTTAPI_ENV_FILE")
    file = Path(named or ".env").expanduser()
    if not named and not file.is_file():
        return None
    _names_in(file)
    return file


def _names_in(file: Path) -> list[str]:
    # Stricter than the reader of pydantic-settings, which skips what it does not understand.
    try:
        with file.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read the env file {str(file)!r}: {_reason(error)}"
        raise ConfigurationError(problem) from None
    names: dict[str, int] = {}
    for binding in bindings:
        line = binding.original.line + len(binding.original.string) - len(binding.original.string.lstrip("\n"))
        if binding.error:
            raise ConfigurationError(f"{file}:{line}: not a line of the form NAME=value")
        if binding.key in names and binding.key.startswith(_PREFIXES):
            raise ConfigurationError(f"{file}:{line}: {binding.key} is given again, first in line {names[binding.key]}")
        if binding.key:
            names[binding.key] = line
    return list(names)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8 text"
