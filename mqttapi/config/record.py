"""What a client id has subscribed to, on disk: a broker tells nobody which filters a session holds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Record", "file_name"]

log = logging.getLogger("mqttapi.link")


class Record:
    """The filters of one client id at one broker. A record that cannot be read or written is worth a warning, no more.

    Args:
        client_id: Whose subscriptions they are.
        directory: Where the file is; made when it is needed.
        broker: Tells equal client ids at different brokers apart.
    """

    def __init__(self, client_id: str, directory: Path, broker: str) -> None:
        self.client_id = client_id
        self._directory = directory
        self._broker = broker
        self.path = directory / file_name(client_id, broker, "filters")

    def load(self) -> frozenset[str]:
        """The filters that may be in the session; none where nothing is known."""
        try:
            return frozenset(map(str, json.loads(self.path.read_bytes())["filters"]))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read which filters %s had subscribed (%s): %s", self.client_id, self.path, error)
            return frozenset()

    def save(self, filters: Iterable[str]) -> None:
        """Write them down, all or nothing."""
        content = {"client_id": self.client_id, "broker": self._broker, "filters": sorted(filters)}
        draft = self.path.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(json.dumps(content, indent=1) + "\n")
            draft.replace(self.path)
        except OSError as error:
            log.warning("cannot note which filters %s subscribes to (%s): %s", self.client_id, self.path, error)

    def forget(self) -> None:
        """The session is no more."""
        self.path.unlink(missing_ok=True)

    def siblings(self, suffix: str) -> list[str]:
        """What the client ids with a record at this broker have behind this one, where `suffix` (a pattern) fits."""
        found = []
        for path in sorted(self._directory.glob("*.filters.json")):
            try:
                content = json.loads(path.read_bytes())
                other, broker = content["client_id"], content["broker"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if broker == self._broker and other.startswith(self.client_id):
                behind = other[len(self.client_id) :]
                if re.fullmatch(suffix, behind):
                    found.append(behind)
        return found


def file_name(client_id: str, broker: str, what: str) -> str:
    """Of what is noted for a client id; `broker` tells equal ones apart, where it is not empty."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", client_id)[:100]
    key = hashlib.blake2s(f"{client_id}\0{broker}".encode(), digest_size=6).hexdigest()
    return f"{name}.{key}.{what}.json"
