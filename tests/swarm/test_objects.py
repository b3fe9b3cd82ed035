"""Objects by hash: whole, checked, and bounded whatever the other side sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from swarm import objects
from swarm.errors import ProtocolError, SwarmError, UnavailableError, VerificationError
from swarm.events import Received
from swarm.identity import Identity
from swarm.messages import OBJECT_PART, GetObject, Message, ObjectPart, SessionClosed
from swarm.objects import fetch_object, hash_object, send_object
from swarm.peer import Handler, Peer, Stream, open_peer, serve_peers

SERVER, CLIENT = Identity(b"s" * 32), Identity(b"c" * 32)


@asynccontextmanager
async def connected(handler: Handler) -> AsyncIterator[Peer]:
    """A connection to a peer that serves with this."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_peers, handler, SERVER, host="127.0.0.1", port=0))
        async with open_peer("127.0.0.1", port, CLIENT, expected=SERVER.peer_id) as peer:
            yield peer
        nursery.cancel_scope.cancel()


def serving(*served: bytes) -> Handler:
    """A peer with these objects."""

    async def handle(peer: Peer, stream: Stream, request: Received) -> None:
        assert isinstance(request.message, GetObject), peer.peer_id
        await send_object(stream, {hash_object(data): data for data in served}, request.message.hash)

    return handle


def sending(*parts: tuple[Message, bytes]) -> Handler:
    """A peer that answers with these messages."""

    async def handle(peer: Peer, stream: Stream, request: Received) -> None:
        assert isinstance(request.message, GetObject), peer.peer_id
        for message, raw in parts:
            await stream.send(message, raw)

    return handle


@pytest.mark.parametrize("size", [0, 1, OBJECT_PART, OBJECT_PART + 1, 3 * OBJECT_PART])
async def test_objects_of_any_size(size: int) -> None:
    data = bytes(size)
    async with connected(serving(data, b"another")) as peer:
        assert await fetch_object(peer, hash_object(data)) == data
        assert await fetch_object(peer, hash_object(b"another")) == b"another"


async def test_one_that_is_not_there() -> None:
    async with connected(serving(b"data")) as peer:
        with pytest.raises(UnavailableError, match="no object") as caught:
            await fetch_object(peer, hash_object(b"other"))
        assert caught.value.peer_id == SERVER.peer_id
        assert await fetch_object(peer, hash_object(b"data")) == b"data"  # the connection is sound


WRONG: Sequence[tuple[str, list[tuple[Message, bytes]], type[SwarmError]]] = [
    ("another object", [(ObjectPart(5), b"other")], VerificationError),
    ("more than announced", [(ObjectPart(3), b"data")], ProtocolError),
    ("nothing, again and again", [(ObjectPart(4), b"da"), (ObjectPart(4), b"")], ProtocolError),
    ("less than announced", [(ObjectPart(4), b"da")], ProtocolError),
    ("a size that shrinks", [(ObjectPart(4), b"da"), (ObjectPart(1), b"t")], ProtocolError),
    ("nothing at all", [], ProtocolError),
    ("another message", [(SessionClosed(), b"")], ProtocolError),
    ("an empty one", [(ObjectPart(0), b"")], VerificationError),
]


@pytest.mark.parametrize(("parts", "kind"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
async def test_what_peers_may_send_instead(parts: list[tuple[Message, bytes]], kind: type[SwarmError]) -> None:
    async with connected(sending(*parts)) as peer:
        with pytest.raises(kind) as caught:
            await fetch_object(peer, hash_object(b"data"))
        assert type(caught.value) is kind
        assert caught.value.peer_id == SERVER.peer_id


async def test_a_stream_of_parts_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_OBJECT", 10)
    async with connected(sending(*[(ObjectPart(1_000), b"1234")] * 200)) as peer:
        with pytest.raises(ProtocolError, match="more than it announced"):
            await fetch_object(peer, hash_object(b"data"))
