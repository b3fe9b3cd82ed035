"""The roster's own KRPC methods. Both carry ``target``, so that nodes which do not know them answer like find_node.

cap_get  target, h how many, and where they are asked for: s span, w whole, p price cap, g region
         -> nodes, token, cap [entry …], n how many are kept here, d how many bits of shard their writers use
cap_put  target, token, m manifest id, x shard, e entry  -> nothing, or an error
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dht.fields import Dictionary, read_bytes, read_count, read_flag, read_target
from dht.keys import Target
from dht.roster import (
    MAX_ASKED,
    MAX_DEPTH,
    MAX_ENTRY,
    MAX_PRICE,
    REGION_SIZE,
    Filter,
    Shard,
    pack_label,
    roster_target,
    unpack_label,
)
from swarm.errors import ProtocolError, UsageError
from swarm.ids import ManifestId

MAX_TOKEN = 64
MAX_COUNT = 0xFFFF  # entries that a storer may claim to keep
MAX_ENTRIES_READ = 32  # of one answer: four times what an honest one carries


@dataclass(frozen=True, slots=True, kw_only=True)
class CapGet:
    """Some workers of the roster under ``target`` that ``wanted`` admits, and a token to write there."""

    method: ClassVar[bytes] = b"cap_get"
    target: Target
    wanted: Filter

    def arguments(self) -> Dictionary:
        """The query's arguments without the sender's id."""
        wanted = self.wanted
        filled: Dictionary = {b"h": wanted.how_many, b"target": self.target}
        if wanted.span is not None:
            filled[b"s"] = list(wanted.span)
        if wanted.whole:
            filled[b"w"] = 1
        if wanted.most_price is not None:
            filled[b"p"] = wanted.most_price
        if wanted.region:
            filled[b"g"] = pack_label(wanted.region, REGION_SIZE)
        return filled

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        """Read the arguments. Raises `ProtocolError`."""
        region = arguments.get(b"g")
        try:
            wanted = Filter(
                span=_read_span(arguments),
                whole=read_flag(arguments, b"w"),
                most_price=read_count(arguments, b"p", MAX_PRICE) if b"p" in arguments else None,
                region="" if region is None else unpack_label(read_bytes(arguments, b"g", exactly=REGION_SIZE)),
                how_many=min(read_count(arguments, b"h"), MAX_ASKED),
            )
        except UsageError as error:
            raise ProtocolError(error.message) from error
        return cls(target=read_target(arguments, b"target"), wanted=wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapPut:
    """Keep this entry in that shard of the model's roster."""

    method: ClassVar[bytes] = b"cap_put"
    manifest_id: ManifestId
    shard: Shard
    entry: bytes
    token: bytes

    @property
    def target(self) -> Target:
        """Where it is kept."""
        return roster_target(self.manifest_id, self.shard)

    def arguments(self) -> Dictionary:
        """The query's arguments without the sender's id."""
        return {
            b"e": self.entry,
            b"m": self.manifest_id,
            b"target": self.target,
            b"token": self.token,
            b"x": self.shard.pack(),
        }

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        """Read the arguments. Raises `ProtocolError`."""
        query = cls(
            manifest_id=ManifestId(read_bytes(arguments, b"m", exactly=ManifestId.size)),
            shard=Shard.unpack(read_bytes(arguments, b"x", exactly=Shard.size)),
            entry=read_bytes(arguments, b"e", most=MAX_ENTRY),
            token=read_bytes(arguments, b"token", most=MAX_TOKEN),
        )
        if query.target != read_target(arguments, b"target"):
            raise ProtocolError("cap_put's target is another roster's")
        return query


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterReply:
    """What a storer says of a roster: signed entries as they came, how many it keeps, and the writers' depth."""

    entries: tuple[bytes, ...] = ()
    count: int = 0
    depth: int = 0

    def body(self) -> Dictionary:
        """Its fields of an answer."""
        return {b"cap": list(self.entries), b"d": self.depth, b"n": self.count}

    @classmethod
    def read(cls, body: Dictionary) -> Self | None:
        """Read the fields of an answer, None where they are not there. Malformed entries are left out."""
        if not isinstance(body.get(b"cap"), list):
            return None
        raw = [entry for entry in body[b"cap"][:MAX_ENTRIES_READ] if isinstance(entry, bytes)]
        return cls(
            entries=tuple(entry for entry in raw if len(entry) <= MAX_ENTRY),
            count=read_count(body, b"n", MAX_COUNT),
            depth=read_count(body, b"d", MAX_DEPTH),
        )

    def without_last(self) -> RosterReply:
        """One entry less, to fit a datagram."""
        return RosterReply(entries=self.entries[:-1], count=self.count, depth=self.depth)


def _read_span(arguments: Dictionary) -> tuple[int, int] | None:
    span = arguments.get(b"s")
    if span is None:
        return None
    if not isinstance(span, list) or len(span) != 2 or not all(isinstance(bound, int) for bound in span):
        raise ProtocolError("cap_get's span is none")
    return span[0], span[1]
