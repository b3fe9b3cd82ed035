"""One torrent of a session: what is there, what may be read. Drives a `FetchPlan`; knows no libtorrent.

The session hands it events; it asks the session through `Engine`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from swarm.errors import ClosedError, ResourceError, UsageError, VerificationError
from swarm.ids import InfoHash
from swarm.layout import ByteRange, LayoutError
from swarm.metadata import TorrentMetadata
from swarm.pieces import FetchPlan, PieceMap

PROGRESS_PERIOD = 0.25  # seconds between two looks at a transfer: as often as a person can follow


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The session took the torrent; ``problem`` says why not."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is on disk has been checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceFinished:
    """A piece came and its hash holds."""

    piece: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRefused:
    """A piece came and its hash does not hold."""

    piece: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushingItself:
    """The session will flush without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """A flush is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A file could not be read or written."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The session let go of the torrent and its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters of the transfer. ``pieces`` are all whose hash holds, or None if they were not asked for."""

    checking: bool
    downloaded_payload: int
    peers: int
    rate: int
    problem: str
    pieces: tuple[int, ...] | None


Event = Added | Checked | PieceFinished | PieceRefused | FlushingItself | Flushed | Failed | Removed | Stats


class Engine(Protocol):
    """What a torrent asks of the session. Nothing here blocks; answers come as events."""

    def flush(self, info_hash: InfoHash) -> None: ...
    def ask_stats(self, info_hash: InfoHash, *, pieces: bool) -> None: ...
    def prioritise(self, info_hash: InfoHash, priorities: list[int]) -> None: ...
    def connect(self, info_hash: InfoHash, host: str, port: int) -> None: ...
    def pause(self, info_hash: InfoHash) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a transfer is. Sizes in bytes, ``rate`` in bytes per second of payload."""

    done_bytes: int
    """Of the pieces that were asked for, those that are here and whose hash holds."""
    wanted_bytes: int
    downloaded_payload: int
    """Received in this session, refused pieces included."""
    refused_pieces: int
    """Pieces that came with a wrong hash and were fetched again."""
    peers: int
    rate: int


class Torrent:
    """Files of one torrent in one folder. Made by `Torrents.seed` and `Torrents.fetch`."""

    def __init__(
        self, metadata: TorrentMetadata, folder: Path, engine: Engine, tiers: Sequence[Iterable[ByteRange]]
    ) -> None:
        self.metadata = metadata
        self.folder = folder
        self.info_hash = metadata.info_hash
        self.map = PieceMap(sizes=tuple(file.size for file in metadata.files), piece_length=metadata.piece_length)
        self.plan = FetchPlan(self.map.total, [self._covering(tier) for tier in tiers])
        self._engine = engine
        self._changed = trio.Event()
        self._added: Added | None = None
        self._checked = False
        self._removed = False
        self._closed = False
        self._failure: Failed | None = None
        self._stats = Stats(checking=False, downloaded_payload=0, peers=0, rate=0, problem="", pieces=None)
        self._stats_count = 0
        self._refused = 0
        self._maps: dict[int, mmap.mmap] = {}

    def add_peer(self, host: str, port: int) -> None:
        """Connect to a peer that has this torrent; ``host`` is a numeric address."""
        self._check_open()
        self._engine.connect(self.info_hash, host, port)

    async def wait(self, ranges: Iterable[ByteRange]) -> None:
        """Return once all of ``ranges`` may be read: fetched, written to the files, and hashed there.

        Raises `ResourceError` naming the file if it cannot be written (a full disk), `ClosedError` if the session
        closes meanwhile. There is no time limit of its own: peers may come at any time.
        """
        pieces = self._covering(ranges)
        if not pieces <= self.plan.wanted:
            raise UsageError("cannot wait for bytes that are not being fetched; name them when the fetch starts")
        while self.plan.missing(pieces):
            self._check_open()
            self._check_failure()
            if written := self.plan.to_verify(pieces):
                await self._verify(sorted(written))
                continue
            for _ in range(self.plan.start_flush(pieces)):
                self._engine.flush(self.info_hash)
            await self._changed.wait()

    def read(self, file: int, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)`` of file number ``file``: a read-only view of the file itself, no copy.

        Raises `VerificationError` for bytes that have not been fetched and checked, `ClosedError` after the end.
        """
        self._check_open()
        pieces = self._covering([ByteRange(file=file, start=start, stop=stop)])
        if self.plan.missing(pieces):
            name = self.metadata.files[file].name
            raise VerificationError(f"bytes {start}..{stop} of {name} are not verified yet; wait for them first")
        return memoryview(self._mapped(file))[start:stop]

    def progress(self) -> Progress:
        """What is known now. Peers and rate are those of the last `refresh`."""
        return Progress(
            done_bytes=self.map.bytes_in(self.plan.done()),
            wanted_bytes=self.map.bytes_in(self.plan.wanted),
            downloaded_payload=self._stats.downloaded_payload,
            refused_pieces=self._refused,
            peers=self._stats.peers,
            rate=self._stats.rate,
        )

    async def refresh(self) -> Progress:
        """Progress with the session's counters of this moment."""
        await self._ask_stats(pieces=False)
        return self.progress()

    async def progress_changed(self) -> Progress:
        """The progress a moment later, for a progress bar. Raises as `wait` does."""
        await trio.sleep(PROGRESS_PERIOD)
        self._check_failure()
        return await self.refresh()

    # Called by the session.

    def handle(self, event: Event) -> None:
        """Take note of what happened and wake whoever waits."""
        match event:
            case PieceFinished():
                self.plan.finished((event.piece,))
                self._reprioritise()
            case Flushed():
                self.plan.flushed()
            case FlushingItself():
                self.plan.flushing_itself()
            case PieceRefused():
                self._refused += 1
            case Stats():
                self._take_stats(event)
            case Failed():
                if self._failure is None:
                    self._failure = event
                    self._engine.pause(self.info_hash)  # it would go on to serve what it could not write
            case Checked():
                self._checked = True
            case Added():
                self._added = event
            case Removed():
                self._removed = True
        self.wake()

    def wake(self) -> None:
        """Let every waiting task look again."""
        self._changed.set()
        self._changed = trio.Event()

    def answers_lost(self) -> None:
        """Events were dropped: ask for the state instead."""
        self.plan.answers_lost()
        self._engine.ask_stats(self.info_hash, pieces=True)
        self.wake()

    def close(self) -> None:
        """Nothing may be read any more; views that were handed out stay valid."""
        self._closed = True
        self._maps.clear()
        self.wake()

    async def added(self) -> None:
        """Return once the session took the torrent. Raises `ResourceError` if it did not."""
        while self._added is None:
            await self._changed.wait()
        if self._added.problem:
            raise ResourceError(f"the torrent for {self.folder} could not be added: {self._added.problem}")

    async def checked(self) -> None:
        """Return once everything that was on disk has been checked and is known."""
        while not self._checked:
            self._check_failure()
            await self._changed.wait()
        self._check_failure()
        await self._ask_stats(pieces=True)
        self._check_failure()

    async def removed(self) -> None:
        """Return once the session has let go of the files."""
        while not self._removed:
            await self._changed.wait()

    async def _ask_stats(self, *, pieces: bool) -> None:
        self._check_open()
        seen = self._stats_count
        self._engine.ask_stats(self.info_hash, pieces=pieces)
        while self._stats_count == seen:
            await self._changed.wait()
            self._check_open()

    def _take_stats(self, stats: Stats) -> None:
        self._stats = stats
        self._stats_count += 1
        if not stats.checking:
            self._checked = True
        if stats.pieces is not None:
            self.plan.finished(stats.pieces)
            self._reprioritise()
        if stats.problem and self._failure is None:
            self._failure = Failed(path=str(self.folder), reason=stats.problem)

    def _reprioritise(self) -> None:
        """Give the next tiers their turn; most pieces change nothing."""
        if self.plan.turn_changed():
            self._engine.prioritise(self.info_hash, self.plan.priorities())

    async def _verify(self, pieces: list[int]) -> None:
        """Hash pieces as they are in the files, in a thread: libtorrent answers a flush the disk refused, too."""
        places = [self.map.place(piece) for piece in pieces]
        maps = {file: self._mapped(file) for file, _ in places}
        wrong = await trio.to_thread.run_sync(_first_wrong, self.metadata, places, maps)
        self._check_open()
        self._check_failure()
        if wrong is not None:
            path = self.folder / self.metadata.files[wrong].name
            raise ResourceError(f"{path} does not hold what was written to it; check the disk, remove it, start again")
        self.plan.verified(pieces)

    def _covering(self, ranges: Iterable[ByteRange]) -> set[int]:
        try:
            return self.map.pieces(ranges)
        except LayoutError as error:
            raise UsageError(f"{error}; take ranges from the model's manifest") from error

    def _mapped(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            self._maps[file] = self._map_file(file)
        return self._maps[file]

    def _map_file(self, file: int) -> mmap.mmap:
        path = self.folder / self.metadata.files[file].name
        size = self.metadata.files[file].size
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != size:  # a shorter map would end the process on access
                    raise ResourceError(f"{path} was cut or replaced while in use; remove it and start again")
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}; check the disk") from error

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the torrent in {self.folder} is closed")

    def _check_failure(self) -> None:
        if self._failure is not None:
            failure = self._failure
            raise ResourceError(
                f"cannot use {failure.path}: {failure.reason}; free some space or choose another folder, then start "
                "again: what is there is kept"
            )


def _first_wrong(metadata: TorrentMetadata, places: list[tuple[int, int]], maps: dict[int, mmap.mmap]) -> int | None:
    """The first file that does not hold one of the pieces at ``places`` (file, piece in it)."""
    for file, number in places:
        start = number * metadata.piece_length
        stop = min(start + metadata.piece_length, metadata.files[file].size)
        if not metadata.is_piece(file, number, memoryview(maps[file])[start:stop]):
            return file
    return None
