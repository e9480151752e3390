"""The directory for what outlives a process."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from mqttapi.errors import ConfigurationError

__all__ = ["state_dir"]


def state_dir(app: str, path: Path | None = None) -> Path:
    """The directory of the app called `app`; it may not be there yet.

    It is beneath `path` (`MQTTAPI_STATE_DIR`), else `$STATE_DIRECTORY` (which systemd sets), else
    `$XDG_STATE_HOME/mqttapi`, else `~/.local/state/mqttapi`. Raises `ConfigurationError` where the user has no home.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", app)[:100]
    if safe != app:
        safe += f".{hashlib.blake2s(app.encode(), digest_size=4).hexdigest()}"
    return (path or _default()) / safe


def _default() -> Path:
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if base := os.environ.get("XDG_STATE_HOME"):
        return Path(base, "mqttapi")
    try:
        return Path("~/.local/state/mqttapi").expanduser()
    except RuntimeError:
        raise ConfigurationError(
            "there is no home directory (HOME is not set, and this user is in no list): set MQTTAPI_STATE_DIR to a "
            "directory that is there after a restart, too"
        ) from None
