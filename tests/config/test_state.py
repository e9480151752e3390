from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from mqttapi.config import state_dir
from mqttapi.errors import ConfigurationError


def test_where_there_is_no_home_the_setting_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs with any user id."""

    def unknown(user: int) -> pwd.struct_passwd:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        ConfigurationError, match=r"there is no home directory .*: set MQTTAPI_STATE_DIR to a directory"
    ):
        state_dir("plant")
    assert state_dir("plant", tmp_path) == tmp_path / "plant"
