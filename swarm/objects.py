"""Objects by hash over the peer protocol: manifests, torrents, tokenizers, templates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from swarm.errors import ProtocolError, UnavailableError, VerificationError
from swarm.ids import ContentHash
from swarm.messages import MAX_OBJECT, OBJECT_PART, GetObject, ObjectPart
from swarm.peer import Peer, Stream


def hash_object(data: bytes) -> ContentHash:
    """The name of an object: its SHA-256."""
    return ContentHash(hashlib.sha256(data).digest())


async def send_object(stream: Stream, objects: Mapping[ContentHash, bytes], wanted: ContentHash) -> None:
    """Answer a `GetObject`. Raises `UnavailableError` for one that is not here."""
    data = objects.get(wanted)
    if data is None:
        raise UnavailableError(f"no object {wanted.short} here")
    view = memoryview(data)
    for start in range(0, max(len(data), 1), OBJECT_PART):
        await stream.send(ObjectPart(len(data)), view[start : start + OBJECT_PART], urgent=False)


async def fetch_object(peer: Peer, wanted: ContentHash) -> bytes:
    """The object's bytes, checked against its hash.

    Raises `UnavailableError` when the peer has none, `VerificationError` when it sends something else.
    """
    parts: list[memoryview] = []
    size = got = 0
    async with peer.open_stream() as stream:
        await stream.send(GetObject(wanted), fin=True)
        while not parts or got < size:
            message, raw = await stream.expect(ObjectPart)
            size = message.size
            got += len(raw)
            parts.append(raw)
            if got > min(size, MAX_OBJECT) or (not raw and size):
                raise ProtocolError(f"peer {peer.peer_id.short} sent more than it announced", peer_id=peer.peer_id)
    data = b"".join(parts)
    if hash_object(data) != wanted:
        raise VerificationError(
            f"peer {peer.peer_id.short} sent another object than {wanted.short}", peer_id=peer.peer_id
        )
    return data
