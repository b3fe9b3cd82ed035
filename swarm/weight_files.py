"""The files of a torrent where they lie on disk: reading them, hashing them, and what they look like.

Read with `os.pread`, never mapped: touching a map of a file that somebody cuts ends the process.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.checked import Stamp
from swarm.errors import ResourceError
from swarm.metadata import TorrentMetadata
from swarm.pieces import PieceMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a torrent's files lie, and what is known of them."""

    paths: tuple[Path, ...]
    """One per file, in the torrent's order."""
    have: frozenset[int] | None = None
    """Pieces that were read back and hashed, the files unchanged since; None has everything there checked."""
    keep: Callable[[Sequence[int]], None] | None = None
    """Called in a thread with pieces that were read back and hashed just now."""

    @classmethod
    def in_folder(cls, metadata: TorrentMetadata, folder: Path, have: frozenset[int] | None = None) -> Placement:
        """Under the names that the torrent gives them."""
        return cls(paths=tuple(folder / file.name for file in metadata.files), have=have)


class WeightFiles:
    """Reads files that stay open until `close`; may be used from several threads."""

    def __init__(self, metadata: TorrentMetadata, paths: Sequence[Path]) -> None:
        self.metadata = metadata
        self.paths = tuple(paths)
        self._map = PieceMap.of(metadata)
        self._opened: dict[int, int] = {}
        self._opening = threading.Lock()

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of file number ``file``. Raises `ResourceError` naming it if they are not there."""
        path = self.paths[file]
        try:
            with self._opening:
                if file not in self._opened:
                    self._opened[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                descriptor = self._opened[file]
            data = os.pread(descriptor, stop - start, start)
            while 0 < len(data) < stop - start:  # Linux reads at most 2 GiB at once
                more = os.pread(descriptor, stop - start - len(data), start + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}; check the disk") from error
        if len(data) != stop - start:
            raise ResourceError(f"{path} was cut: it ends before byte {stop}; remove it and start again")
        return data

    def holds(self, piece: int) -> bool:
        """Whether the piece is in its file as the torrent has it. Raises `ResourceError` as `read` does."""
        file, number = self._map.place(piece)
        start = number * self.metadata.piece_length
        stop = min(start + self.metadata.piece_length, self.metadata.files[file].size)
        return self.metadata.is_piece(file, number, self.read(file, start, stop))

    def first_wrong(self, pieces: Iterable[int]) -> int | None:
        """The first of ``pieces`` that its file does not hold."""
        return next((piece for piece in pieces if not self.holds(piece)), None)

    def found(self, file: int) -> Iterator[int]:
        """The pieces that one file holds: all that the disk has bytes for are read and hashed, holes are skipped."""
        path, size, length = self.paths[file], self.metadata.files[file].size, self.metadata.piece_length
        first = self._map.first(file)
        try:
            there = path.stat().st_size
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}; check the disk") from error
        seen = -1
        for start, stop in _extents(path, there):
            for number in range(max(start // length, seen + 1), -(-stop // length)):
                seen = number
                if min((number + 1) * length, size) <= there and self.holds(first + number):
                    yield first + number

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._opened.values():
            os.close(descriptor)
        self._opened.clear()


def stamp_of(path: Path) -> Stamp | None:
    """How a file looks now; None if it is not there. Raises `ResourceError` for what is no plain file, or a link."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}; check the disk") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ResourceError(f"{path} is in the way: it is no plain file; remove it")
    return Stamp(size=facts.st_size, mtime_ns=facts.st_mtime_ns, ctime_ns=facts.st_ctime_ns)


def _extents(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that the disk has bytes for; all of it where the file system cannot tell."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position = 0
        while position < size:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
                stop = os.lseek(descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: nothing but a hole is left
                    yield position, size
                return
            yield start, stop
            position = stop
    finally:
        os.close(descriptor)
