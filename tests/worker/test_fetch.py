"""Loading while the bytes arrive, over real torrents between sessions of one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
import trio

from client.publish import Published, publish_folder
from dht.config import DhtConfig
from dht.directory import Directory
from dht.node import open_node
from swarm.errors import ResourceError
from swarm.identity import Identity
from swarm.manifest import span_tiers
from swarm.torrent import Failed, Progress
from swarm.torrents import TorrentConfig, Torrents, open_torrents
from tests.tiny_models import write_model
from worker.config import ModelConfig
from worker.fetch import load_span, open_swarming
from worker.model import SpanModel
from worker.shards import FolderSource

LOOPBACK = "127.0.0.1"
SPAN = (4, 10)
DEADLINE = 30


@pytest.fixture
async def published(tmp_path: Path) -> Published:
    return await publish_folder(write_model(tmp_path / "model", shards=2), name="tiny", publisher=Identity.generate())


@pytest.fixture
async def seeder(published: Published) -> AsyncIterator[Torrents]:
    async with open_torrents(TorrentConfig()) as torrents:
        await torrents.seed(published.torrent, published.folder)
        yield torrents


def silent(what: str, progress: Progress | None) -> None:
    """Nobody listens."""


async def test_layers_are_loaded_while_others_are_nowhere_to_be_had(
    published: Published, seeder: Torrents, tmp_path: Path
) -> None:
    manifest = published.signed.manifest
    heard: list[tuple[str, int]] = []

    def report(what: str, progress: Progress | None) -> None:
        assert progress is not None
        heard.append((what, progress.done_bytes))
        if what == "loaded layer.5,":
            torrent.add_peer(LOOPBACK, seeder.port)

    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as partial, open_torrents(TorrentConfig()) as worker:
            two_layers = span_tiers(manifest, 4, 6)
            some = await partial.fetch(published.torrent, tmp_path / "partial", two_layers)
            some.add_peer(LOOPBACK, seeder.port)
            for tier in two_layers:
                await some.wait(tier)
            torrent = await worker.fetch(published.torrent, tmp_path / "store", span_tiers(manifest, *SPAN))
            torrent.add_peer(LOOPBACK, partial.port)
            loaded = await load_span(manifest, torrent, SPAN, device="cpu", report=report)
    assert [what for what, _ in heard] == [f"loaded layer.{index}," for index in range(*SPAN)]
    assert heard[1][1] < heard[-1][1] / 2, "two of six layers were there"
    assert 0 < loaded.first_layer_after <= loaded.span_after
    config = ModelConfig.parse(manifest.config)
    expected = SpanModel.load(config, FolderSource(published.folder), *SPAN)
    for index in range(*SPAN):
        mine, theirs = loaded.model._layers[index], expected._layers[index]
        for name in ("qkv", "down"):  # random bytes hold NaNs: compared as integers
            assert torch.equal(getattr(mine, name).view(torch.int32), getattr(theirs, name).view(torch.int32))


async def test_a_load_that_waits_ends_with_its_caller_and_with_a_fault_of_the_disk(
    published: Published, tmp_path: Path
) -> None:
    manifest = published.signed.manifest
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as worker:
            torrent = await worker.fetch(published.torrent, tmp_path / "store", span_tiers(manifest, *SPAN))
            with trio.move_on_after(0.1) as scope:
                await load_span(manifest, torrent, SPAN, device="cpu", report=silent)
            assert scope.cancelled_caught, "nobody has a byte of it"
            torrent.handle(Failed(path="store/model", reason="no space left on device"))
            with pytest.raises(ResourceError, match="no space left"):
                await load_span(manifest, torrent, SPAN, device="cpu", report=silent)


async def test_workers_that_join_at_once_find_each_other_before_they_have_anything(
    published: Published, seeder: Torrents, tmp_path: Path
) -> None:
    manifest = published.signed.manifest
    said: list[tuple[str, Progress | None]] = []
    with trio.fail_after(DEADLINE):
        async with (
            open_node(DhtConfig(host=LOOPBACK)) as first,
            open_node(DhtConfig(host=LOOPBACK, bootstrap=(first.address,))) as second,
            open_torrents(TorrentConfig()) as one,
            open_torrents(TorrentConfig()) as two,
        ):
            tiers = span_tiers(manifest, *SPAN)
            ours = await one.fetch(published.torrent, tmp_path / "one", tiers)
            theirs = await two.fetch(published.torrent, tmp_path / "two", tiers)
            async with open_swarming(Directory(first), ours, one.port, lambda *what: said.append(what)):
                while (LOOPBACK, one.port) not in await Directory(second).find_torrent_peers(manifest.info_hash):
                    await trio.lowlevel.checkpoint()
                async with open_swarming(Directory(second), theirs, two.port, silent):
                    while (await theirs.refresh()).peers == 0:
                        await theirs.progress_changed()
                    ours.add_peer(LOOPBACK, seeder.port)
                    await load_span(manifest, theirs, SPAN, device="cpu", report=silent)
    assert said
    assert said[0][0] == "fetching"
