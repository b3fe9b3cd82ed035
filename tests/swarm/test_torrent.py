from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarm.errors import ClosedError, ResourceError, UsageError, VerificationError
from swarm.ids import InfoHash
from swarm.layout import ByteRange
from swarm.metadata import PieceHasher, TorrentFile, TorrentMetadata
from swarm.sharing import Neighbour
from swarm.torrent import Torrent
from swarm.torrent_events import (
    Added,
    Checked,
    Failed,
    Flushed,
    FlushingItself,
    PieceFinished,
    PieceRefused,
    Removed,
    Stats,
)
from swarm.weight_files import Placement

PIECE = 32 * 1024
DATA = bytes(range(256)) * 500  # four pieces, the last one short
ALL = [ByteRange(file=0, start=0, stop=len(DATA))]
FIRST = [ByteRange(file=0, start=0, stop=10)]


@dataclass
class Asked:
    """An engine that notes what is asked of it."""

    calls: list[str] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    around: list[Neighbour] = field(default_factory=list)
    peer_id: bytes = b"me"

    def flush(self, info_hash: InfoHash) -> None:
        self.calls.append("flush")

    def ask_stats(self, info_hash: InfoHash, *, pieces: bool) -> None:
        self.calls.append(f"stats {pieces}")

    def prioritise(self, info_hash: InfoHash, priorities: list[int]) -> None:
        self.priorities = priorities

    def connect(self, info_hash: InfoHash, host: str, port: int) -> None:
        self.calls.append(f"connect {host} {port}")

    async def neighbours(self, info_hash: InfoHash) -> list[Neighbour]:
        await trio.lowlevel.checkpoint()
        return self.around

    def crowded(self, info_hash: InfoHash, *, crowded: bool) -> None:
        self.calls.append(f"crowded {crowded}")

    def pause(self, info_hash: InfoHash) -> None:
        self.calls.append("pause")


def stats(*pieces: int, checking: bool = False, problem: str = "") -> Stats:
    return Stats(
        checking=checking,
        downloaded_payload=7,
        uploaded_payload=5,
        peers=1,
        rate=3,
        problem=problem,
        pieces=frozenset(pieces),
    )


def make(folder: Path, tiers: list[list[ByteRange]], on_disk: bytes = DATA) -> tuple[Torrent, Asked]:
    hasher = PieceHasher(size=len(DATA), piece_length=PIECE)
    hasher.update(DATA)
    root, layer = hasher.finish()
    file = TorrentFile(name="model.safetensors", size=len(DATA), root=root, layer=layer)
    (folder / file.name).write_bytes(on_disk)
    asked = Asked()
    metadata = TorrentMetadata(files=(file,), piece_length=PIECE)
    return Torrent(metadata, Placement.in_folder(metadata, folder), asked, tiers), asked


async def test_bytes_are_readable_after_their_flush_and_not_before(tmp_path: Path, nursery: trio.Nursery) -> None:
    torrent, asked = make(tmp_path, [FIRST])
    nursery.start_soon(torrent.wait, FIRST)
    await wait_all_tasks_blocked()
    assert asked.calls == []
    torrent.handle(FlushingItself())
    torrent.handle(PieceFinished(piece=0))
    await wait_all_tasks_blocked()
    assert asked.calls == ["flush", "flush"]
    torrent.handle(Flushed())
    await wait_all_tasks_blocked()
    with pytest.raises(VerificationError, match="not verified"):
        torrent.read(0, 0, 10)
    torrent.handle(Flushed())
    await torrent.wait(FIRST)
    assert torrent.read(0, 3, 10) == DATA[3:10]
    with pytest.raises(TypeError):
        torrent.read(0, 0, 10)[0] = 1
    with pytest.raises(VerificationError):
        torrent.read(0, PIECE - 1, PIECE + 1)
    with pytest.raises(UsageError):
        torrent.read(0, 0, len(DATA) + 1)
    with pytest.raises(UsageError, match="not being fetched"):
        await torrent.wait(ALL)


async def test_bytes_that_the_disk_lost_are_never_handed_out(tmp_path: Path) -> None:
    torrent, _ = make(tmp_path, [ALL], on_disk=bytes(len(DATA)))
    torrent.handle(stats(0, 1, 2, 3))
    torrent.plan.start_flush({0, 1, 2, 3})
    torrent.handle(Flushed())
    with pytest.raises(ResourceError, match=r"model\.safetensors does not hold"):
        await torrent.wait(ALL)
    with pytest.raises(VerificationError):
        torrent.read(0, 0, 1)


async def test_a_file_cut_while_in_use_is_named(tmp_path: Path) -> None:
    torrent, _ = make(tmp_path, [ALL], on_disk=DATA[:-1])
    torrent.handle(stats(0, 1, 2, 3))
    torrent.plan.start_flush({0, 1, 2, 3})
    torrent.handle(Flushed())
    with pytest.raises(ResourceError, match="was cut: it ends before byte 128000"):
        await torrent.wait(ALL)


async def test_a_failure_stops_the_torrent_and_a_flush_answered_with_it_does_not_count(tmp_path: Path) -> None:
    torrent, asked = make(tmp_path, [FIRST, ALL])
    torrent.handle(PieceFinished(piece=0))
    torrent.plan.start_flush({0})
    torrent.handle(Failed(path="/disk/model.safetensors", reason="no space left on device"))
    torrent.handle(Failed(path="/disk/other", reason="later"))
    torrent.handle(Flushed())
    assert asked.calls == ["pause"]
    for waited in (FIRST, ALL):
        with pytest.raises(ResourceError, match=r"/disk/model\.safetensors: no space left on device; free some space"):
            await torrent.wait(waited)
    with pytest.raises(ResourceError):
        await torrent.progress_changed()


