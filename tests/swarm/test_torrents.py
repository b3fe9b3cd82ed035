from __future__ import annotations

from pathlib import Path

import trio

from client.publish import Published, publish_folder
from swarm.identity import Identity
from swarm.manifest import span_bytes, span_tiers, tensors_of
from swarm.torrents import TorrentConfig, open_torrents
from tests.tiny_models import write_model

PUBLISHER = Identity(bytes(range(32)))


async def publish(folder: Path) -> Published:
    return await publish_folder(folder, name="tiny", publisher=PUBLISHER)


async def test_a_span_is_fetched_and_no_more(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", shards=3)
    published = await publish(folder)
    manifest = published.signed.manifest
    with trio.fail_after(20):
        async with open_torrents(TorrentConfig()) as seeder, open_torrents(TorrentConfig()) as worker:
            await seeder.seed(published.torrent, folder)
            tiers = span_tiers(manifest, 2, 5)
            torrent = await worker.fetch(published.torrent, tmp_path / "span", tiers)
            torrent.add_peer("127.0.0.1", seeder.port)
            for tier in tiers:
                await torrent.wait(tier)
            for unit in ("layer.2", "layer.3", "layer.4"):
                for tensor in tensors_of(manifest, unit):
                    data = (folder / manifest.files[tensor.file].name).read_bytes()
                    assert torrent.read(tensor.file, tensor.start, tensor.stop) == data[tensor.start : tensor.stop]
            progress = await torrent.refresh()
            print(progress, manifest.piece_length, span_bytes(manifest, 2, 5))
