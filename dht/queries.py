"""KRPC queries (BEP 5, 32, 33, 44, 51): one type each, with the arguments it is sent as and read from.

A method is added as one class and one entry of `QUERIES`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

from dht.fields import Dictionary, read_bytes, read_count, read_flag, read_optional_count, read_target
from dht.keys import Target
from dht.roster_queries import CapGet, CapPut
from swarm.codec import Value
from swarm.errors import ProtocolError

MAX_VALUE_RECEIVED = 2048  # bytes: as much as a packet has; what is kept is `dht.items`' business
MAX_TOKEN = 64  # libtorrent's has 4 bytes, ours 8


class Family(enum.Enum):
    """A kind of address, as ``want`` names it (BEP 32)."""

    IPV4 = b"n4"
    IPV6 = b"n6"


Want: TypeAlias = tuple[Family, ...]  # which kinds of contacts to name; none means the asker's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Are you there? (BEP 5)"""

    method: ClassVar[bytes] = b"ping"

    def arguments(self) -> Dictionary:
        return {}

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        del arguments
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class FindNode:
    """Which nodes are closest to ``target``? (BEP 5)"""

    method: ClassVar[bytes] = b"find_node"
    target: Target
    want: Want = ()

    def arguments(self) -> Dictionary:
        return {b"target": self.target} | _want(self.want)

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        return cls(target=read_target(arguments, b"target"), want=_read_want(arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPeers:
    """Who announced under ``info_hash``? With ``scrape``, also how many (BEP 5, 33)."""

    method: ClassVar[bytes] = b"get_peers"
    info_hash: Target
    want: Want = ()
    scrape: bool = False

    @property
    def target(self) -> Target:
        """Where it is looked up."""
        return self.info_hash

    def arguments(self) -> Dictionary:
        scrape = {b"scrape": 1} if self.scrape else {}
        return {b"info_hash": self.info_hash} | _want(self.want) | scrape

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        return cls(
            info_hash=read_target(arguments, b"info_hash"),
            want=_read_want(arguments),
            scrape=read_flag(arguments, b"scrape"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncePeer:
    """I can be reached for ``info_hash`` at ``port``, or at the port this came from (BEP 5); ``seed``: I have it all
    (BEP 33).
    """

    method: ClassVar[bytes] = b"announce_peer"
    info_hash: Target
    port: int
    token: bytes
    implied_port: bool = False
    seed: bool = False

    def arguments(self) -> Dictionary:
        seed = {b"seed": 1} if self.seed else {}
        return seed | {
            b"implied_port": int(self.implied_port),
            b"info_hash": self.info_hash,
            b"port": self.port,
            b"token": self.token,
        }

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        implied = read_flag(arguments, b"implied_port")
        port = arguments.get(b"port", 0)
        if not isinstance(port, int) or not (implied or 0 < port < 65536):
            raise ProtocolError("announce_peer names a port from 1 to 65535")
        return cls(
            info_hash=read_target(arguments, b"info_hash"),
            port=port,
            token=read_bytes(arguments, b"token", most=MAX_TOKEN),
            implied_port=implied,
            seed=read_flag(arguments, b"seed"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """The item under ``target``, unless its seq is at most ``seq`` (BEP 44)."""

    method: ClassVar[bytes] = b"get"
    target: Target
    seq: int | None = None
    want: Want = ()

    def arguments(self) -> Dictionary:
        return {b"target": self.target} | ({} if self.seq is None else {b"seq": self.seq}) | _want(self.want)

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        seq = read_optional_count(arguments, b"seq")
        return cls(target=read_target(arguments, b"target"), seq=seq, want=_read_want(arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Keep this item (BEP 44). Mutable when ``public_key`` is there; the item's own rules are `dht.items`'."""

    method: ClassVar[bytes] = b"put"
    token: bytes
    value: Value
    public_key: bytes | None = None
    salt: bytes = b""
    seq: int | None = None
    signature: bytes | None = None
    cas: int | None = None

    def arguments(self) -> Dictionary:
        filled: Dictionary = {b"token": self.token, b"v": self.value}
        optional = {b"k": self.public_key, b"seq": self.seq, b"sig": self.signature, b"cas": self.cas}
        filled.update((key, value) for key, value in optional.items() if value is not None)
        if self.salt:
            filled[b"salt"] = self.salt
        return filled

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        if b"v" not in arguments:
            raise ProtocolError("put carries a value")
        mutable = b"k" in arguments
        return cls(
            token=read_bytes(arguments, b"token", most=MAX_TOKEN),
            value=arguments[b"v"],
            public_key=read_bytes(arguments, b"k", exactly=32) if mutable else None,
            salt=read_bytes(arguments, b"salt", most=MAX_VALUE_RECEIVED, default=b""),
            seq=read_count(arguments, b"seq") if mutable else None,
            signature=read_bytes(arguments, b"sig", exactly=64) if mutable else None,
            cas=read_optional_count(arguments, b"cas"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfohashes:
    """Some of the info-hashes you keep peers of, and nodes near ``target`` to go on with (BEP 51)."""

    method: ClassVar[bytes] = b"sample_infohashes"
    target: Target
    want: Want = ()

    def arguments(self) -> Dictionary:
        return {b"target": self.target} | _want(self.want)

    @classmethod
    def read(cls, arguments: Dictionary) -> Self:
        return cls(target=read_target(arguments, b"target"), want=_read_want(arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownQuery:
    """A method this node does not know. With a target it is answered like `FindNode`, as libtorrent does."""

    method: bytes
    target: Target | None = None
    want: Want = ()

    def arguments(self) -> Dictionary:
        return {} if self.target is None else {b"target": self.target} | _want(self.want)


Query: TypeAlias = (
    Ping | FindNode | GetPeers | AnnouncePeer | Get | Put | SampleInfohashes | CapGet | CapPut | UnknownQuery
)

QUERIES: dict[bytes, Callable[[Dictionary], Query]] = {
    kind.method: kind.read
    for kind in (Ping, FindNode, GetPeers, AnnouncePeer, Get, Put, SampleInfohashes, CapGet, CapPut)
}


def read_query(method: bytes, arguments: Dictionary) -> Query:
    """The query that ``method`` and its arguments make. Raises `ProtocolError` for arguments that break its rules."""
    read = QUERIES.get(method)
    if read is not None:
        return read(arguments)
    for key in (b"target", b"info_hash"):
        if key in arguments:
            return UnknownQuery(method=method, target=read_target(arguments, key), want=_read_want(arguments))
    return UnknownQuery(method=method)


def _want(want: Want) -> Dictionary:
    return {b"want": [family.value for family in want]} if want else {}


def _read_want(arguments: Dictionary) -> Want:
    # What is not known there is left out: BEP 32 leaves room for more kinds.
    named: Any = arguments.get(b"want", [])
    return tuple(family for family in Family if family.value in named) if isinstance(named, list) else ()
