"""Seeding: serve a published model's weights over BitTorrent and its small files over the peer protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import trio

from client.publish import Published
from dht.config import DhtConfig
from dht.directory import Directory
from dht.node import open_node
from swarm.errors import ProtocolError, UnknownModelError
from swarm.events import Received
from swarm.identity import Identity
from swarm.ids import ContentHash, ManifestId, PeerId
from swarm.messages import GetObject, GetQuote
from swarm.nurseries import open_nursery
from swarm.objects import send_object
from swarm.peer import Peer, Stream, serve_peers
from swarm.torrents import TorrentConfig, open_torrents


@dataclass(frozen=True, slots=True, kw_only=True)
class SeederConfig:
    """Where a seeder listens and joins."""

    identity: Identity
    """The seeder's peer key."""
    publisher: Identity | None = None
    """The publisher's key, to keep the model's name pointing at its manifest; None only seeds."""
    bootstrap: tuple[tuple[str, int], ...] = ()
    """DHT nodes to join through; empty for the first node of a network."""
    host: str = "127.0.0.1"
    port: int = 0
    """TCP port for peers."""
    dht_port: int = 0
    """UDP port of its DHT node, which others may bootstrap from."""
    upload_rate: int = 0
    """Bytes per second of weights; 0 is unlimited."""
    utp: bool = False
    """Also carry weights over uTP."""
    map_ports: bool = False
    """Ask the router to let peers in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeding:
    """What a running seeder says of itself."""

    peer_id: PeerId
    publisher: PeerId
    name: str
    manifest_id: ManifestId
    host: str
    port: int
    dht_port: int
    torrent_port: int
    model_bytes: int


async def run_seeder(
    config: SeederConfig, published: Published, *, task_status: trio.TaskStatus[Seeding] = trio.TASK_STATUS_IGNORED
) -> None:
    """Seed until cancelled. Started once it is announced; raises `ResourceError` for ports and changed files."""
    signed = published.signed
    manifest = signed.manifest
    async with (
        open_node(DhtConfig(host=config.host, port=config.dht_port, bootstrap=config.bootstrap)) as node,
        open_torrents(
            TorrentConfig(host=config.host, upload_rate=config.upload_rate, utp=config.utp, map_ports=config.map_ports)
        ) as torrents,
        open_nursery() as nursery,
    ):
        await torrents.seed(published.torrent, published.folder)
        port = await nursery.start(
            partial(
                serve_peers, ObjectServer(published.objects).handle, config.identity, host=config.host, port=config.port
            )
        )
        directory = Directory(node)
        torrents.map_port(port)
        await directory.announce_torrent(manifest.info_hash, torrents.port)
        await directory.announce_manifest(signed.manifest_id, port)
        if config.publisher is not None:
            await directory.publish_model(config.publisher, manifest.name, signed.manifest_id)
        task_status.started(
            Seeding(
                peer_id=config.identity.peer_id,
                publisher=manifest.publisher,
                name=manifest.name,
                manifest_id=signed.manifest_id,
                host=config.host,
                port=port,
                dht_port=node.address[1],
                torrent_port=torrents.port,
                model_bytes=sum(file.size for file in manifest.files),
            )
        )
        await trio.sleep_forever()


class ObjectServer:
    """Serves objects by hash, and nothing else."""

    def __init__(self, objects: Mapping[ContentHash, bytes]) -> None:
        self._objects = objects

    async def handle(self, peer: Peer, stream: Stream, request: Received) -> None:
        """Serve one stream."""
        match request.message:
            case GetObject(wanted):
                await send_object(stream, self._objects, wanted)
            case GetQuote():
                raise UnknownModelError("this peer seeds and serves no layers")
            case other:
                raise ProtocolError(f"{type(other).__name__} opens no stream here")
