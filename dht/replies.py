"""What KRPC answers carry (BEP 5, 32, 33, 44, 51)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dht.bloom import FILTER_SIZE
from dht.contacts import Contact, Endpoint, pack_contacts, unpack_contacts
from dht.fields import Dictionary, read_bytes, read_endpoints, read_optional, read_optional_count
from dht.keys import Target
from dht.queries import MAX_TOKEN
from dht.roster_queries import RosterReply
from swarm.codec import Value
from swarm.errors import ProtocolError

MAX_LIST = 2048  # bytes: as much as a packet has


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Info-hashes that a node keeps peers of (BEP 51)."""

    info_hashes: tuple[Target, ...]
    """Some of them, drawn at random."""

    total: int
    """How many there are in all."""

    interval: int
    """Seconds before which asking again is no use: the same ones would come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Whatever an answer may carry; which fields are there depends on the query.

    ``seeds`` and ``downloaders`` are the filters of BEP 33's BFsd and BFpe.
    """

    nodes: tuple[Contact, ...] = ()
    nodes6: tuple[Contact, ...] = ()
    token: bytes | None = None
    peers: tuple[Endpoint, ...] = ()
    seeds: bytes | None = None
    downloaders: bytes | None = None
    value: Value | None = None
    public_key: bytes | None = None
    seq: int | None = None
    signature: bytes | None = None
    samples: Samples | None = None
    roster: RosterReply | None = None

    def body(self) -> Dictionary:
        filled: Dictionary = {}
        if self.nodes:
            filled[b"nodes"] = pack_contacts(self.nodes)
        if self.nodes6:
            filled[b"nodes6"] = pack_contacts(self.nodes6)
        if self.peers:
            filled[b"values"] = [peer.pack() for peer in self.peers]
        if self.roster is not None:
            filled.update(self.roster.body())
        if self.samples is not None:
            filled[b"samples"] = b"".join(self.samples.info_hashes)
            filled[b"num"], filled[b"interval"] = self.samples.total, self.samples.interval
        optional = {
            b"token": self.token, b"v": self.value, b"k": self.public_key, b"seq": self.seq, b"sig": self.signature,
            b"BFsd": self.seeds, b"BFpe": self.downloaders,
        }  # fmt: skip
        filled.update((key, value) for key, value in optional.items() if value is not None)
        return filled

    @classmethod
    def read(cls, body: Dictionary) -> Self:
        """The reply whose body this is. Raises `ProtocolError` for a field that breaks its rules."""
        values = body.get(b"values", [])
        return cls(
            nodes=unpack_contacts(read_bytes(body, b"nodes", most=MAX_LIST, default=b""), ipv6=False),
            nodes6=unpack_contacts(read_bytes(body, b"nodes6", most=MAX_LIST, default=b""), ipv6=True),
            token=read_bytes(body, b"token", most=MAX_TOKEN) if b"token" in body else None,
            peers=read_endpoints(values) if isinstance(values, list) else (),
            seeds=read_optional(body, b"BFsd", exactly=FILTER_SIZE),
            downloaders=read_optional(body, b"BFpe", exactly=FILTER_SIZE),
            value=body.get(b"v"),
            public_key=read_optional(body, b"k", exactly=32),
            seq=read_optional_count(body, b"seq"),
            signature=read_optional(body, b"sig", exactly=64),
            samples=_read_samples(body) if b"samples" in body else None,
            roster=RosterReply.read(body),
        )


def _read_samples(body: Dictionary) -> Samples:
    raw = read_bytes(body, b"samples", most=MAX_LIST)
    if len(raw) % Target.size:
        raise ProtocolError(f"{len(raw)} bytes are not a whole number of info-hashes")
    info_hashes = tuple(Target(raw[at : at + Target.size]) for at in range(0, len(raw), Target.size))
    total = read_optional_count(body, b"num")
    return Samples(
        info_hashes=info_hashes,
        total=len(info_hashes) if total is None else total,
        interval=read_optional_count(body, b"interval") or 0,
    )
