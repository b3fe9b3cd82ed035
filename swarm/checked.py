"""What is known of a file on disk: which of its pieces were read back and hashed, and how the file looked then.

A piece is served or read after a restart without another look only while the file looks the same; else whatever is
there is hashed again. A file that was not synced is trusted only within the same boot of the machine: the bytes
outlive a killed process, not a power cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarm import codec
from swarm.errors import ProtocolError

MAX_RECORD = 1 << 18  # bytes: a bit for each of the 2**20 pieces that a torrent may have
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """How a file looks from outside: any write changes it."""

    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One file's checked pieces, numbered within the file."""

    size: int
    """Bytes of the whole file, however much of it is there."""
    piece_length: int
    pieces: frozenset[int]
    stamp: Stamp
    boot: bytes = b""
    """The boot of the machine that it holds for; empty once the file was synced."""
    reserved: int = 0
    """Bytes that the file is about to take on disk."""

    @property
    def count(self) -> int:
        """Pieces of the whole file."""
        return -(-self.size // self.piece_length)

    @property
    def complete(self) -> bool:
        """Whether every piece was checked."""
        return len(self.pieces) == self.count

    def holds(self, stamp: Stamp, boot: bytes) -> bool:
        """Whether it still tells the truth about a file that looks like ``stamp`` now."""
        return self.stamp == stamp and self.boot in (b"", boot)

    def recut(self, piece_length: int) -> frozenset[int]:
        """The pieces of another length that lie wholly within checked ones."""
        if piece_length == self.piece_length:
            return self.pieces
        last = -(-self.size // piece_length)
        return frozenset(
            piece
            for piece in range(last)
            if self.pieces.issuperset(
                range(
                    piece * piece_length // self.piece_length,
                    -(-min((piece + 1) * piece_length, self.size) // self.piece_length),
                )
            )
        )

    def encode(self) -> bytes:
        """Canonical bytes."""
        stamp = [self.stamp.size, self.stamp.mtime_ns, self.stamp.ctime_ns]
        return codec.encode(
            {
                b"boot": self.boot,
                b"piece length": self.piece_length,
                b"pieces": _pack(self.pieces, self.count),
                b"reserved": self.reserved,
                b"size": self.size,
                b"stamp": stamp,
                b"version": VERSION,
            }
        )

    @classmethod
    def decode(cls, raw: bytes) -> Checked:
        """Read `encode`'s bytes. Raises `ProtocolError` for anything else."""
        match codec.decode(raw, limit=MAX_RECORD):
            case {
                b"boot": bytes(boot),
                b"piece length": int(piece_length),
                b"pieces": bytes(pieces),
                b"reserved": int(reserved),
                b"size": int(size),
                b"stamp": [int(stamp_size), int(mtime_ns), int(ctime_ns)],
                b"version": 1,
            } if size > 0 and piece_length > 0:
                return cls(
                    size=size,
                    piece_length=piece_length,
                    pieces=frozenset(_unpack(pieces, -(-size // piece_length))),
                    stamp=Stamp(size=stamp_size, mtime_ns=mtime_ns, ctime_ns=ctime_ns),
                    boot=boot,
                    reserved=reserved,
                )
        raise ProtocolError("not a record of checked pieces")


def _pack(pieces: Iterable[int], count: int) -> bytes:
    bits = bytearray(-(-count // 8))
    for piece in pieces:
        bits[piece >> 3] |= 1 << (piece & 7)
    return bytes(bits)


def _unpack(bits: bytes, count: int) -> Iterable[int]:
    if len(bits) != -(-count // 8):
        raise ProtocolError("a record of checked pieces has another length than its file gives")
    return (piece for piece in range(count) if bits[piece >> 3] >> (piece & 7) & 1)
