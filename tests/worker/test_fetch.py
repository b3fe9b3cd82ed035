"""Loading while the bytes arrive, over real torrents between sessions of one process."""

from __future__ import annotations

import subprocess
import sys
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
from swarm.manifest import span_bytes, span_tiers
from swarm.store import Store
from swarm.torrent import Progress
from swarm.torrent_events import Failed
from swarm.torrents import TorrentConfig, Torrents, open_torrents
from tests.tiny_models import write_model
from worker.config import ModelConfig
from worker.fetch import SpanFetch, load_span, open_stored, open_swarming
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


def fetch_of(published: Published, path: Path, span: tuple[int, int] = SPAN, quota: int = 0) -> SpanFetch:
    """The span, into a store under ``path``."""
    store = Store(path / "store", quota=quota)
    return SpanFetch(manifest=published.signed.manifest, raw=published.torrent, span=span, store=store)


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
            loaded = await load_span(fetch_of(published, tmp_path), torrent, report)
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
                await load_span(fetch_of(published, tmp_path), torrent, silent)
            assert scope.cancelled_caught, "nobody has a byte of it"
            torrent.handle(Failed(path="store/model", reason="no space left on device"))
            with pytest.raises(ResourceError, match="no space left"):
                await load_span(fetch_of(published, tmp_path), torrent, silent)


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
                    await load_span(fetch_of(published, tmp_path), theirs, silent)
    assert said
    assert said[0][0] == "fetching"


async def test_a_restart_fetches_nothing_again_and_a_moved_span_only_what_is_new(
    published: Published, seeder: Torrents, tmp_path: Path
) -> None:
    manifest = published.signed.manifest

    async def run(span: tuple[int, int], peers: bool) -> int:
        fetch = fetch_of(published, tmp_path, span)
        async with open_torrents(TorrentConfig()) as torrents, open_stored(fetch, torrents) as torrent:
            if peers:
                torrent.add_peer(LOOPBACK, seeder.port)
            await load_span(fetch, torrent, silent)
            return (await torrent.refresh()).downloaded_payload

    with trio.fail_after(DEADLINE):
        assert await run((2, 4), peers=True) >= span_bytes(manifest, 2, 4)
        assert await run((2, 4), peers=False) == 0, "all of it is there, nobody else is needed"
        moved = await run((3, 6), peers=True)
        most = span_bytes(manifest, 4, 6) + 8 * manifest.piece_length
        assert span_bytes(manifest, 4, 6) - 2 * manifest.piece_length <= moved < most
        assert await run((2, 6), peers=False) == 0


async def test_a_worker_killed_at_any_moment_goes_on_from_what_was_written(
    published: Published, tmp_path: Path
) -> None:
    (tmp_path / "torrent").write_bytes(published.torrent)
    (tmp_path / "manifest").write_bytes(published.signed.encode())
    code = """
import sys, trio
from pathlib import Path
from swarm.manifest import SignedManifest
from swarm.store import Store
from swarm.torrents import TorrentConfig, open_torrents
from worker.fetch import SpanFetch, load_span, open_stored
folder = Path(sys.argv[1])
manifest = SignedManifest.decode((folder / "manifest").read_bytes()).manifest
raw = (folder / "torrent").read_bytes()
fetch = SpanFetch(manifest=manifest, raw=raw, span=(4, 10), store=Store(folder / "store"))
async def main():
    async with open_torrents(TorrentConfig()) as torrents, open_stored(fetch, torrents) as torrent:
        torrent.add_peer("127.0.0.1", int(sys.argv[2]))
        await load_span(fetch, torrent, lambda what, progress: print(what, flush=True))
        await trio.sleep_forever()
trio.run(main)
"""
    fetch = fetch_of(published, tmp_path)
    total = 0
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig(upload_rate=1_500_000)) as slow:
            await slow.seed(published.torrent, published.folder)
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", code, str(tmp_path), str(slow.port)], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            said = b""
            while b"loaded layer.5" not in said:
                said += await process.stdout.receive_some()
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            async with open_torrents(TorrentConfig()) as torrents, open_stored(fetch, torrents) as torrent:
                before = torrent.progress()
                assert before.done_bytes >= span_bytes(fetch.manifest, 4, 6), "what was loaded is there"
                assert before.done_bytes < before.wanted_bytes
                torrent.add_peer(LOOPBACK, slow.port)
                await load_span(fetch, torrent, silent)
                after = await torrent.refresh()
                total = before.done_bytes + after.downloaded_payload
    assert total == after.wanted_bytes, "no byte twice"


async def test_a_span_beyond_the_quota_and_a_file_changed_underneath_are_named(
    published: Published, seeder: Torrents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as torrents:
            with pytest.raises(ResourceError, match="raise disk_quota"):
                async with open_stored(fetch_of(published, tmp_path, quota=1_000_000), torrents):
                    pass
            monkeypatch.setattr("worker.fetch.LOOK_EVERY", 0.01)
            whole = fetch_of(published, tmp_path, (0, published.signed.manifest.layers))

            async def write_over_it() -> None:
                async with open_stored(whole, torrents) as torrent:
                    torrent.add_peer(LOOPBACK, seeder.port)
                    await load_span(whole, torrent, silent)
                    with torrent.placement.paths[0].open("r+b") as stream:
                        stream.write(b"x")
                    await trio.sleep_forever()

            with pytest.raises(ResourceError, match=r"files/[0-9a-f]{64} was changed by somebody else"):
                await write_over_it()
            fetch = fetch_of(published, tmp_path)
            async with open_stored(fetch, torrents) as torrent:
                assert torrent.progress().done_bytes > 0
