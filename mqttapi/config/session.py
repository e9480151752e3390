"""What the broker keeps for us, and the name under which it does."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Session",
    "client_id",
    "client_id_prefix",
    "client_id_warnings",
    "default_instance",
    "instance_warnings",
]

NEVER: Final = 0xFFFF_FFFF
"""As an expiry: the session never ends [MQTT5 §3.1.2.11.2]."""


@dataclass(frozen=True, slots=True)
class Session:
    """How long the broker keeps the subscriptions, and the messages that wait, of a client that is away.

    `expiry` is in whole seconds, 0 to 0xFFFFFFFF; 0 ends the session with the connection, 0xFFFFFFFF never.
    `clean_start` forgets at connect what the broker kept [MQTT-3.1.2-4].
    Raises `ConfigurationError` for an expiry out of bounds.
    """

    expiry: int = 86_400
    clean_start: bool = False

    def __post_init__(self) -> None:
        expiry: object = self.expiry
        if not isinstance(expiry, int) or isinstance(expiry, bool) or not 0 <= expiry <= NEVER:
            raise ConfigurationError(
                f"Session(expiry=) must be whole seconds, 0-4294967295 (which means never), got {expiry!r}"
            )

    @classmethod
    def transient(cls) -> Session:
        """A session that ends with its connection: for development and tests."""
        return cls(expiry=0, clean_start=True)

    @property
    def persistent(self) -> bool:
        """True when the broker keeps messages while we are away."""
        return self.expiry > 0


def client_id(app: str, instance: str, slot: int | str, *, stem: str | None = None) -> str:
    """The stable client id `<app>-<instance>-<slot>`, or `<stem>-<slot>` where a stem (`MQTT_CLIENT_ID`) is given.

    What is no process of the pool has a text in place of the slot, of `[A-Za-z0-9_-]`.

    Characters of app and instance outside `[A-Za-z0-9_-]` become `-`; a short hash of the original text then keeps
    different names apart. A stem is taken as it is.
    """
    if stem is not None:
        return f"{stem}-{slot}"
    plain = f"{app}-{instance}"
    clean = _clean(plain)
    return f"{clean}-{slot}" if clean == plain else f"{clean}-{_short_hash(plain)}-{slot}"


def client_id_prefix(app: str, *, stem: str | None = None) -> str:
    """What all client ids of an app begin with, on whatever machine."""
    return f"{_clean(app) if stem is None else stem}-"


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)


def client_id_warnings(client_id: str, protocol: str) -> list[str]:
    """A warning for an id that a broker may refuse: on 3.1.1 one longer than 23 characters [MQTT-3.1.3-5]."""
    if protocol != "3.1.1" or len(client_id) <= 23:
        return []
    warning = (
        f"client id {client_id!r} has {len(client_id)} characters, and MQTT 3.1.1 brokers may refuse more than 23: "
        "set a shorter MQTT_INSTANCE or MQTT_CLIENT_ID"
    )
    return [warning]


def default_instance() -> str:
    """The host's name, which tells the replicas of an app apart unless `MQTT_INSTANCE` does."""
    return socket.gethostname() or "localhost"


def instance_warnings(instance: str, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> list[str]:
    """A warning where `instance` is a container's random host name: each restart would begin a new session.

    Call it when neither `MQTT_INSTANCE` nor `MQTT_CLIENT_ID` is given. `environ` (the process's unless given) and
    `root` are where the signs of a container are looked for.
    """
    if not (_in_container(os.environ if environ is None else environ, root) and _looks_random(instance)):
        return []
    warning = (
        f"the container's host name {instance!r} looks random: after a restart the messages that waited for the old "
        "client id are not found. Set MQTT_INSTANCE to a name that stays (or use a StatefulSet)"
    )
    return [warning]


def _in_container(environ: Mapping[str, str], root: Path) -> bool:
    marked = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    return marked or "KUBERNETES_SERVICE_HOST" in environ


def _looks_random(host: str) -> bool:
    # Docker and Podman: the first 12 digits of the container's id. Kubernetes: pods of a Deployment end in the hash
    # of the ReplicaSet and five random characters, those of a DaemonSet or Job in the five only; both alphabets have no
    # vowels, and a StatefulSet's pods end in a number.
    random = r"[bcdfghjklmnpqrstvwxz2456789]"
    return bool(re.fullmatch(rf"[0-9a-f]{{12}}|.+-{random}{{5}}", host)) and not re.search(r"-[0-9]+$", host)


def _short_hash(text: str) -> str:
    return hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
