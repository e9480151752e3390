"""The command line: `mqttapi`, or `python -m mqttapi`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code.

    0: done. 1: it failed while running. 2: wrong usage or configuration, one line on stderr says what. 3: the client
    id is in use elsewhere.

    Args:
        arguments: Without the program's name; None: those of the process.
    """
    from mqttapi.cli.problems import Verbosity, report
    from mqttapi.cli.program import program

    verbosity = Verbosity()
    try:
        code = program(arguments, prog_name="mqttapi", standalone_mode=False, obj=verbosity)
    except Exception as error:  # noqa: BLE001  the last line of defence
        code = report(error, verbosity)
    sys.exit(code or 0)
