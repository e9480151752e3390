"""What `benchmarks.cpu_app` has to do: a module of its own, which is all that a process of a pool imports."""

import hashlib
import time


def burn(count: int) -> int:
    """Pure Python: it holds the interpreter's lock."""
    total = 0
    for number in range(count):
        total += number * number
    return total


def digest(size: int) -> bytes:
    """What a C library does without that lock."""
    return hashlib.sha256(bytes(size)).digest()


def calibrated(seconds: float) -> dict[str, int]:
    """The arguments with which each takes so many seconds of CPU time."""
    return {work.__name__: _count(work, seconds) for work in (burn, digest)}


def _count(work: object, seconds: float) -> int:
    assert callable(work)
    count, best = 10_000, float("inf")
    for _ in range(50):
        began = time.process_time()
        work(count)
        best = min(best, (time.process_time() - began) / count)
    return int(seconds / best)
