from __future__ import annotations

import re
from pathlib import Path

from mqttapi.config import Setting, Settings, defaults, resolve_broker, unknown_variables

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
UNITS = {"bytes": "MiB", "seconds": "s"}


def shown(setting: Setting) -> str:
    match setting.default, setting.unit:
        case None, _:
            return ""
        case bool() as value, _:
            return f"`{str(value).lower()}`"
        case int() as value, "bytes":
            return f"{value / 2**20:g} MiB"
        case int() | float() as value, unit:
            return f"{value:,.0f} {UNITS.get(unit, unit)}"
        case value, _:
            return f"`{value}`"


def test_the_table_of_settings_is_true() -> None:
    rows = "".join(f"| `{setting.variable}` | {shown(setting)} | {setting.meaning} |\n" for setting in defaults())
    found = re.search(r"keeps this table true -->\n(.*)<!-- end of settings -->", PAGE, re.DOTALL)
    assert found is not None
    assert found[1] == f"\n| variable | default | meaning |\n|---|---|---|\n{rows}\n"


def test_every_setting_says_what_it_means() -> None:
    assert all(setting.meaning for setting in defaults())


def test_variables_are_named_by_one_rule() -> None:
    for setting in defaults():
        assert re.sub("^MQTT(API)?_", "", setting.variable).lower() == setting.name


def test_the_example_is_valid(tmp_path: Path) -> None:
    found = re.search(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    (tmp_path / ".env").write_text(found[1])
    settings = Settings.load()
    assert unknown_variables() == []
    assert resolve_broker(None, None, settings, None).url == "mqtts://plant@broker.example:8883"
    assert (settings.max_in_flight, settings.max_payload) == (200, 256 * 1024)
