"""What `examples.cpu_bound` has a process of a pool do: a module of its own, so that this is all that process imports."""

from itertools import pairwise


def edges(image: bytes, threshold: int = 32) -> int:
    """How many neighbours of a grey image differ by more than the threshold."""
    return sum(abs(left - right) > threshold for left, right in pairwise(image))
