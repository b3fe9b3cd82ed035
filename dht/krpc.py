"""KRPC packets (BEP 5, 32, 42, 43, 44): typed queries, replies and errors, and their strict parse.

A packet must be canonical bencode. What follows is dispatched on ``y`` alone: libtorrent's error packets carry an
``r`` beside their ``e``. Lists of addresses lose their malformed entries; everything else malformed is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from dht.contacts import Contact, Endpoint, pack_contacts, unpack_contacts
from dht.errors import RejectedQuery
from dht.keys import NodeId, Target
from swarm.codec import Value, decode, encode
from swarm.errors import ProtocolError

MAX_RECEIVED = 2048  # a full BEP 44 item with both node lists is 1 424; nothing legitimate is larger
MAX_TRANSACTION = 32  # echoed in every answer, so it bounds what a forged query makes us send
MAX_TOKEN = 64  # libtorrent's has 4 bytes, ours 8
MAX_METHOD = 32
MAX_SEQ = 2**63 - 1  # BEP 44 keeps sequence numbers in a signed 64-bit integer

GENERIC_ERROR = 201
PROTOCOL_ERROR = 203
UNKNOWN_METHOD = 204

Dictionary: TypeAlias = dict[bytes, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Are you there? (BEP 5)"""

    method: ClassVar[bytes] = b"ping"

    def arguments(self) -> Dictionary:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FindNode:
    """Which nodes are closest to ``target``? (BEP 5)"""

    method: ClassVar[bytes] = b"find_node"
    target: Target

    def arguments(self) -> Dictionary:
        return {b"target": self.target}


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPeers:
    """Who announced under ``info_hash``? (BEP 5)"""

    method: ClassVar[bytes] = b"get_peers"
    info_hash: Target

    def arguments(self) -> Dictionary:
        return {b"info_hash": self.info_hash}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncePeer:
    """I can be reached for ``info_hash`` at ``port``, or at the port this came from (BEP 5)."""

    method: ClassVar[bytes] = b"announce_peer"
    info_hash: Target
    port: int
    token: bytes
    implied_port: bool = False

    def arguments(self) -> Dictionary:
        return {
            b"implied_port": int(self.implied_port),
            b"info_hash": self.info_hash,
            b"port": self.port,
            b"token": self.token,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """The item under ``target``, unless its seq is at most ``seq`` (BEP 44)."""

    method: ClassVar[bytes] = b"get"
    target: Target
    seq: int | None = None

    def arguments(self) -> Dictionary:
        return {b"target": self.target} | ({} if self.seq is None else {b"seq": self.seq})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownQuery:
    """A method this node does not know. With a target it is answered like `FindNode`, as libtorrent does."""

    method: bytes
    target: Target | None = None

    def arguments(self) -> Dictionary:
        return {} if self.target is None else {b"target": self.target}


Query: TypeAlias = Ping | FindNode | GetPeers | AnnouncePeer | Get | Put | UnknownQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Whatever an answer may carry; which fields are there depends on the query."""

    nodes: tuple[Contact, ...] = ()
    nodes6: tuple[Contact, ...] = ()
    token: bytes | None = None
    peers: tuple[Endpoint, ...] = ()
    value: Value | None = None
    public_key: bytes | None = None
    seq: int | None = None
    signature: bytes | None = None

    def body(self) -> Dictionary:
        filled: Dictionary = {}
        if self.nodes:
            filled[b"nodes"] = pack_contacts(self.nodes)
        if self.nodes6:
            filled[b"nodes6"] = pack_contacts(self.nodes6)
        if self.peers:
            filled[b"values"] = [peer.pack() for peer in self.peers]
        optional = {
            b"token": self.token, b"v": self.value, b"k": self.public_key, b"seq": self.seq, b"sig": self.signature,
        }  # fmt: skip
        filled.update((key, value) for key, value in optional.items() if value is not None)
        return filled


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryPacket:
    """A query on the wire. ``read_only`` says that the sender answers nothing (BEP 43)."""

    transaction: bytes
    sender: NodeId
    query: Query
    read_only: bool = False

    def pack(self) -> bytes:
        message: Dictionary = {
            b"a": self.query.arguments() | {b"id": self.sender},
            b"q": self.query.method,
            b"t": self.transaction,
            b"y": b"q",
        }
        if self.read_only:
            message[b"ro"] = 1
        return encode(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPacket:
    """An answer on the wire. ``external`` is where the answerer saw the question come from (BEP 42)."""

    transaction: bytes
    sender: NodeId
    reply: Reply
    external: Endpoint | None = None

    def pack(self) -> bytes:
        message: Dictionary = {b"r": self.reply.body() | {b"id": self.sender}, b"t": self.transaction, b"y": b"r"}
        if self.external is not None:
            message[b"ip"] = self.external.pack()
        return encode(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPacket:
    """A refusal on the wire: a code of BEP 5 or 44 and a line of text."""

    transaction: bytes
    error_code: int
    message: str = ""

    def pack(self) -> bytes:
        text = self.message.encode("utf-8", "replace")
        return encode({b"e": [self.error_code, text], b"t": self.transaction, b"y": b"e"})


Packet: TypeAlias = QueryPacket | ReplyPacket | ErrorPacket


def parse(data: bytes) -> Packet:
    """Read one datagram.

    Raises `RejectedQuery` for a query that can be answered with an error, `ProtocolError` for what deserves no answer.
    """
    message = decode(data, limit=MAX_RECEIVED)
    if not isinstance(message, dict):
        raise ProtocolError("a KRPC packet is a dictionary")
    transaction = _bytes(message, b"t", most=MAX_TRANSACTION)
    if not transaction:
        raise ProtocolError("a KRPC packet has a transaction id")
    kind = message.get(b"y")
    if kind == b"q":
        try:
            return _parse_query(message, transaction)
        except RejectedQuery as error:
            raise RejectedQuery(error.message, krpc_code=error.krpc_code, transaction=transaction) from error
        except ProtocolError as error:
            raise RejectedQuery(error.message, krpc_code=PROTOCOL_ERROR, transaction=transaction) from error
    if kind == b"r":
        return _parse_reply(message, transaction)
    if kind == b"e":
        return _parse_error(message, transaction)
    raise ProtocolError("a KRPC packet is a query, a reply or an error")


def _parse_query(message: Dictionary, transaction: bytes) -> QueryPacket:
    method = _bytes(message, b"q", most=MAX_METHOD)
    arguments = message.get(b"a")
    if not isinstance(arguments, dict):
        raise ProtocolError("a query has arguments")
    sender = NodeId(_bytes(arguments, b"id", exactly=NodeId.size))
    read_only = message.get(b"ro") == 1
    query = _parse_arguments(method, arguments)
    return QueryPacket(transaction=transaction, sender=sender, query=query, read_only=read_only)


def _parse_arguments(method: bytes, arguments: Dictionary) -> Query:
    if method == Ping.method:
        return Ping()
    if method == FindNode.method:
        return FindNode(target=_target(arguments, b"target"))
    if method == GetPeers.method:
        return GetPeers(info_hash=_target(arguments, b"info_hash"))
    if method == Get.method:
        return Get(target=_target(arguments, b"target"), seq=_optional_seq(arguments, b"seq"))
    if method == AnnouncePeer.method:
        implied = arguments.get(b"implied_port", 0) == 1
        port = arguments.get(b"port", 0)
        if not isinstance(port, int) or not (implied or 0 < port < 65536):
            raise ProtocolError("announce_peer names a port from 1 to 65535")
        token = _bytes(arguments, b"token", most=MAX_TOKEN)
        info_hash = _target(arguments, b"info_hash")
        return AnnouncePeer(info_hash=info_hash, port=port, token=token, implied_port=implied)
    if method == Put.method:
        return _parse_put(arguments)
    if b"target" in arguments:
        return UnknownQuery(method=method, target=_target(arguments, b"target"))
    if b"info_hash" in arguments:
        return UnknownQuery(method=method, target=_target(arguments, b"info_hash"))
    return UnknownQuery(method=method)


def _parse_put(arguments: Dictionary) -> Put:
    if b"v" not in arguments:
        raise ProtocolError("put carries a value")
    mutable = b"k" in arguments
    return Put(
        token=_bytes(arguments, b"token", most=MAX_TOKEN),
        value=arguments[b"v"],
        public_key=_bytes(arguments, b"k", exactly=32) if mutable else None,
        salt=_bytes(arguments, b"salt", most=MAX_RECEIVED) if b"salt" in arguments else b"",
        seq=_seq(arguments, b"seq") if mutable else None,
        signature=_bytes(arguments, b"sig", exactly=64) if mutable else None,
        cas=_optional_seq(arguments, b"cas"),
    )


def _parse_reply(message: Dictionary, transaction: bytes) -> ReplyPacket:
    body = message.get(b"r")
    if not isinstance(body, dict):
        raise ProtocolError("a reply has a body")
    values = body.get(b"values", [])
    reply = Reply(
        nodes=unpack_contacts(_bytes(body, b"nodes", most=MAX_RECEIVED, default=b""), ipv6=False),
        nodes6=unpack_contacts(_bytes(body, b"nodes6", most=MAX_RECEIVED, default=b""), ipv6=True),
        token=_bytes(body, b"token", most=MAX_TOKEN) if b"token" in body else None,
        peers=_endpoints(values) if isinstance(values, list) else (),
        value=body.get(b"v"),
        public_key=_bytes(body, b"k", exactly=32) if b"k" in body else None,
        seq=_optional_seq(body, b"seq"),
        signature=_bytes(body, b"sig", exactly=64) if b"sig" in body else None,
    )
    external = message.get(b"ip")
    seen = _endpoints([external])
    sender = NodeId(_bytes(body, b"id", exactly=NodeId.size))
    return ReplyPacket(transaction=transaction, sender=sender, reply=reply, external=seen[0] if seen else None)


def _parse_error(message: Dictionary, transaction: bytes) -> ErrorPacket:
    error = message.get(b"e")
    if not isinstance(error, list) or len(error) < 2:
        return ErrorPacket(transaction=transaction, error_code=GENERIC_ERROR)
    code = error[0] if isinstance(error[0], int) else GENERIC_ERROR
    text = error[1].decode("utf-8", "replace") if isinstance(error[1], bytes) else ""
    return ErrorPacket(transaction=transaction, error_code=code, message=text)


def _endpoints(values: list[Any]) -> tuple[Endpoint, ...]:
    found = []
    for raw in values:
        try:
            found.append(Endpoint.unpack(raw if isinstance(raw, bytes) else b""))
        except ProtocolError:
            continue  # one bad address does not spoil the others
    return tuple(found)


def _bytes(
    source: Dictionary, key: bytes, *, most: int = 0, exactly: int | None = None, default: bytes | None = None
) -> bytes:
    value = source.get(key, default)
    name = key.decode()
    if not isinstance(value, bytes):
        raise ProtocolError(f"{name} is not a byte string")
    if exactly is not None and len(value) != exactly:
        raise ProtocolError(f"{name} has {len(value)} bytes, not {exactly}")
    if exactly is None and len(value) > most:
        raise ProtocolError(f"{name} has {len(value)} bytes, more than {most}")
    return value


def _target(source: Dictionary, key: bytes) -> Target:
    return Target(_bytes(source, key, exactly=Target.size))


def _seq(source: Dictionary, key: bytes) -> int:
    value = source.get(key)
    if not isinstance(value, int) or not 0 <= value <= MAX_SEQ:
        raise ProtocolError(f"{key.decode()} is not a sequence number")
    return value


def _optional_seq(source: Dictionary, key: bytes) -> int | None:
    return _seq(source, key) if key in source else None
