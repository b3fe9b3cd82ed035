"""Which pieces of a v2 torrent cover which bytes, in what order to fetch them, and which may be read.

In a v2 torrent every file starts on a piece of its own (BEP 52), so a piece belongs to exactly one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from swarm.layout import ByteRange, LayoutError
from swarm.metadata import TorrentMetadata
from swarm.sharing import TOP_PRIORITY, Neighbour, crowd_of, owner_of, shared_priorities


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceMap:
    """Pieces of ``piece_length`` bytes over files of these sizes, in torrent order."""

    sizes: tuple[int, ...]
    piece_length: int

    @classmethod
    def of(cls, metadata: TorrentMetadata) -> PieceMap:
        """Those of a torrent."""
        return cls(sizes=tuple(file.size for file in metadata.files), piece_length=metadata.piece_length)

    def first(self, file: int) -> int:
        """Number of the file's first piece."""
        return sum(self._count(size) for size in self.sizes[:file])

    @property
    def total(self) -> int:
        """Pieces in the torrent."""
        return self.first(len(self.sizes))

    def pieces(self, ranges: Iterable[ByteRange]) -> set[int]:
        """The pieces that cover ``ranges``. Raises `LayoutError` for a range outside its file."""
        covered: set[int] = set()
        for item in ranges:
            if item.file >= len(self.sizes) or item.stop > self.sizes[item.file]:
                raise LayoutError(f"range [{item.start}, {item.stop}) lies outside file {item.file}")
            first = self.first(item.file)
            covered.update(range(first + item.start // self.piece_length, first + -(-item.stop // self.piece_length)))
        return covered

    def place(self, piece: int) -> tuple[int, int]:
        """(file, number of the piece within it)."""
        for file, size in enumerate(self.sizes):
            count = self._count(size)
            if piece < count:
                return file, piece
            piece -= count
        raise LayoutError("a piece lies behind the last file")

    def bytes_in(self, pieces: Iterable[int]) -> int:
        """Bytes that ``pieces`` hold together: a file's last piece may be short."""
        short = {self.first(file + 1) - 1: size % self.piece_length for file, size in enumerate(self.sizes)}
        return sum(short.get(piece) or self.piece_length for piece in pieces)

    def _count(self, size: int) -> int:
        return -(-size // self.piece_length)


class FetchPlan:
    """Tiers of pieces in the order they are needed, and what is fetched, flushed and so readable.

    A piece is *finished* when libtorrent says its hash holds, *flushed* once the cache has been written after that
    (libtorrent reports pieces whose bytes are not in the file yet), and *verified* when its bytes were read back from
    the file and hashed: a flush onto a full disk is answered like any other. One flush is under way at a time; it
    counts for those pieces that were finished when it was asked for.

    libtorrent also flushes on its own, and its answers do not say to whom. So as many flushes are asked for as
    answers may still be on their way, and one more: once as many answers have come, one of them is ours.
    """

    __slots__ = (
        "_awaited", "_crowd", "_finished", "_flushed", "_flushing", "_on_the_way",
        "_owners", "_tiers", "_total", "_turn", "_verified", "wanted",
    )  # fmt: skip

    def __init__(self, total: int, tiers: Sequence[AbstractSet[int]]) -> None:
        self.wanted = frozenset[int]().union(*tiers)
        self._total = total
        self._tiers = [tier for tier in tiers if tier]
        self._finished: set[int] = set()
        self._flushing: set[int] = set()
        self._flushed: set[int] = set()
        self._verified: set[int] = set()
        self._on_the_way = 0  # answers that may still come, at most
        self._turn = 0  # the first tier that is not finished
        self._awaited = 0  # answers that must come before the flush under way is over
        self._crowd: tuple[bytes, ...] = ()
        self._owners: dict[int, bytes] = {}

    def done(self) -> frozenset[int]:
        """The wanted pieces whose hash holds."""
        return self.wanted & self._finished

    def missing(self, pieces: AbstractSet[int]) -> AbstractSet[int]:
        """Those of ``pieces`` whose bytes may not be read yet."""
        return pieces - self._verified

    def to_verify(self, pieces: AbstractSet[int]) -> AbstractSet[int]:
        """Those of ``pieces`` that are in the file and were not hashed there yet."""
        return pieces & self._flushed - self._verified

    def verified(self, pieces: Iterable[int]) -> None:
        """These were read back from the file and their hashes hold."""
        self._verified.update(pieces)

    def unfinished(self, pieces: AbstractSet[int]) -> AbstractSet[int]:
        """Those of ``pieces`` whose hash is not known to hold."""
        return pieces - self._finished

    def finished(self, pieces: Iterable[int]) -> None:
        """The hashes of ``pieces`` hold."""
        self._finished.update(pieces)

    def start_flush(self, pieces: AbstractSet[int]) -> int:
        """How many flushes to ask for now so that ``pieces`` get into the file; 0 if it is not time for one."""
        if self._awaited or not pieces <= self._finished or pieces <= self._flushed:
            return 0
        self._flushing = set(self._finished)
        self._awaited = self._on_the_way + 1
        self._on_the_way += self._awaited
        return self._awaited

    def flushing_itself(self) -> None:
        """libtorrent came to a point where it flushes on its own."""
        self._on_the_way += 1

    def flushed(self) -> None:
        """An answer came."""
        self._on_the_way = max(0, self._on_the_way - 1)
        if self._awaited:
            self._awaited -= 1
            if not self._awaited:
                self._flushed |= self._flushing

    def answers_lost(self) -> None:
        """Answers may have been dropped: the flush under way is given up, to be asked for again."""
        self._awaited = 0

    def turn_changed(self) -> bool:
        """Whether tiers have been completed since the last call, so that the next ones come first."""
        turn = self._turn
        while self._turn < len(self._tiers) and self._tiers[self._turn] <= self._finished:
            self._turn += 1
        return turn < self._turn < len(self._tiers)

    def priorities(self) -> list[int]:
        """Priority per piece: the first seven unfinished tiers 7…1, later ones 1, pieces of no tier 0.

        Priorities in tiers complete one layer after the other; equal ones complete all layers at the very end.
        """
        priorities = [0] * self._total
        level = TOP_PRIORITY
        for number, tier in enumerate(self._tiers):
            for piece in tier:
                priorities[piece] = max(priorities[piece], level)
            if number >= self._turn:
                level = max(1, level - 1)
        return priorities

    def crowded_priorities(self, me: bytes, neighbours: Sequence[Neighbour]) -> list[int] | None:
        """Priority per piece among others who fetch the same (`swarm.sharing`); None while nobody does."""
        crowd = crowd_of(me, neighbours, self.wanted)
        if len(crowd) == 1:
            return None
        if crowd != self._crowd:
            self._crowd = crowd
            self._owners = {piece: owner_of(piece, crowd) for piece in self.wanted}
        left = [tier - self._finished for tier in self._tiers]
        own = {piece for tier in left for piece in tier if self._owners[piece] == me}
        elsewhere = frozenset[int]().union(*(each.pieces for each in neighbours if each.fetching))
        return shared_priorities(self._total, left, own, elsewhere)
