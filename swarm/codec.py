"""Strict bencode (BEP 3): one byte string for one value. The one module that imports bencode.py.

The library accepts unsorted and duplicate keys and odd integers, so whatever it decodes is encoded again and must
give the same bytes. Nesting is bounded both ways: the library recurses.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from bencodepy import Bencode, BencodeDecodeError

from swarm.errors import ProtocolError

Value: TypeAlias = int | bytes | list[Any] | dict[bytes, Any]

MAX_DEPTH = 32  # deeper than any manifest, torrent or KRPC message; far from Python's recursion limit

_BENCODE = Bencode(encoding=None)


def encode(value: Value) -> bytes:
    """Canonical bencode of integers, byte strings, lists and dictionaries with byte-string keys.

    Raises `ProtocolError` for any other type (bool and str included: they would not decode to themselves).
    """
    _check(value, 0)
    return bytes(_BENCODE.encode(value))


def decode(raw: bytes, *, limit: int) -> Value:
    """The value whose canonical encoding is exactly ``raw``, at most ``limit`` bytes.

    Raises `ProtocolError` for anything else: trailing bytes, unsorted or duplicate keys, leading zeros, deep nesting.
    """
    if len(raw) > limit:
        raise ProtocolError(f"bencoded value of {len(raw)} bytes is over the limit of {limit}")
    if not raw or raw[0] not in b"idl0123456789":
        raise ProtocolError("not a bencoded value")
    try:
        value: Value = _BENCODE.decode(raw)
    except (BencodeDecodeError, ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise ProtocolError("not a bencoded value") from error
    if encode(value) != raw:
        raise ProtocolError("bencoded value is not in canonical form")
    return value


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"bencoded value is nested deeper than {MAX_DEPTH}")
    if type(value) is int or isinstance(value, bytes):
        return
    if isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, bytes):
                raise ProtocolError(f"dictionary keys are byte strings, not {type(key).__name__}")
            _check(item, depth + 1)
    else:
        raise ProtocolError(f"bencode has no form for {type(value).__name__}")
