"""Reading the fields of a KRPC dictionary: each has a kind and a limit, or the packet is refused."""

from __future__ import annotations

from typing import Any, TypeAlias

from dht.contacts import Endpoint
from dht.keys import Target
from swarm.errors import ProtocolError

MAX_SEQ = 2**63 - 1  # BEP 44 keeps sequence numbers in a signed 64-bit integer

Dictionary: TypeAlias = dict[bytes, Any]


def read_bytes(
    source: Dictionary, key: bytes, *, most: int = 0, exactly: int | None = None, default: bytes | None = None
) -> bytes:
    """The byte string under ``key``, of ``exactly`` so many bytes or at ``most`` so many.

    Raises `ProtocolError` where it is missing (without a ``default``), of another kind or another length.
    """
    value = source.get(key, default)
    name = key.decode()
    if not isinstance(value, bytes):
        raise ProtocolError(f"{name} is not a byte string")
    if exactly is not None and len(value) != exactly:
        raise ProtocolError(f"{name} has {len(value)} bytes, not {exactly}")
    if exactly is None and len(value) > most:
        raise ProtocolError(f"{name} has {len(value)} bytes, more than {most}")
    return value


def read_optional(source: Dictionary, key: bytes, *, exactly: int) -> bytes | None:
    """The byte string of ``exactly`` so many bytes under ``key``, None where there is none."""
    return read_bytes(source, key, exactly=exactly) if key in source else None


def read_target(source: Dictionary, key: bytes) -> Target:
    """The 20-byte key under ``key``."""
    return Target(read_bytes(source, key, exactly=Target.size))


def read_count(source: Dictionary, key: bytes, most: int = MAX_SEQ) -> int:
    """The integer under ``key``, from 0 to ``most``. Raises `ProtocolError` for anything else."""
    value = source.get(key)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ProtocolError(f"{key.decode()} is not a number from 0 to {most}")
    return value


def read_optional_count(source: Dictionary, key: bytes) -> int | None:
    """The integer under ``key``, None where there is none."""
    return read_count(source, key) if key in source else None


def read_flag(source: Dictionary, key: bytes) -> bool:
    """Whether the number 1 stands under ``key``: what BEPs use for yes."""
    return source.get(key) == 1


def read_endpoints(values: list[Any]) -> tuple[Endpoint, ...]:
    """Compact addresses; one bad address does not spoil the others."""
    found = []
    for raw in values:
        try:
            found.append(Endpoint.unpack(raw if isinstance(raw, bytes) else b""))
        except ProtocolError:
            continue
    return tuple(found)
