"""The typed directory on top of a node: which manifest a name means, and who serves it."""

from __future__ import annotations

import hashlib

from dht.keys import Target
from dht.names import check_name, format_model_reference
from dht.node import Node
from swarm.errors import ProtocolError, UnknownModelError
from swarm.identity import Identity
from swarm.ids import InfoHash, ManifestId, PeerId

MODEL_SALT = b"swarm/model/1/"
RPC_TAG = b"swarm-rpc/1"


def model_salt(name: str) -> bytes:
    """The BEP 44 salt of a model's item: a name of 64 characters would not fit, so its SHA-1 stands for it."""
    return MODEL_SALT + hashlib.sha1(check_name(name).encode("ascii"), usedforsecurity=False).digest()


def rpc_target(manifest_id: ManifestId) -> Target:
    """Where those announce who serve a manifest, or a span of its model, over the peer protocol."""
    return Target.of_content(RPC_TAG + manifest_id)


class Directory:
    """Models and their servers, found through a running `Node`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def publish_model(self, publisher: Identity, name: str, manifest_id: ManifestId) -> int:
        """Make ``name`` under the publisher's key mean ``manifest_id``; returns the item's seq.

        The seq rises with each change; the same manifest published again keeps it. Kept alive while the node runs.
        """
        value: dict[bytes, bytes] = {b"m": bytes(manifest_id), b"n": check_name(name).encode("ascii")}
        item = await self._node.put_mutable(publisher, value, salt=model_salt(name))
        return item.seq

    async def find_model(self, publisher: PeerId, name: str) -> ManifestId:
        """The manifest that the publisher's ``name`` means now. Raises `UnknownModelError` if nobody knows it."""
        item = await self._node.get_mutable(publisher, model_salt(name))
        if item is None:
            reference = format_model_reference(publisher, name)
            raise UnknownModelError(f"no DHT node knows {reference}; check it, or ask its publisher to publish again")
        value = item.value
        manifest_id = value.get(b"m") if isinstance(value, dict) else None
        named = value.get(b"n") if isinstance(value, dict) else None
        if not isinstance(manifest_id, bytes) or len(manifest_id) != ManifestId.size or named != name.encode("ascii"):
            raise ProtocolError(
                f"publisher {publisher.short} signed an entry for {name} that names no manifest; tell them",
                peer_id=publisher,
            )
        return ManifestId(manifest_id)

    async def announce_manifest(self, manifest_id: ManifestId, rpc_port: int) -> None:
        """Announce that this host serves the manifest, or a span of its model, at TCP ``rpc_port``; repeated."""
        await self._node.announce_peer(rpc_target(manifest_id), rpc_port)

    def withdraw_manifest(self, manifest_id: ManifestId) -> None:
        """Announce it no more; nodes forget it within half an hour."""
        self._node.withdraw_peer(rpc_target(manifest_id))

    async def find_peers(self, manifest_id: ManifestId) -> list[tuple[str, int]]:
        """Where the manifest or spans of its model are served; some of these may be gone already."""
        return await self._node.get_peers(rpc_target(manifest_id))

    async def announce_torrent(self, info_hash: InfoHash, port: int) -> None:
        """Announce that this host seeds the torrent at ``port``, under its truncated v2 info-hash (BEP 52)."""
        await self._node.announce_peer(info_hash, port)

    async def find_torrent_peers(self, info_hash: InfoHash) -> list[tuple[str, int]]:
        """Who shares the torrent."""
        return await self._node.get_peers(info_hash)
