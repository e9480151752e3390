"""Where the broker is: a value, how it is written, and who decides."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from pydantic import SecretStr

from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from mqttapi.config.settings import Settings

__all__ = ["Broker", "resolve_broker"]

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443, "unix": 0}
_TLS_PORT: Final = _DEFAULT_PORTS["mqtts"]
_FORM: Final = "mqtt://user:password@host:port"


@dataclass(frozen=True, slots=True, repr=False)
class Broker:
    """The address of a broker, with the credentials for it.

    `scheme` is one of mqtt, mqtts, ws, wss, unix. `path` is that of the WebSocket (`/mqtt` unless the URL says
    otherwise) or of the Unix socket, else empty. `str()` and `repr()` leave the password out.
    """

    scheme: str = "mqtt"
    host: str = "localhost"
    port: int = 1883
    path: str = ""
    username: str | None = None
    password: SecretStr | None = None
    source: str = field(default="default", compare=False)
    """Who named this broker, for the texts of errors: `--broker`, `run(broker=)`, `MQTT_URL`, `App(broker=)`, …"""

    @classmethod
    def parse(cls, url: str, *, source: str = "broker URL") -> Broker:
        """The broker that `url` names: `scheme://[user[:password]@]host[:port][/path]`, or only `host[:port]`.

        Ports default to 1883 (mqtt), 8883 (mqtts), 80 (ws) and 443 (wss). User and password are percent-decoded.
        Raises `ConfigurationError`, whose text never holds what could be a password.
        """
        try:
            return _parse(url, source)
        except ValueError as error:
            problem = f"{error} ({source})"
        raise ConfigurationError(problem)  # outside of `except`: the cause may hold the URL

    @property
    def tls(self) -> bool:
        """True for mqtts and wss."""
        return self.scheme in {"mqtts", "wss"}

    @property
    def loopback(self) -> bool:
        """True when what is sent stays on this machine."""
        if self.scheme == "unix" or self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """`host:port` (IPv6 in brackets), or the path of the Unix socket."""
        if self.scheme == "unix":
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without the password, and without the query of a WebSocket path (it may be a signature)."""
        user = f"{quote(self.username, safe='')}@" if self.username is not None else ""
        if self.scheme == "unix":
            return f"unix://{user}{self.path}"
        path, query, _ = self.path.partition("?")
        return f"{self.scheme}://{user}{self.address}{path}{query and '?…'}"

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Broker({self.url!r}, source={self.source!r})"


def resolve_broker(
    cli: str | None, run: str | None, settings: Settings, app: str | None, *, called: str = "run(broker=)"
) -> Broker:
    """The broker to connect to, by precedence.

    `--broker` > `run(broker=)` > environment > `.env` > `App(broker=)` > localhost:1883. In the environment `MQTT_URL`
    goes before `MQTT_BROKER`. `MQTT_USERNAME` and `MQTT_PASSWORD` complete a URL that names no user, or the same user
    without a password. Raises `ConfigurationError`, whose text names the source; `called` is that of `run`.
    """
    if cli is not None:
        broker = Broker.parse(cli, source="--broker")
    elif run is not None:
        broker = Broker.parse(run, source=called)
    elif settings.url is not None:
        broker = Broker.parse(settings.url.get_secret_value(), source="MQTT_URL")
    elif settings.broker is not None:
        broker = _from_host(settings.broker, settings, "MQTT_BROKER")
    elif app is not None:
        broker = Broker.parse(app, source="App(broker=)")
    else:
        broker = _from_host("localhost", settings, "default" if settings.port is None else "MQTT_PORT")
    return _with_credentials(broker, settings)


def _from_host(host: str, settings: Settings, source: str) -> Broker:
    if host.count(":") == 1 or "@" in host or "://" in host:
        raise ConfigurationError(f"{source} is a host name only: use MQTT_PORT for a port, MQTT_URL for a URL")
    try:
        _check_host(host)
    except ValueError as error:
        raise ConfigurationError(f"{error} ({source})") from None
    # Plain text where TLS was meant would show the password: whatever hints at TLS turns it on.
    tls = settings.port == _TLS_PORT or any((settings.tls_ca_file, settings.tls_cert_file, settings.tls_insecure))
    scheme = "mqtts" if tls else "mqtt"
    return Broker(scheme, host, settings.port or _DEFAULT_PORTS[scheme], source=source)


