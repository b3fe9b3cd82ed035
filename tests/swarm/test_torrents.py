from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from client.publish import Published, publish_folder
from swarm.errors import ClosedError, ProtocolError, ResourceError, UsageError
from swarm.identity import Identity
from swarm.layout import ByteRange
from swarm.manifest import Manifest, span_bytes, span_ranges, span_tiers, span_units, tensors_of
from swarm.torrent_settings import session_settings
from swarm.torrents import Torrent, TorrentConfig, open_torrents
from tests.tiny_models import write_model

PUBLISHER = Identity(bytes(range(32)))
LOOPBACK = "127.0.0.1"
DEADLINE = 30  # seconds: a test that waits for a peer fails rather than hangs


@pytest.fixture
async def published(tmp_path: Path) -> Published:
    return await publish_folder(write_model(tmp_path / "model", shards=2), name="tiny", publisher=PUBLISHER)


def everything(manifest: Manifest) -> tuple[ByteRange, ...]:
    return span_ranges(manifest, 0, manifest.layers)


def check_bytes(torrent: Torrent, published: Published, start: int, stop: int) -> None:
    """Every tensor of the span reads as it is in the published files."""
    manifest = published.signed.manifest
    for unit in span_units(manifest, start, stop):
        for tensor in tensors_of(manifest, unit):
            data = (published.folder / manifest.files[tensor.file].name).read_bytes()
            assert torrent.read(tensor.file, tensor.start, tensor.stop) == data[tensor.start : tensor.stop]


def spoil(path: Path) -> None:
    """Change a byte in every 16 KiB, the header's blocks left alone."""
    raw = bytearray(path.read_bytes())
    for at in range(20_000, len(raw), 16_384):
        raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (9, 12)])
async def test_a_worker_fetches_its_span_and_less_than_two_pieces_more_per_boundary(
    published: Published, tmp_path: Path, start: int, stop: int
) -> None:
    manifest = published.signed.manifest
    tiers = span_tiers(manifest, start, stop)
    before = {path: path.stat().st_mtime_ns for path in published.folder.iterdir()}
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as seeder, open_torrents(TorrentConfig()) as worker:
            await seeder.seed(published.torrent, published.folder)
            torrent = await worker.fetch(published.torrent, tmp_path / "span", tiers)
            torrent.add_peer(LOOPBACK, seeder.port)
            for tier in tiers:
                await torrent.wait(tier)
            check_bytes(torrent, published, start, stop)
            progress = await torrent.refresh()
    wanted = span_bytes(manifest, start, stop)
    boundaries = 2 * len(span_ranges(manifest, start, stop))
    assert wanted <= progress.downloaded_payload < wanted + 2 * manifest.piece_length * boundaries
    assert progress.done_bytes == progress.wanted_bytes == progress.downloaded_payload
    assert {path: path.stat().st_mtime_ns for path in published.folder.iterdir()} == before


