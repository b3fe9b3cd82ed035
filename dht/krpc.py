"""KRPC packets (BEP 5, 32, 42, 43): queries, replies and errors in their envelopes, and their strict parse.

A packet must be canonical bencode. What follows is dispatched on ``y`` alone: libtorrent's error packets carry an
``r`` beside their ``e``. Lists of addresses lose their malformed entries; everything else malformed is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.fields import Dictionary, read_bytes, read_endpoints, read_flag
from dht.keys import NodeId
from dht.queries import Query, read_query
from dht.replies import Reply
from swarm.codec import decode, encode
from swarm.errors import ProtocolError

MAX_RECEIVED = 2048  # a full BEP 44 item with both node lists is 1 424; nothing legitimate is larger
MAX_TRANSACTION = 32  # echoed in every answer, so it bounds what a forged query makes us send
MAX_METHOD = 32

GENERIC_ERROR = 201
PROTOCOL_ERROR = 203
UNKNOWN_METHOD = 204


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
    transaction = read_bytes(message, b"t", most=MAX_TRANSACTION)
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
    method = read_bytes(message, b"q", most=MAX_METHOD)
    arguments = message.get(b"a")
    if not isinstance(arguments, dict):
        raise ProtocolError("a query has arguments")
    sender = NodeId(read_bytes(arguments, b"id", exactly=NodeId.size))
    query = read_query(method, arguments)
    return QueryPacket(transaction=transaction, sender=sender, query=query, read_only=read_flag(message, b"ro"))


def _parse_reply(message: Dictionary, transaction: bytes) -> ReplyPacket:
    body = message.get(b"r")
    if not isinstance(body, dict):
        raise ProtocolError("a reply has a body")
    reply = Reply.read(body)
    seen = read_endpoints([message.get(b"ip")])
    sender = NodeId(read_bytes(body, b"id", exactly=NodeId.size))
    return ReplyPacket(transaction=transaction, sender=sender, reply=reply, external=seen[0] if seen else None)


def _parse_error(message: Dictionary, transaction: bytes) -> ErrorPacket:
    error = message.get(b"e")
    if not isinstance(error, list) or len(error) < 2:
        return ErrorPacket(transaction=transaction, error_code=GENERIC_ERROR)
    code = error[0] if isinstance(error[0], int) else GENERIC_ERROR
    text = error[1].decode("utf-8", "replace") if isinstance(error[1], bytes) else ""
    return ErrorPacket(transaction=transaction, error_code=code, message=text)
