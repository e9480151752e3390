from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.transport.decoded import Decoded


@given(st.lists(st.binary(max_size=2)))
def test_it_gives_what_decoding_gives(keys: list[bytes]) -> None:
    decoded = Decoded(bytes.hex, size=4)
    for key in keys:
        assert decoded[key] == key.hex()


def test_what_comes_again_is_decoded_twice_and_then_known() -> None:
    calls: list[bytes] = []

    def decode(raw: bytes) -> str:
        calls.append(raw)
        return raw.decode()

    decoded = Decoded(decode, size=4)
    assert [decoded[b"a"] for _ in range(5)] == ["a"] * 5
    assert calls == [b"a", b"a"]
    assert decoded.young == {b"a": "a"}


def test_memory_is_bounded_and_young_stays_the_same_object() -> None:
    decoded = Decoded(bytes.hex, size=4)
    young = decoded.young
    for i in range(100):
        for _ in range(3):
            decoded[b"%d" % i]
    assert decoded.young is young
    assert len(young) <= 4
    assert len(decoded._old) <= 4
    assert len(decoded._once) <= 4


def test_long_keys_are_not_kept() -> None:
    decoded = Decoded(bytes.hex, size=4)
    for _ in range(3):
        assert decoded[b"x" * 257] == (b"x" * 257).hex()
    assert not decoded.young


def test_what_does_not_decode_is_not_remembered() -> None:
    decoded = Decoded(bytes.decode, size=4)
    for _ in range(3):
        with pytest.raises(UnicodeDecodeError):
            decoded[b"\xff"]
    assert not decoded.young
    assert not decoded._once
