"""docs/checking.md says what the commands say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mqttapi.cli import main
from mqttapi.cli.checks import CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "checking.md").read_text("utf-8")


def test_the_output_of_check_is_as_it_stands_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "examples.checking:app"])
    assert ended.value.code == 0
    shown = re.search(r"\$ mqttapi check examples.checking:app\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert capsys.readouterr().out == shown[1]


def test_the_table_has_every_check() -> None:
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \| (?:error|warning|note)", PAGE, re.MULTILINE)) == set(CHECKS)
