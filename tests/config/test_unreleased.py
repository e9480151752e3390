from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mqttapi.config.unreleased import Unreleased

IDS = {1: 0xFFFF_FFFF_FFFF, 65_535: 0}


def noted(directory: Path, client_id: str = "plant-0", broker: str = "h:1") -> Unreleased:
    Unreleased(client_id, directory, broker).save(IDS)
    return Unreleased(client_id, directory, broker)


def test_what_was_saved_is_known_to_the_next_process_and_to_no_other(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    assert noted(directory).take() == IDS
    assert Unreleased("plant-0", directory, "h:1").take() == {}
    assert list(directory.iterdir()) == []


def test_a_process_is_not_told_what_it_has_noted_itself(tmp_path: Path) -> None:
    unreleased = Unreleased("plant-0", tmp_path, "h:1")
    assert unreleased.take() == {}
    unreleased.save(IDS)
    assert unreleased.take() == {}
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_there_is_nothing_to_note(tmp_path: Path) -> None:
    Unreleased("plant-0", tmp_path / "new", "h:1").save({})
    assert list(tmp_path.iterdir()) == []


def test_client_ids_are_kept_apart(tmp_path: Path) -> None:
    noted(tmp_path, "plant-0")
    assert Unreleased("plant-1", tmp_path, "h:1").take() == {}
    assert Unreleased("plant/0", tmp_path, "h:1").take() == {}
    assert Unreleased("plant-0", tmp_path, "h:1").take() == IDS


def test_a_connection_elsewhere_removes_it_unused(tmp_path: Path) -> None:
    """It may be the same broker under another name, and then it will be out of date."""
    noted(tmp_path, broker="h:1")
    assert Unreleased("plant-0", tmp_path, "h:2").take() == {}
    assert Unreleased("plant-0", tmp_path, "h:1").take() == {}


@pytest.mark.parametrize("age", [3700, -60])
def test_an_old_file_is_removed_unused_and_so_is_one_of_the_future(tmp_path: Path, age: float) -> None:
    unreleased = noted(tmp_path)
    content: dict[str, Any] = json.loads(unreleased.path.read_text())
    content["at"] -= age
    unreleased.path.write_text(json.dumps(content))
    assert unreleased.take() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"\0" * 50,
        b'{"client_id": "plant-0", "broker": "h:1", "at": 0, "ids": [[1e999, 1]]}',
    ],
)
def test_a_damaged_file_is_a_warning_and_is_removed(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    unreleased = Unreleased("plant-0", tmp_path, "h:1")
    unreleased.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert unreleased.take() == {}
    assert "is damaged" in caplog.messages[0]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        Unreleased("plant-0", tmp_path / "file", "h:1").save(IDS)
    assert "cannot note 2 QoS 2 messages that plant-0 has handled" in caplog.messages[0]


def test_what_cannot_be_removed_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreleased = noted(tmp_path)

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with caplog.at_level(logging.WARNING):
        assert unreleased.take() == {}
    assert "cannot read and remove the QoS 2 messages that plant-0 had handled" in caplog.messages[0]


@pytest.mark.skipif(sys.platform == "win32", reason="a directory cannot be opened there")
def test_what_was_used_does_not_come_back_when_the_machine_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreleased = noted(tmp_path)
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, unreleased.path.exists())))
    unreleased.take()
    assert synced == [(tmp_path.stat().st_ino, False)]
