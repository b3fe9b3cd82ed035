"""Strict bencode (BEP 3): one byte string for one value. The one module that imports bencode.py.

The library accepts unsorted and duplicate keys, and a dictionary key with a negative length sends it round for ever
(``d0:0:-5:e``). So the tokens are walked once before it sees them, nesting is bounded, and whatever it decodes is
encoded again and must give the same bytes.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from bencodepy import Bencode, BencodeDecodeError

from swarm.errors import ProtocolError

Value: TypeAlias = int | bytes | list[Any] | dict[bytes, Any]

MAX_DEPTH = 32  # deeper than any manifest, torrent or KRPC message; far from Python's recursion limit
MAX_INT_BITS = 64  # what other implementations read; Python itself refuses to print much longer ones

_BENCODE = Bencode(encoding=None)
_TOKEN = re.compile(rb"i(?:0|-?[1-9][0-9]{0,19})e|(0|[1-9][0-9]{0,9}):|[lde]")


def encode(value: Value) -> bytes:
    """Canonical bencode of integers, byte strings, lists and dictionaries with byte-string keys.

    Raises `ProtocolError` for any other type (bool and str included: they would not decode to themselves).
    """
    return bytes(_BENCODE.encode(_plain(value, 0)))


def decode(raw: bytes, *, limit: int) -> Value:
    """The value whose canonical encoding is exactly ``raw``, at most ``limit`` bytes.

    Raises `ProtocolError` for anything else: trailing bytes, unsorted or duplicate keys, leading zeros, deep nesting.
    """
    if len(raw) > limit:
        raise ProtocolError(f"bencoded value of {len(raw)} bytes is over the limit of {limit}")
    _walk(raw)
    try:
        value: Value = _BENCODE.decode(raw)
    except (BencodeDecodeError, ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise ProtocolError("not a bencoded value") from error
    if encode(value) != raw:
        raise ProtocolError("bencoded value is not in canonical form")
    return value


def _walk(raw: bytes) -> None:
    """Raise `ProtocolError` unless ``raw`` is exactly one value by the grammar; linear in its length."""
    position = 0
    inside = bytearray()  # per open container: l a list, k a dictionary before a key, v one before a value
    while True:
        token = _TOKEN.match(raw, position)
        if token is None:
            raise ProtocolError(f"not a bencoded value: no token at byte {position}")
        position = token.end()
        kind = raw[token.start()]
        expects_key = inside.endswith(b"k")
        if kind == ord("e"):
            if not inside or inside.endswith(b"v"):
                raise ProtocolError(f"not a bencoded value: nothing ends at byte {token.start()}")
            inside.pop()
        elif token[1] is not None:
            position += int(token[1])
            if expects_key:
                inside[-1] = ord("v")
                continue
        elif expects_key:
            raise ProtocolError(f"not a bencoded value: no key at byte {token.start()}")
        elif kind != ord("i"):
            if len(inside) == MAX_DEPTH:
                raise ProtocolError(f"bencoded value is nested deeper than {MAX_DEPTH}")
            inside.append(ord("l") if kind == ord("l") else ord("k"))
            continue
        if inside.endswith(b"v"):
            inside[-1] = ord("k")
        if not inside:
            break
    if position != len(raw):
        raise ProtocolError(f"bencoded value takes {position} bytes, not {len(raw)}")


def _plain(value: object, depth: int) -> Value:
    """The same value in the library's own types: it looks encoders up by exact type, and ids are kinds of bytes."""
    if depth > MAX_DEPTH:
        raise ProtocolError(f"bencoded value is nested deeper than {MAX_DEPTH}")
    if type(value) is int:
        if value.bit_length() > MAX_INT_BITS:
            raise ProtocolError(f"bencoded integers have at most {MAX_INT_BITS} bits, not {value.bit_length()}")
        return value
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, bytes):
                raise ProtocolError(f"dictionary keys are byte strings, not {type(key).__name__}")
        return {bytes(key): _plain(item, depth + 1) for key, item in value.items()}
    raise ProtocolError(f"bencode has no form for {type(value).__name__}")
