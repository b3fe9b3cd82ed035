"""A span on its way to the device: fetched in the order in which it is loaded, and loaded while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from dht.directory import Directory
from swarm.errors import ResourceError, UnavailableError
from swarm.lease import Lease
from swarm.manifest import Manifest, span_tiers
from swarm.nurseries import open_nursery
from swarm.pieces import PieceMap
from swarm.store import Store
from swarm.torrent import Progress, Torrent
from swarm.torrents import Torrents
from worker.config import ModelConfig
from worker.model import SpanModel
from worker.source import TorrentSource

LOOK_EVERY = 5.0  # seconds between looks at the files that are served
FIND_PEERS_EVERY = 5.0  # seconds between looks for more seeders while the span is on its way

Report = Callable[[str, Progress | None], None]
"""Told what is going on, with the transfer's progress while there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A span on its device. Times in seconds from when the loading began, waits for the network included."""

    model: SpanModel
    first_layer_after: float
    """Until the first layer, and the embedding before it where the span has one, was there."""
    span_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanFetch:
    """Which span of which model goes where."""

    manifest: Manifest
    raw: bytes
    """The model's .torrent file."""
    span: tuple[int, int]
    store: Store
    device: str = "cpu"
    """torch's name of the device."""


@asynccontextmanager
async def open_stored(fetch: SpanFetch, torrents: Torrents) -> AsyncIterator[Torrent]:
    """The torrent with the span's units on their way into the store, in the order in which they are loaded.

    Nobody removes its files until the block is left. Raises as `Store.lease` does; and `ResourceError` inside the
    block when a file is changed underneath.
    """
    metadata = fetch.manifest.check_torrent(fetch.raw)
    tiers = span_tiers(fetch.manifest, *fetch.span)
    wanted = PieceMap.of(metadata).pieces(item for tier in tiers for item in tier)
    lease = await trio.to_thread.run_sync(fetch.store.lease, metadata, wanted)
    try:
        torrent = await torrents.fetch(fetch.raw, lease.placement, tiers)
        try:
            async with open_nursery() as nursery:
                nursery.start_soon(_guard, lease)
                yield torrent
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await torrents.remove(torrent)
                await trio.to_thread.run_sync(lease.sync)
    finally:
        lease.close()


@asynccontextmanager
async def open_swarming(directory: Directory, torrent: Torrent, port: int, report: Report) -> AsyncIterator[None]:
    """Announce the torrent at ``port``, look for others who share it and report the progress, until the block is left.

    It is announced before anything is there: whoever joins at the same time fetches one half from the other.
    """
    async with open_nursery() as nursery:
        nursery.start_soon(_find_peers, directory, torrent, port)
        nursery.start_soon(_watch, torrent, report)
        nursery.start_soon(torrent.share)
        yield
        nursery.cancel_scope.cancel()


async def load_span(fetch: SpanFetch, torrent: Torrent, report: Report) -> Loaded:
    """Load the span's layers while they are on their way: each unit as soon as its bytes are verified.

    The torrent must be fetching the span's units as tiers, in this order. ``report`` hears of every unit. Raises as
    `Torrent.wait` and `SpanModel.load` do.
    """
    manifest, span = fetch.manifest, fetch.span
    started = trio.current_time()
    times: dict[str, float] = {}

    def arrive(unit: str) -> None:
        trio.from_thread.run(torrent.wait, manifest.unit(unit).ranges)

    def note(unit: str) -> None:
        times[unit] = trio.current_time() - started
        report(f"loaded {unit},", torrent.progress())

    def loaded(unit: str) -> None:
        trio.from_thread.run_sync(note, unit)

    def load() -> SpanModel:
        return SpanModel.load(
            ModelConfig.parse(manifest.config),
            TorrentSource(manifest, torrent),
            *span,
            device=fetch.device,
            wire_dtype="F32" if manifest.wire_dtype == "F32" else "BF16",
            arrive=arrive,
            progress=loaded,
        )

    model = await trio.to_thread.run_sync(load)
    return Loaded(model=model, first_layer_after=times[f"layer.{span[0]}"], span_after=max(times.values()))


async def _find_peers(directory: Directory, torrent: Torrent, port: int) -> None:
    announced = False
    while True:
        try:
            if not announced:
                await directory.announce_torrent(torrent.info_hash, port)
                announced = True
            for address in await directory.find_torrent_peers(torrent.info_hash):
                torrent.add_peer(*address)
        except UnavailableError:
            pass  # no DHT node answers now; the next round asks again
        await trio.sleep(FIND_PEERS_EVERY)


async def _guard(lease: Lease) -> None:
    while True:
        if (path := await trio.to_thread.run_sync(lease.changed)) is not None:
            raise ResourceError(
                f"{path} was changed by somebody else while it was served; start again: what is wrong in it is fetched "
                "again, the rest is kept"
            )
        await trio.sleep(LOOK_EVERY)


async def _watch(torrent: Torrent, report: Report) -> None:
    while True:
        report("fetching", await torrent.progress_changed())