async def test_what_was_verified_before_a_failure_stays_readable(tmp_path: Path) -> None:
    torrent, _ = make(tmp_path, [FIRST, ALL])
    torrent.handle(PieceFinished(piece=0))
    torrent.plan.start_flush({0})
    torrent.handle(Flushed())
    await torrent.wait(FIRST)
    torrent.handle(Failed(path="/disk", reason="no space left on device"))
    await torrent.wait(FIRST)
    assert torrent.read(0, 0, 4) == DATA[:4]


async def test_dropped_events_are_made_good_by_asking(tmp_path: Path, nursery: trio.Nursery) -> None:
    torrent, asked = make(tmp_path, [ALL])
    nursery.start_soon(torrent.wait, ALL)
    torrent.handle(PieceFinished(piece=0))
    torrent.answers_lost()
    assert asked.calls == ["stats True"]
    torrent.handle(stats(0, 1, 2, 3))
    await wait_all_tasks_blocked()
    assert asked.calls == ["stats True", "flush"]
    torrent.answers_lost()
    await wait_all_tasks_blocked()
    assert asked.calls == ["stats True", "flush", "stats True", "flush", "flush"]
    torrent.handle(Flushed())
    torrent.handle(Flushed())
    await torrent.wait(ALL)


async def test_the_next_tier_comes_first_when_one_is_complete(tmp_path: Path) -> None:
    torrent, asked = make(tmp_path, [FIRST, [ByteRange(file=0, start=PIECE, stop=PIECE + 1)], ALL])
    assert torrent.plan.priorities() == [7, 6, 5, 5]
    torrent.handle(PieceFinished(piece=3))
    assert asked.priorities == []
    torrent.handle(PieceFinished(piece=0))
    assert asked.priorities == [7, 7, 6, 6]


async def test_progress_counts_what_was_asked_for(tmp_path: Path) -> None:
    torrent, _ = make(tmp_path, [FIRST, [ByteRange(file=0, start=3 * PIECE, stop=len(DATA))]])
    torrent.handle(PieceRefused(piece=0))
    torrent.handle(PieceFinished(piece=3))
    torrent.handle(PieceFinished(piece=1))
    torrent.handle(stats(1, 3))
    progress = torrent.progress()
    last = len(DATA) - 3 * PIECE
    assert (progress.done_bytes, progress.wanted_bytes, progress.refused_pieces) == (last, PIECE + last, 1)
    assert (progress.downloaded_payload, progress.peers, progress.rate) == (7, 1, 3)


async def test_adding_and_checking(tmp_path: Path, nursery: trio.Nursery) -> None:
    torrent, asked = make(tmp_path, [ALL])
    torrent.handle(Added(problem=""))
    await torrent.added()
    nursery.start_soon(torrent.checked)
    await wait_all_tasks_blocked()
    assert asked.calls == []
    torrent.handle(Checked())
    await wait_all_tasks_blocked()
    assert asked.calls == ["stats True"]
    torrent.handle(stats(2))
    assert torrent.plan.done() == {2}
    torrent.handle(Removed())
    await torrent.removed()
    refused, _ = make(tmp_path, [ALL])
    refused.handle(Added(problem="too many torrents"))
    with pytest.raises(ResourceError, match="too many torrents"):
        await refused.added()
    failing, _ = make(tmp_path, [ALL])
    failing.handle(stats(problem="permission denied"))
    with pytest.raises(ResourceError, match="permission denied"):
        await failing.checked()


async def test_closing_ends_waiting_and_reading_but_not_what_was_handed_out(tmp_path: Path) -> None:
    torrent, _ = make(tmp_path, [FIRST, ALL])
    torrent.handle(PieceFinished(piece=0))
    torrent.plan.start_flush({0})
    torrent.handle(Flushed())
    await torrent.wait(FIRST)
    view = torrent.read(0, 0, 10)
    ended = trio.Event()

    async def waits() -> None:
        with pytest.raises(ClosedError):
            await torrent.wait(ALL)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
        torrent.close()
        await ended.wait()
    assert view == DATA[:10]
    with pytest.raises(ClosedError):
        torrent.read(0, 0, 10)
    with pytest.raises(ClosedError):
        torrent.add_peer("127.0.0.1", 1)


async def test_work_is_shared_while_others_fetch_the_same_and_not_longer(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    torrent, asked = make(tmp_path, [ALL])
    done = trio.Event()

    async def shares() -> None:
        await torrent.share()
        done.set()

    nursery.start_soon(shares)
    await trio.sleep(1)
    assert asked.calls == [], "alone"
    asked.around = [Neighbour(peer_id=b"other", pieces=frozenset({2}), fetching=True)]
    await trio.sleep(1)
    assert asked.calls == ["crowded True"]
    assert set(asked.priorities) <= {0, 1, 7}
    assert asked.priorities[2] > 0, "the other has it"
    asked.around = []
    await trio.sleep(1)
    assert asked.calls == ["crowded True", "crowded False"]
    assert asked.priorities == [7, 7, 7, 7]
    torrent.handle(stats(0, 1, 2, 3))
    await done.wait()
