"""The 160-bit key space of Kademlia: node ids, targets, XOR distance, and ids bound to addresses (BEP 42)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from ipaddress import ip_address

from swarm.errors import UsageError
from swarm.ids import FixedBytes, InfoHash

BITS = 160

_V4_MASK = bytes.fromhex("030f3fff")  # BEP 42: which address bits may choose an id
_V6_MASK = bytes.fromhex("0103070f1f3f7fff")
_CRC32C_POLYNOMIAL = 0x82F63B78


class NodeId(FixedBytes):
    """A DHT node's id, 20 bytes."""

    size = 20


class Target(FixedBytes):
    """A point of the key space that is looked up or stored under, 20 bytes."""

    size = 20

    @classmethod
    def of_content(cls, encoded: bytes) -> Target:
        """SHA-1 of ``encoded``: where BEP 44 keeps it."""
        return cls(hashlib.sha1(encoded, usedforsecurity=False).digest())


def info_target(info_hash: bytes) -> Target:
    """Where peers of a torrent announce: a v1 or truncated info-hash of 20 bytes, or a v2 `InfoHash` (BEP 52).

    Raises `UsageError` for another length.
    """
    if isinstance(info_hash, InfoHash):
        return Target(info_hash.truncated)
    if len(info_hash) != Target.size:
        raise UsageError(f"an info-hash has {Target.size} bytes, or is an InfoHash of 32, not {len(info_hash)} bytes")
    return Target(info_hash)


def distance(a: bytes, b: bytes) -> int:
    """The XOR distance of two 20-byte keys."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def shared_prefix(a: bytes, b: bytes) -> int:
    """How many leading bits two 20-byte keys share, 0 to 160."""
    return BITS - distance(a, b).bit_length()


def secure_id(host: str, noise: bytes) -> NodeId:
    """A node id that ``host`` may use by BEP 42; ``noise`` is 20 random bytes for what the address leaves open."""
    if len(noise) != NodeId.size:
        raise ValueError(f"an id takes {NodeId.size} random bytes, not {len(noise)}")
    crc = _address_checksum(host, noise[-1])
    head = bytes([crc >> 24, crc >> 16 & 0xFF, (crc >> 8 & 0xF8) | (noise[2] & 0x07)])
    return NodeId(head + noise[3:])


@lru_cache(maxsize=1 << 15)  # lookups hear of the same nodes again and again
def is_secure_id(node_id: NodeId, host: str) -> bool:
    """Whether ``host`` may use ``node_id`` by BEP 42. Addresses of local networks may use any."""
    if is_local(host):
        return True
    difference = int.from_bytes(node_id[:4], "big") ^ _address_checksum(host, node_id[-1])
    return difference >> 11 == 0  # the first 21 bits are fixed


@lru_cache(maxsize=1 << 14)
def is_local(host: str) -> bool:
    """Whether ``host`` is a private, loopback or link-local address: it means something here alone."""
    address = ip_address(host)
    return address.is_private or address.is_loopback or address.is_link_local


def _address_checksum(host: str, last: int) -> int:
    packed = ip_address(host).packed
    mask = _V4_MASK if len(packed) == 4 else _V6_MASK
    masked = bytearray(byte & keep for byte, keep in zip(packed, mask, strict=False))
    masked[0] |= (last & 0x07) << 5
    return crc32c(bytes(masked))


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum that BEP 42 hashes addresses with. Bit by bit: it sees 8 bytes per id."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
