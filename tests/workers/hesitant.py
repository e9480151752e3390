"""`mqttapi` with a supervisor that hesitates: `python -m tests.workers.hesitant run`.

While there is a file `hesitate` in its directory, the next start of a process removes that, and is not done before there is
a file `go`. The process itself runs already.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from mqttapi.cli import main
from mqttapi.workers.process import Process

_start = Process.start


async def _hesitating(*arguments: Any, **options: Any) -> Process:
    hesitates = Path("hesitate").exists()
    Path("hesitate").unlink(missing_ok=True)
    process = await _start(*arguments, **options)
    while hesitates and not Path("go").exists():
        await asyncio.sleep(0.01)
    return process


if __name__ == "__main__":
    Process.start = _hesitating  # type: ignore[method-assign]
    main(sys.argv[1:])
