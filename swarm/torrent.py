"""One torrent of a session: what is there, what may be read. Drives a `FetchPlan`; knows no libtorrent.

The session hands it events; it asks the session through `Engine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from swarm.errors import ClosedError, ResourceError, UsageError, VerificationError
from swarm.layout import ByteRange, LayoutError
from swarm.metadata import TorrentMetadata
from swarm.pieces import FetchPlan, PieceMap
from swarm.torrent_events import (
    Added,
    Checked,
    Engine,
    Event,
    Failed,
    Flushed,
    FlushingItself,
    PeerBanned,
    PieceFinished,
    PieceRefused,
    Removed,
    Stats,
)
from swarm.weight_files import Placement, WeightFiles

SHARE_PERIOD = (
    0.25  # seconds between looks at who else fetches: a piece that another has waits that long, on average half
)
PROGRESS_PERIOD = 0.25  # seconds between two looks at a transfer: as often as a person can follow


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a transfer is. Sizes in bytes, ``rate`` in bytes per second of payload."""

    done_bytes: int
    """Of the pieces that were asked for, those that are here and whose hash holds."""
    wanted_bytes: int
    downloaded_payload: int
    """Received in this session, refused pieces included."""
    uploaded_payload: int
    """Sent to others in this session."""
    refused_pieces: int
    """Pieces that came with a wrong hash and were fetched again."""
    banned_peers: int
    """Peers that sent wrong bytes and are not talked to any more."""
    peers: int
    rate: int


class Torrent:
    """One torrent's files. Made by `Torrents.seed` and `Torrents.fetch`."""

    def __init__(
        self, metadata: TorrentMetadata, placement: Placement, engine: Engine, tiers: Sequence[Iterable[ByteRange]]
    ) -> None:
        self.metadata = metadata
        self.placement = placement
        self.info_hash = metadata.info_hash
        self.map = PieceMap.of(metadata)
        self.plan = FetchPlan(self.map.total, [self._covering(tier) for tier in tiers])
        self.plan.finished(placement.have or ())
        self.plan.verified(placement.have or ())
        self._files = WeightFiles(metadata, placement.paths)
        self._engine = engine
        self._changed = trio.Event()
        self._added: Added | None = None
        self._checked = False
        self._removed = False
        self._closed = False
        self._failure: Failed | None = None
        self._stats = Stats(
            checking=False, downloaded_payload=0, uploaded_payload=0, peers=0, rate=0, problem="", pieces=None
        )
        self._stats_count = 0
        self._priorities: list[int] | None = None  # among others who fetch the same
        self._refused = 0
        self._banned: set[bytes] = set()
        self._hashing = 0  # threads that read the files now

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
        """Bytes ``[start, stop)`` of file number ``file``.

        Raises `VerificationError` for bytes that have not been fetched and checked, `ClosedError` after the end.
        """
        self._check_open()
        pieces = self._covering([ByteRange(file=file, start=start, stop=stop)])
        if self.plan.missing(pieces):
            name = self.metadata.files[file].name
            raise VerificationError(f"bytes {start}..{stop} of {name} are not verified yet; wait for them first")
        return memoryview(self._files.read(file, start, stop))

    def progress(self) -> Progress:
        """What is known now. Peers and rate are those of the last `refresh`."""
        return Progress(
            done_bytes=self.map.bytes_in(self.plan.done()),
            wanted_bytes=self.map.bytes_in(self.plan.wanted),
            downloaded_payload=self._stats.downloaded_payload,
            uploaded_payload=self._stats.uploaded_payload,
            refused_pieces=self._refused,
            banned_peers=len(self._banned),
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

    async def share(self) -> None:
        """While anything is missing, share the work with others who fetch the same, as `swarm.sharing` has it."""
        while self.plan.unfinished(self.plan.wanted):
            self._check_open()
            peers = await self._engine.neighbours(self.info_hash)
            self._crowd(self.plan.crowded_priorities(self._engine.peer_id, peers))
            await trio.sleep(SHARE_PERIOD)
        self._crowd(None)

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
            case PeerBanned():
                if any(event.peer_id):  # else one that has gone already, and was counted
                    self._banned.add(event.peer_id)
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
        """Nothing may be read any more; what was handed out stays valid."""
        if not self._closed:
            self._closed = True
            if not self._hashing:
                self._files.close()
        self.wake()

    async def added(self) -> None:
        """Return once the session took the torrent. Raises `ResourceError` if it did not."""
        while self._added is None:
            await self._changed.wait()
        if self._added.problem:
            raise ResourceError(
                f"the torrent at {self.placement.paths[0].parent} could not be added: {self._added.problem}"
            )

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
            self._failure = Failed(path=str(self.placement.paths[0].parent), reason=stats.problem)

    def _reprioritise(self) -> None:
        """Give the next tiers their turn; most pieces change nothing."""
        if self.plan.turn_changed() and self._priorities is None:
            self._engine.prioritise(self.info_hash, self.plan.priorities())

    def _crowd(self, priorities: list[int] | None) -> None:
        """Ask for the pieces by these priorities; None is among nobody: tier by tier."""
        if priorities == self._priorities or self._closed:
            return
        if (priorities is None) != (self._priorities is None):
            self._engine.crowded(self.info_hash, crowded=priorities is not None)
        self._priorities = priorities
        self._engine.prioritise(self.info_hash, self.plan.priorities() if priorities is None else priorities)

    async def _verify(self, pieces: list[int]) -> None:
        """Hash pieces as they are in the files, in a thread: libtorrent answers a flush the disk refused, too."""
        self._hashing += 1
        try:
            wrong = await trio.to_thread.run_sync(self._hash, pieces)
        finally:
            self._hashing -= 1
            if self._closed and not self._hashing:
                self._files.close()
        self._check_open()
        self._check_failure()
        if wrong is not None:
            path = self.placement.paths[self.map.place(wrong)[0]]
            raise ResourceError(
                f"{path} does not hold piece {wrong} as it was written; check the disk, remove it, start again"
            )
        self.plan.verified(pieces)

    def _hash(self, pieces: list[int]) -> int | None:
        wrong = self._files.first_wrong(pieces)
        if wrong is None and self.placement.keep is not None:
            self.placement.keep(pieces)
        return wrong

    def _covering(self, ranges: Iterable[ByteRange]) -> set[int]:
        try:
            return self.map.pieces(ranges)
        except LayoutError as error:
            raise UsageError(f"{error}; take ranges from the model's manifest") from error

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the torrent {self.info_hash.short} is closed")

    def _check_failure(self) -> None:
        if self._failure is not None:
            failure = self._failure
            raise ResourceError(
                f"cannot use {failure.path}: {failure.reason}; free some space or choose another folder, then start "
                "again: what is there is kept"
            )
