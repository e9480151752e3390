from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mqttapi.config.record import Record

SUFFIX = r"-l[0-9]+"


def test_what_was_saved_is_known_to_the_next_process(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    Record("plant-0", directory, "h:1").save({"a/+", "$share/g/b"})
    assert Record("plant-0", directory, "h:1").load() == {"a/+", "$share/g/b"}
    assert [path.suffix for path in directory.iterdir()] == [".json"]


def test_another_client_id_and_another_broker_are_kept_apart(tmp_path: Path) -> None:
    Record("plant-0", tmp_path, "h:1").save({"a"})
    assert Record("plant-0", tmp_path, "h:2").load() == frozenset()
    assert Record("plant/0", tmp_path, "h:1").load() == frozenset()
    assert Record("plant-1", tmp_path, "h:1").load() == frozenset()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"filters": 3}', b"{}"])
def test_a_file_that_is_damaged_is_a_warning(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    record = Record("plant-0", tmp_path, "h:1")
    record.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert record.load() == frozenset()
    assert len(caplog.messages) == 1


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    record = Record("plant-0", tmp_path / "file", "h:1")
    with caplog.at_level(logging.WARNING):
        record.save({"a"})
    assert "cannot note which filters plant-0 subscribes to" in caplog.messages[0]


def test_siblings_are_the_other_links_of_the_same_app_at_the_same_broker(tmp_path: Path) -> None:
    for client_id, broker in [("p-0", "h:1"), ("p-0-l1", "h:1"), ("p-0-l2", "h:2"), ("p-0-x", "h:1"), ("q-l1", "h:1")]:
        Record(client_id, tmp_path, broker).save({"a"})
    (tmp_path / "x.filters.json").write_text("nonsense")
    (tmp_path / "y.filters.json").write_text(json.dumps({"client_id": 3}))
    record = Record("p-0", tmp_path, "h:1")
    assert record.siblings(SUFFIX) == ["-l1"]
    Record("p-0-l1", tmp_path, "h:1").forget()
    Record("p-0-l1", tmp_path, "h:1").forget()
    assert record.siblings(SUFFIX) == []
    assert Record("p-0", tmp_path / "missing", "h:1").siblings(SUFFIX) == []
