from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.ids import Address, CallId, ContentHash, FixedBytes, InfoHash, ManifestId, PeerId, SessionId

KINDS = [
    (PeerId, 32),
    (ContentHash, 32),
    (ManifestId, 32),
    (InfoHash, 32),
    (SessionId, 16),
    (CallId, 16),
    (Address, 20),
]


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_each_kind_takes_its_own_size_only(kind: type[FixedBytes], size: int) -> None:
    value = kind(bytes(range(size)))
    assert value == bytes(range(size))
    assert hash(value) == hash(bytes(range(size)))
    assert kind.parse(str(value)) == value
    assert kind.parse("0x" + value.hex()) == value
    assert repr(value) == f"{kind.__name__}({value.hex()})"
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(ValueError, match=f"{kind.__name__} takes {size} bytes, not {wrong}"):
            kind(bytes(wrong))


@given(st.binary(min_size=32, max_size=32))
def test_hex_is_exact(raw: bytes) -> None:
    text = str(PeerId(raw))
    assert text == raw.hex()
    for damaged in (text[:-1], text + "0", " " + text, text[:10] + " " + text[10:], text[:-1] + "g", "0x0x" + text):
        with pytest.raises(ValueError, match=r"PeerId|hexadecimal"):
            PeerId.parse(damaged)


def test_people_see_eight_digits() -> None:
    assert PeerId(b"\xab" * 32).short == "abababab"


def test_a_v2_torrent_is_announced_under_twenty_bytes() -> None:
    assert InfoHash(bytes(range(32))).truncated == bytes(range(20))
