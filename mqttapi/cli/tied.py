"""Children that end when their parent does, however it ends.

This file is also the program that such a child starts as: it ties itself to its parent and becomes the real command.
(`preexec_fn` would do it without, but is not safe beside the threads of the file watcher.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["end", "spawn"]

_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    orphaned: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own: the terminal's Ctrl-C reaches only the parent, which decides.

    On Linux the child gets the signal `orphaned` when the thread that started it is no more, so start it from a thread
    that stays; it may get it once for each thread of this process. Elsewhere only an orderly end of the parent takes the child along.

    Args:
        command: The program, by its full path, and its arguments.
        environment: Variables over those of this process.
        output: Where stdout and stderr go; None: where the parent's go.
        orphaned: What the child gets when the parent has ended without a word.
    """
    prefix = (
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(orphaned))] if sys.platform == "linux" else []
    )
    return subprocess.Popen(
        [*prefix, *command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL if output else None,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def end(child: subprocess.Popen[bytes], *, patience: float | None) -> int:
    """SIGTERM, and after `patience` seconds SIGKILL (None: never); returns the exit code."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _become(parent: int, orphaned: int, command: Sequence[str]) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, orphaned)
    if os.getppid() == parent:  # else it died before it could be noticed
        os.execv(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
