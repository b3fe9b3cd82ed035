"""Identifiers: distinct things have distinct types, all of them byte strings of a fixed size.

They compare and hash as bytes, print as hex, and refuse any other length when they are made.
"""

from __future__ import annotations

from typing import ClassVar, Self


class FixedBytes(bytes):
    """A byte string of exactly ``size`` bytes."""

    size: ClassVar[int] = 0

    def __new__(cls, value: bytes) -> Self:
        if len(value) != cls.size:
            raise ValueError(f"{cls.__name__} takes {cls.size} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the hex form (a leading ``0x`` is allowed). Raises `ValueError` on anything else."""
        digits = text.removeprefix("0x")
        if len(digits) != 2 * cls.size:  # fromhex skips spaces
            raise ValueError(f"{cls.__name__} takes {2 * cls.size} hex digits, not {len(digits)}")
        return cls(bytes.fromhex(digits))

    @property
    def short(self) -> str:
        """The first eight hex digits, for people."""
        return self.hex()[:8]

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


class PeerId(FixedBytes):
    """A peer's Ed25519 public key, 32 bytes."""

    size = 32


class ContentHash(FixedBytes):
    """SHA-256 of an object served by hash, 32 bytes."""

    size = 32


class ManifestId(ContentHash):
    """SHA-256 of a signed manifest, 32 bytes."""


class InfoHash(FixedBytes):
    """A BitTorrent v2 info-hash: SHA-256 of the info dictionary, 32 bytes (BEP 52)."""

    size = 32

    @property
    def truncated(self) -> bytes:
        """The 20 bytes under which a v2 torrent is announced in the DHT (BEP 52)."""
        return self[:20]


class SessionId(FixedBytes):
    """One generation's state across a chain, 16 random bytes."""

    size = 16


class CallId(FixedBytes):
    """One billed call, 16 random bytes: whatever is retried, one call id is billed once."""

    size = 16


class Address(FixedBytes):
    """An account or contract on an EVM chain, 20 bytes."""

    size = 20
