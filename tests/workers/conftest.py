from __future__ import annotations

from tests.cli.conftest import mqttapi

__all__ = ["mqttapi"]
