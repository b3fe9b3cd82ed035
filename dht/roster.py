"""Roster entries: who serves which layers of a model now, said by each worker itself in at most 160 signed bytes.

A roster is the set of entries kept under SHA-1("cap1" ‖ manifest id ‖ shard). The shard is a prefix of the SHA-1 of
the writer's key, so nobody chooses where it writes, and a crowded roster splits without anybody deciding it:

    depth 0        one roster for the model
    depth d        2^d rosters; a worker writes to its own, and now and then to the one at the top, where a
                   reader begins and finds a random sample of all

Layout, big-endian, signed with the manifest id before it (which readers and storers know and the record omits):
version 1, worker 32, host 4 or 16, port 2, dht_port 2, start 2, stop 2, variant 4, region 2, price_in 8, price_out 8,
free_slots 2, decode_rate 4, depth 1, expiry 4, seq 6, signature 64. In all 148 bytes, or 160 with IPv6.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar, Self

from dht.keys import Target
from swarm.errors import ProtocolError, UsageError
from swarm.identity import SIGNATURE_SIZE, Identity, domain_tag, verify_record
from swarm.ids import ManifestId, PeerId
from swarm.receipts import Price

ENTRY_TAG = domain_tag("swarm-roster/1")
ROSTER_TAG = b"cap1"
VERSION = 1
ENTRY_TTL = 180.0  # seconds: three heartbeats, so that two lost ones cost nothing
MAX_ENTRY = 160  # bytes: eight of them fit an answer of 1 400
MAX_DEPTH = 16  # 65 536 shards of 200 entries: more workers than any model has
MAX_ASKED = 16  # entries in one answer; eight fit, more is for smaller forms to come
MAX_PRICE = 2**64 - 1
VARIANT_SIZE = 4
REGION_SIZE = 2

_TAIL = struct.Struct(">HHHH4s2sQQHIBI6s")
_SIZES = {1 + 32 + host + _TAIL.size + SIGNATURE_SIZE: host for host in (4, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One worker's capacity for one model. ``expiry`` 0 withdraws it; a larger ``seq`` replaces a smaller."""

    worker: PeerId
    host: str
    """Where it is called, numeric."""
    port: int
    """TCP port for calls."""
    dht_port: int
    """UDP port of the DHT node on the same host: storers ping it once before the entry counts."""
    start: int
    stop: int
    variant: str = ""
    """How the weights are kept, up to 4 characters (``int8``); empty for as published."""
    region: str = ""
    """Two letters of its own choosing (ISO 3166 by custom), or empty."""
    price: Price
    free_slots: int
    """Sessions that it would take now."""
    decode_rate: int = 0
    """Measured, in thousandths of a token per second for the whole span."""
    depth: int = 0
    """Into how many bits of shard the worker believes the roster is split."""
    expiry: int
    """Unix seconds."""
    seq: int

    def __post_init__(self) -> None:
        limits = {
            "port": 0xFFFF, "dht_port": 0xFFFF, "stop": 0xFFFF, "free_slots": 0xFFFF, "decode_rate": 2**32 - 1,
            "depth": MAX_DEPTH, "expiry": 2**32 - 1, "seq": 2**48 - 1,
        }  # fmt: skip
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"a roster entry's {name} is from 0 to {most}, not {getattr(self, name)}")
        if not 0 <= self.start < self.stop:
            raise UsageError(f"a roster entry's span [{self.start}, {self.stop}) is empty; give START:STOP")
        if not self.port or not self.dht_port:
            raise UsageError("a roster entry needs the ports that the worker listens on")
        pack_label(self.variant, VARIANT_SIZE)
        pack_label(self.region, REGION_SIZE)

    def pack(self) -> bytes:
        """The record, without its signature."""
        tail = _TAIL.pack(
            self.port, self.dht_port, self.start, self.stop, pack_label(self.variant, VARIANT_SIZE),
            pack_label(self.region, REGION_SIZE), self.price.per_1k_input, self.price.per_1k_output, self.free_slots,
            self.decode_rate, self.depth, self.expiry, self.seq.to_bytes(6, "big"),
        )  # fmt: skip
        return bytes([VERSION]) + self.worker + ip_address(self.host).packed + tail

    def sign(self, identity: Identity, manifest_id: ManifestId) -> SignedEntry:
        """Sign with the worker's peer key for one model."""
        if identity.peer_id != self.worker:
            raise UsageError("a roster entry is signed by the worker that it names")
        record = self.pack()
        return SignedEntry(entry=self, raw=record + identity.sign_record(ENTRY_TAG, manifest_id + record))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedEntry:
    """An entry as it travels: record and signature. Two with the same bytes are equal."""

    entry: Entry
    raw: bytes

    @classmethod
    def read(cls, raw: bytes, manifest_id: ManifestId) -> Self:
        """Check and read one. Raises `ProtocolError` for other bytes, `VerificationError` for another's signature."""
        signed = cls.read_unverified(raw)
        record = raw[:-SIGNATURE_SIZE]
        verify_record(signed.entry.worker, ENTRY_TAG, manifest_id + record, raw[-SIGNATURE_SIZE:])
        return signed

    @classmethod
    def read_unverified(cls, raw: bytes) -> Self:
        """Read one without checking its signature. Raises `ProtocolError`."""
        host_size = _SIZES.get(len(raw))
        if host_size is None or raw[0] != VERSION:
            raise ProtocolError(f"not a roster entry of version {VERSION}")
        worker, packed_host = PeerId(raw[1:33]), raw[33 : 33 + host_size]
        (port, dht_port, start, stop, variant, region, price_in, price_out, slots, rate, depth, expiry, seq) = (
            _TAIL.unpack_from(raw, 33 + host_size)
        )
        try:
            entry = Entry(
                worker=worker, host=str(ip_address(packed_host)), port=port, dht_port=dht_port, start=start, stop=stop,
                variant=unpack_label(variant), region=unpack_label(region),
                price=Price(per_1k_input=price_in, per_1k_output=price_out), free_slots=slots, decode_rate=rate,
                depth=depth, expiry=expiry, seq=int.from_bytes(seq, "big"),
            )  # fmt: skip
        except UsageError as error:
            raise ProtocolError(error.message) from error
        return cls(entry=entry, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a reader wants. Price is what one layer costs for 1000 tokens in and 1000 out together."""

    span: tuple[int, int] | None = None
    """Layers [start, stop); None for any."""
    whole: bool = False
    """Only workers that serve the whole of ``span``, rather than some of it."""
    most_price: int | None = None
    region: str = ""
    """Only this one, or any."""
    how_many: int = 8

    def __post_init__(self) -> None:
        if self.span is not None and not 0 <= self.span[0] < self.span[1] <= 0xFFFF:
            raise UsageError(f"no layers in the span {self.span[0]}:{self.span[1]}; give START:STOP")
        if not 0 <= self.how_many <= MAX_ASKED:
            raise UsageError(f"one question brings up to {MAX_ASKED} workers, not {self.how_many}; ask again for more")
        if self.most_price is not None and not 0 <= self.most_price <= MAX_PRICE:
            raise UsageError(f"a price is from 0 to 2**64 - 1, not {self.most_price}")
        pack_label(self.region, REGION_SIZE)

    def admits(self, entry: Entry) -> bool:
        """Whether the entry is what is wanted."""
        if self.span is not None:
            start, stop = self.span
            if self.whole and not entry.start <= start < stop <= entry.stop:
                return False
            if max(start, entry.start) >= min(stop, entry.stop):
                return False
        if self.most_price is not None and entry.price.per_1k_input + entry.price.per_1k_output > self.most_price:
            return False
        return not self.region or entry.region == self.region


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a roster: the first ``depth`` bits of the SHA-1 of the keys of those who write there."""

    depth: int = 0
    prefix: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= MAX_DEPTH or not 0 <= self.prefix < 1 << self.depth:
            raise ProtocolError(f"no shard {self.prefix} at depth {self.depth}")

    @classmethod
    def of(cls, worker: PeerId, depth: int) -> Self:
        """Where ``worker`` writes at this depth."""
        head = int.from_bytes(hashlib.sha1(worker, usedforsecurity=False).digest()[:4], "big")
        return cls(depth, head >> 32 - depth)

    def holds(self, worker: PeerId) -> bool:
        """Whether ``worker`` writes here."""
        return Shard.of(worker, self.depth) == self

    size: ClassVar[int] = 3

    def pack(self) -> bytes:
        """Three bytes, as the target hashes them and `cap_put` carries them."""
        return bytes([self.depth]) + self.prefix.to_bytes(2, "big")

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read the three bytes. Raises `ProtocolError`."""
        if len(raw) != cls.size:
            raise ProtocolError(f"a shard has {cls.size} bytes, not {len(raw)}")
        return cls(raw[0], int.from_bytes(raw[1:], "big"))


WHOLE = Shard()


def roster_target(manifest_id: ManifestId, shard: Shard = WHOLE) -> Target:
    """Where a roster, or one shard of it, is kept."""
    return Target.of_content(ROSTER_TAG + manifest_id + shard.pack())


def pack_label(text: str, size: int) -> bytes:
    """A short name as ``size`` bytes of printable ASCII, padded with zeros. Raises `UsageError`."""
    if (
        len(text) > size
        or not text.isascii()
        or not all(character.isalnum() or character in "-_" for character in text)
    ):
        raise UsageError(f"a variant or region is up to {size} letters, digits, '-' and '_', not {text!r}")
    return text.encode("ascii").ljust(size, b"\0")


def unpack_label(raw: bytes) -> str:
    """The name in such bytes. Raises `ProtocolError` unless `pack_label` would make exactly these."""
    try:
        text = raw.rstrip(b"\0").decode("ascii")
        if pack_label(text, len(raw)) == raw:
            return text
    except (UnicodeDecodeError, UsageError):
        pass
    raise ProtocolError("a variant or region of a roster entry is not a short name")
