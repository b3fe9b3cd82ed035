from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.layout import LayoutError
from swarm.strict_json import decode_object


def test_an_object_is_read() -> None:
    value = decode_object(b'{"a": [1, 2.5, null], "b": {"c": true}}', limit=100)
    assert value == {"a": [1, 2.5, None], "b": {"c": True}}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{} x",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_what_two_readers_could_read_differently_is_refused(raw: bytes) -> None:
    with pytest.raises(LayoutError):
        decode_object(raw, limit=2**20)


def test_the_limit_is_kept() -> None:
    with pytest.raises(LayoutError, match="limit of 1"):
        decode_object(b"{}", limit=1)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_layout_error(raw: bytes) -> None:
    try:
        value = decode_object(raw, limit=100)
    except LayoutError:
        return
    assert isinstance(value, dict)
