"""Nodes by number, and answers to a search: the nearest to the target is number 0."""

from __future__ import annotations

from dht.contacts import Contact, Endpoint
from dht.items import Item, sign_item
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.region import Region
from dht.replies import Reply
from dht.search import Search, Start
from dht.storing import Store
from swarm.identity import Identity

KEY = Identity(b"\x06" * 32)
OWN = NodeId(b"\xff" * 20)
TARGET = Target(bytes(20))
ITEM = sign_item(KEY, b"five", seq=5)
EMPTY = Reply(token=b"token")


def node(number: int) -> Contact:
    return Contact(NodeId(number.to_bytes(20, "big")), Endpoint("10.0.0.1", number))


def start(*numbers: int, routers: tuple[int, ...] = (), paths: int = 1, region: Region | None = None) -> Start:
    return Start(
        own_id=OWN,
        seeds=tuple(node(number) for number in numbers),
        routers=tuple(node(number).endpoint for number in routers),
        paths=paths,
        region=region,
    )


def answer(operation: Search | Store, number: int, reply: Reply = Reply()) -> None:  # noqa: B008  (it is frozen)
    contact = node(number)
    operation.replied(contact.endpoint, ReplyPacket(transaction=b"t", sender=contact.node_id, reply=reply))


def refuse(operation: Search | Store, number: int, code: int | None = None) -> None:
    error = None if code is None else ErrorPacket(transaction=b"t", error_code=code)
    operation.failed(node(number).endpoint, error)


def holding(item: Item) -> Reply:
    reply = item.reply()
    return Reply(
        token=b"token", value=reply.value, public_key=reply.public_key, seq=reply.seq, signature=reply.signature
    )
