"""A bounded memory of what bytes were decoded to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Decoded"]

T = TypeVar("T")


class Decoded(Generic[T]):
    """What bytes that came more than once were decoded to, in two generations of at most `size` each.

    A hit in `young`, which stays the same object, writes nothing. What comes once leaves only its hash: values that
    live longer than a message are work for the garbage collector. Long keys are not kept: strangers cannot fill memory.
    """

    __slots__ = ("_decode", "_old", "_once", "_size", "young")

    def __init__(self, decode: Callable[[bytes], T], size: int) -> None:
        self._decode = decode
        self._size = size
        self._old: dict[bytes, T] = {}
        self._once: set[int] = set()
        self.young: dict[bytes, T] = {}

    def __getitem__(self, raw: bytes) -> T:
        value = self.young.get(raw)
        if value is not None:
            return value
        value = self._old.get(raw)
        if value is None:
            value = self._decode(raw)
            key = hash(raw)
            if key not in self._once:
                if len(self._once) >= self._size:
                    self._once.clear()
                self._once.add(key)
                return value
        if len(raw) <= 256:
            if len(self.young) >= self._size:
                self._old = self.young.copy()
                self.young.clear()
            self.young[raw] = value
        return value