def _with_credentials(broker: Broker, settings: Settings) -> Broker:
    username = settings.username if broker.username is None else broker.username
    password = broker.password
    if password is None and settings.username in {None, username}:
        password = settings.secret_password()
    if password is not None and username is None and settings.protocol == "3.1.1":
        raise ConfigurationError(
            "a password without a user name is not possible on MQTT 3.1.1 [MQTT-3.1.2-22]: set MQTT_USERNAME"
        )
    return replace(broker, username=username, password=password)


def _parse(url: str, source: str) -> Broker:
    if not url.isprintable() or not url or " " in url:
        raise ValueError(f"a broker URL has no spaces or control characters and is not empty: use {_FORM}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "mqtt", url
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        # What stands there may be part of a password that was not encoded.
        shown = f" {scheme!r}" if re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) else ""
        raise ValueError(f"unknown scheme{shown}: use mqtt, mqtts, ws, wss, unix")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    credentials, at, location = authority.rpartition("@")
    if "@" in credentials or "@" in tail:
        raise ValueError(
            "the user or password holds a character that ends it: percent-encode the password (@ is %40, / is %2F)"
        )
    username, colon, password = credentials.partition(":")
    host, port = _location(scheme, location)
    return Broker(
        scheme,
        host,
        port,
        _path(scheme, tail),
        _decoded(username) if at and username else None,
        SecretStr(_decoded(password)) if colon else None,
        source,
    )


def _location(scheme: str, location: str) -> tuple[str, int]:
    if scheme == "unix":
        if location:
            raise ValueError("a Unix socket is given by its absolute path: unix:///run/mosquitto.sock")
        return "", 0
    parts = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([^:]*))?", location)
    if parts is None:
        raise ValueError("cannot tell host and port apart: write an IPv6 address in brackets, mqtt://[::1]:1883")
    host, port = parts[1], parts[2]
    if host.startswith("["):
        host = unquote(host[1:-1])
        if ":" not in host:
            raise ValueError(f"{host!r} is not an IPv6 address: only those stand in brackets")
    _check_host(host)
    return host, _port(port) if port else _DEFAULT_PORTS[scheme]


def _port(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", text):
        # Not shown: in `mqtt://user:password` without a host this is the password.
        raise ValueError(f"port must be 1-65535, and is not a number (the form is {_FORM})")
    if len(text) > 5 or not 1 <= int(text) <= 65535:
        raise ValueError(f"port must be 1-65535, got {text[:20]!r}")
    return int(text)


def _check_host(host: str) -> None:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IPv6 address") from None
    elif not host.isprintable() or not re.fullmatch(r"[^\s/?#@:\[\]%\\\"<>^`{|}]+", host):
        raise ValueError(f"{host!r} is not a host name" if host else f"the broker's host is missing: use {_FORM}")
    else:
        try:
            host.encode("idna")  # as the resolver does
        except UnicodeError:
            text = f"{host!r} is not a host name: what stands between its dots has 1 to 63 characters"
            raise ValueError(text) from None


def _path(scheme: str, tail: str) -> str:
    if "#" in tail:
        raise ValueError("a broker URL has no '#': percent-encode the password, or leave out what follows the '#'")
    if scheme == "unix":
        if len(tail) < 2 or not tail.startswith("/"):
            raise ValueError("a Unix socket is given by its absolute path: unix:///run/mosquitto.sock")
        return _decoded(tail)
    if scheme in {"ws", "wss"}:
        return tail if tail.startswith("/") else "/mqtt" + tail
    if tail not in {"", "/"}:
        raise ValueError(f"only ws:// and wss:// have a path: leave out what follows the port of {scheme}://")
    return ""


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("a '%' that is not a code stands in the URL: percent-encode the password (% is %25)")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise ValueError("a percent-encoded part of the URL is not UTF-8")