async def test_a_partial_seeder_in_another_process_serves_what_it_has(published: Published, tmp_path: Path) -> None:
    manifest = published.signed.manifest
    (tmp_path / "torrent").write_bytes(published.torrent)
    code = """
import sys, trio
from pathlib import Path
from swarm.torrents import TorrentConfig, open_torrents
async def main():
    async with open_torrents(TorrentConfig()) as torrents:
        await torrents.seed(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))
        print(torrents.port, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "torrent"), str(published.folder)]
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
            process = await nursery.start(start)
            port = int((await process.stdout.receive_some()).decode())
            async with open_torrents(TorrentConfig()) as first, open_torrents(TorrentConfig()) as second:
                middle = await first.fetch(published.torrent, tmp_path / "first", span_tiers(manifest, 0, 6))
                middle.add_peer(LOOPBACK, port)
                await middle.wait(span_ranges(manifest, 0, 6))
                process.terminate()
                await process.wait()
                last = await second.fetch(published.torrent, tmp_path / "second", span_tiers(manifest, 3, 6))
                last.add_peer(LOOPBACK, first.port)
                await last.wait(span_ranges(manifest, 3, 6))
                check_bytes(last, published, 3, 6)


async def test_corrupt_pieces_are_refused_and_fetched_elsewhere(published: Published, tmp_path: Path) -> None:
    manifest = published.signed.manifest
    bad = write_model(tmp_path / "bad", shards=2)
    with trio.fail_after(DEADLINE):
        async with (
            open_torrents(TorrentConfig()) as liar,
            open_torrents(TorrentConfig()) as seeder,
            open_torrents(TorrentConfig()) as worker,
        ):
            await liar.seed(published.torrent, bad)
            for file in manifest.files:
                spoil(bad / file.name)
            await seeder.seed(published.torrent, published.folder)
            torrent = await worker.fetch(published.torrent, tmp_path / "out", span_tiers(manifest, 0, 12))
            torrent.add_peer(LOOPBACK, liar.port)
            while (await torrent.progress_changed()).refused_pieces == 0:
                pass
            with trio.move_on_after(0.5) as scope:
                await torrent.wait(everything(manifest))
            assert scope.cancelled_caught, "nothing but a liar there: the wait is the caller's to end"
            while torrent.progress().banned_peers == 0:
                await torrent.progress_changed()
            torrent.add_peer(LOOPBACK, seeder.port)
            await torrent.wait(everything(manifest))
            check_bytes(torrent, published, 0, 12)
            assert torrent._banned == {liar.peer_id}, "and not the honest one at the same address"


@pytest.mark.parametrize("config", [{"host": "::1"}, {"utp": True}, {"host": "::1", "utp": True}])
async def test_weights_travel_over_ipv6_and_beside_utp(
    published: Published, tmp_path: Path, config: dict[str, Any]
) -> None:
    manifest = published.signed.manifest
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig(**config)) as seeder, open_torrents(TorrentConfig(**config)) as worker:
            await seeder.seed(published.torrent, published.folder)
            torrent = await worker.fetch(published.torrent, tmp_path / "out", span_tiers(manifest, 4, 6))
            torrent.add_peer(config.get("host", LOOPBACK), seeder.port)
            await torrent.wait(span_ranges(manifest, 4, 6))
            check_bytes(torrent, published, 4, 6)


async def test_a_router_is_asked_only_where_it_makes_sense() -> None:
    assert TorrentConfig(host="0.0.0.0", map_ports=True).maps_ports  # noqa: S104 - not opened here
    assert not TorrentConfig(host="0.0.0.0").maps_ports  # noqa: S104
    for host in (LOOPBACK, "::1"):
        config = TorrentConfig(host=host, map_ports=True)
        assert not config.maps_ports
        assert not session_settings(config)["enable_upnp"]
        async with open_torrents(config) as torrents:
            torrents.map_port(1)


async def test_what_is_already_there_is_checked_again_and_not_fetched_again(
    published: Published, tmp_path: Path
) -> None:
    manifest = published.signed.manifest
    folder = write_model(tmp_path / "out", shards=2)
    raw = bytearray((folder / manifest.files[1].name).read_bytes())
    raw[100_000] ^= 1
    (folder / manifest.files[1].name).write_bytes(raw)
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as seeder, open_torrents(TorrentConfig()) as worker:
            await seeder.seed(published.torrent, published.folder)
            torrent = await worker.fetch(published.torrent, folder, [everything(manifest)])
            before = torrent.progress()
            assert before.wanted_bytes - before.done_bytes == manifest.piece_length
            torrent.add_peer(LOOPBACK, seeder.port)
            await torrent.wait(everything(manifest))
            check_bytes(torrent, published, 0, 12)
            assert (await torrent.refresh()).downloaded_payload == manifest.piece_length
            await worker.remove(torrent)
            with pytest.raises(ClosedError):
                torrent.read(0, 0, 1)
            again = await worker.fetch(published.torrent, folder, [everything(manifest)])
            await again.wait(everything(manifest))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_is_named_and_loses_nothing(published: Published, small_disk: Path) -> None:
    manifest = published.signed.manifest
    folder = small_disk / "weights"
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as seeder:
            await seeder.seed(published.torrent, published.folder)
            async with open_torrents(TorrentConfig()) as worker:
                torrent = await worker.fetch(published.torrent, folder, [everything(manifest)])
                torrent.add_peer(LOOPBACK, seeder.port)
                with pytest.raises(ResourceError, match=r"weights/model.*no space left on device; free some space"):
                    await torrent.wait(everything(manifest))
            await trio.run_process(["mount", "-o", "remount,size=16m", str(small_disk)])
            async with open_torrents(TorrentConfig()) as worker:
                torrent = await worker.fetch(published.torrent, folder, [everything(manifest)])
                assert torrent.progress().done_bytes > 0, "what had been written is used"
                torrent.add_peer(LOOPBACK, seeder.port)
                await torrent.wait(everything(manifest))
                check_bytes(torrent, published, 0, 12)


async def test_a_folder_that_differs_is_not_seeded(published: Published, tmp_path: Path) -> None:
    manifest = published.signed.manifest
    other = write_model(tmp_path / "other", shards=2)
    spoil(other / manifest.files[1].name)
    async with open_torrents(TorrentConfig()) as torrents:
        with pytest.raises(ResourceError, match=r"model-00002-of-00002\.safetensors differs"):
            await torrents.seed(published.torrent, other)
        (other / manifest.files[0].name).unlink()
        with pytest.raises(ResourceError, match=r"model-00001-of-00002\.safetensors is missing"):
            await torrents.seed(published.torrent, other)
        torrent = await torrents.seed(published.torrent, published.folder)
        with pytest.raises(UsageError, match="already open"):
            await torrents.seed(published.torrent, published.folder)
        await torrent.wait(everything(manifest))
        check_bytes(torrent, published, 0, 12)


async def test_links_are_read_through_and_never_written_through(published: Published, tmp_path: Path) -> None:
    manifest = published.signed.manifest
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in published.folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    with trio.fail_after(DEADLINE):
        async with open_torrents(TorrentConfig()) as seeder, open_torrents(TorrentConfig()) as worker:
            await seeder.seed(published.torrent, snapshot)
            with pytest.raises(ResourceError, match="in the way"):
                await worker.fetch(published.torrent, snapshot, [everything(manifest)])
            torrent = await worker.fetch(published.torrent, tmp_path / "out", span_tiers(manifest, 4, 5))
            torrent.add_peer(LOOPBACK, seeder.port)
            await torrent.wait(span_ranges(manifest, 4, 5))
            check_bytes(torrent, published, 4, 5)


async def test_a_hostile_torrent_does_not_reach_the_session(published: Published, tmp_path: Path) -> None:
    async with open_torrents(TorrentConfig()) as torrents:
        older = published.torrent.replace(b"meta versioni2e", b"meta versioni1e")
        for raw in (b"", b"de", published.torrent[:-1], older):
            with pytest.raises(ProtocolError):
                await torrents.fetch(raw, tmp_path / "out", [])
        with pytest.raises(UsageError, match="outside file"):
            await torrents.fetch(published.torrent, tmp_path / "out", [[ByteRange(file=0, start=0, stop=2**40)]])
        assert not (tmp_path / "out").exists()


async def test_a_port_in_use_and_a_bad_address_are_named(published: Published, tmp_path: Path) -> None:
    async with open_torrents(TorrentConfig()) as torrents:
        with pytest.raises(ResourceError, match=f"{torrents.port}: address already in use"):
            async with open_torrents(TorrentConfig(port=torrents.port)):
                pass
        torrent = await torrents.seed(published.torrent, published.folder)
        with pytest.raises(UsageError, match="numeric"):
            torrent.add_peer("localhost", 80)
        (tmp_path / "file").write_text("")
        await torrents.remove(torrent)
        with pytest.raises(ResourceError, match="choose another"):
            await torrents.fetch(published.torrent, tmp_path / "file" / "under", [])
    for config in ({"host": "localhost"}, {"port": 70_000}, {"upload_rate": -1}):
        with pytest.raises(UsageError):
            TorrentConfig(**config)


async def test_a_session_reaches_out_to_nobody(published: Published) -> None:
    """It opens one port on the address it was given: TCP for peers (and UDP of the same number), nothing else."""
    code = """
