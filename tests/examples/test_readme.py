"""The README keeps its word."""

from __future__ import annotations

import re
from pathlib import Path

from mqttapi.publisher import encode_payload
from mqttapi.testing import TestClient

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _code(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith(("#", '"""'))]


def test_its_program_is_the_quickstart() -> None:
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert program
    assert _code(program[1]) == _code((ROOT / "examples" / "quickstart.py").read_text())


async def test_its_pub_has_the_effect_that_it_shows() -> None:
    from examples.quickstart import app

    pub = re.search(r"mqttapi pub (\S+) '(.*)'\n(\S+) (.*)\n", README)
    assert pub
    topic, payload, alert_topic, alert = pub.groups()
    async with TestClient(app) as client:
        await client.publish(topic, payload)
        [publish] = client.published
    assert (publish.topic, encode_payload(publish.payload).decode()) == (alert_topic, alert)


def test_all_of_it_is_on_the_first_screen() -> None:
    first, _, _ = README.partition("## Install")
    assert len(first.splitlines()) < 30
    assert all(word in first for word in ("scripts/demo", "scripts/test", "mqttapi dev", "mqttapi pub"))
