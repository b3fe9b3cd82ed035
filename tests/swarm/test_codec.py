from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import codec
from swarm.errors import ProtocolError
from swarm.ids import CallId

LIMIT = 1 << 16
INTS = st.integers(-(2**64) + 1, 2**64 - 1)
VALUES: st.SearchStrategy[codec.Value] = st.recursive(
    INTS | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_encoded_decodes_to_itself(value: codec.Value) -> None:
    assert codec.decode(codec.encode(value), limit=LIMIT) == value


@given(st.binary(max_size=60) | st.text("0123456789:-ideal x", max_size=40).map(str.encode))
def test_bytes_that_decode_are_canonical(raw: bytes) -> None:
    try:
        value = codec.decode(raw, limit=LIMIT)
    except ProtocolError:
        return
    assert codec.encode(value) == raw


@given(VALUES, st.data())
def test_a_damaged_value_never_escapes_as_another_error(value: codec.Value, data: st.DataObject) -> None:
    raw = bytearray(codec.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b"ilde0123456789:-+_ "))
    try:
        decoded = codec.decode(bytes(raw), limit=LIMIT)
    except ProtocolError:
        return
    assert codec.encode(decoded) == raw


def test_golden_encodings() -> None:
    assert codec.encode({b"b": 2, b"a": [b"", -1, {}]}) == b"d1:al0:i-1edee1:bi2ee"
    assert codec.decode(b"d1:al0:i-1edee1:bi2ee", limit=LIMIT) == {b"b": 2, b"a": [b"", -1, {}]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"i-0e",
        b"i01e",
        b"i 1e",
        b"i1_0e",
        b"ie",
        b"i1",
        b"01:a",
        b"+1:a",
        b"2:a",
        b"1:ab",
        b"-1:",
        b"e",
        b"l",
        b"le0:",
        b"d1:ae",
        b"di1ei2ee",
        b"d1:a",
        b"d1:bi1e1:ai2ee",
        b"d1:ai1e1:ai2ee",
        b"i18446744073709551616e",
        b"99999999999999999999:",
    ],
)
def test_what_is_not_canonical_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(raw, limit=LIMIT)


def test_a_negative_key_length_does_not_send_the_decoder_round_for_ever() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(b"d0:0:-5:e", limit=LIMIT)


def test_nesting_is_bounded_both_ways() -> None:
    deepest = b"l" * codec.MAX_DEPTH + b"e" * codec.MAX_DEPTH
    assert codec.encode(codec.decode(deepest, limit=LIMIT)) == deepest
    with pytest.raises(ProtocolError, match="nested deeper"):
        codec.decode(b"l" + deepest + b"e", limit=LIMIT)
    with pytest.raises(ProtocolError, match="nested deeper"):
        codec.decode(b"l" * 50_000, limit=LIMIT)
    value: Any = []
    for _ in range(codec.MAX_DEPTH):
        value = [value]
    with pytest.raises(ProtocolError, match="nested deeper"):
        codec.encode([value])


def test_the_limit_is_in_bytes() -> None:
    assert codec.decode(b"3:abc", limit=5) == b"abc"
    with pytest.raises(ProtocolError, match="limit of 4"):
        codec.decode(b"3:abc", limit=4)


def test_ids_are_byte_strings() -> None:
    call = CallId(bytes(range(16)))
    assert codec.encode({call: [call]}) == b"d16:" + call + b"l16:" + call + b"ee"


@pytest.mark.parametrize("value", [True, "text", None, 1.5, (1,), {"a": 1}, {1: 1}, [b"", "x"], 2**64])
def test_other_types_have_no_form(value: Any) -> None:
    with pytest.raises(ProtocolError):
        codec.encode(value)