import os, sys, json, trio, psutil
from swarm.torrents import TorrentConfig, open_torrents
async def main():
    async with open_torrents(TorrentConfig()) as torrents:
        found = [list(c.laddr) for c in psutil.Process().net_connections("inet")]
        print(json.dumps([torrents.port, found]))
trio.run(main)
"""
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    port, sockets = json.loads(done.stdout)
    assert sockets
    assert {tuple(item) for item in sockets} == {(LOOPBACK, port)}


async def test_a_torrent_is_let_go_of_while_everything_is_cancelled(published: Published, tmp_path: Path) -> None:
    """The session answers until its block is left, so that cleaning up inside the block can wait for it."""
    with trio.CancelScope() as scope:
        async with open_torrents(TorrentConfig()) as torrents:
            torrent = await torrents.seed(published.torrent, published.folder)
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.fail_after(30) as cleaning:
                    cleaning.shield = True
                    await torrents.remove(torrent)
    assert scope.cancelled_caught
    with pytest.raises(ClosedError):
        torrent.read(0, 0, 1)


async def test_a_rate_limit_holds_for_local_peers(published: Published, tmp_path: Path) -> None:
    manifest = published.signed.manifest
    with trio.fail_after(DEADLINE):
        limited = TorrentConfig(upload_rate=100_000)
        async with open_torrents(limited) as seeder, open_torrents(TorrentConfig()) as worker:
            await seeder.seed(published.torrent, published.folder)
            torrent = await worker.fetch(published.torrent, tmp_path / "out", [everything(manifest)])
            torrent.add_peer(LOOPBACK, seeder.port)
            with trio.move_on_after(2) as scope:
                await torrent.wait(everything(manifest))
            assert scope.cancelled_caught, "5 MB at 0.1 MB/s take a minute"
            assert (await torrent.refresh()).downloaded_payload < 2_000_000
