"""Files of the store in use by this process: locked, with what is known of their pieces kept up to date."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from swarm.checked import MAX_RECORD, Checked, Stamp
from swarm.errors import ProtocolError, ResourceError
from swarm.metadata import TorrentMetadata
from swarm.pieces import PieceMap
from swarm.weight_files import Placement, WeightFiles, stamp_of


class Lease:
    """Files of one torrent in use. Made by `Store.lease`; `close` ends it."""

    def __init__(self, metadata: TorrentMetadata, paths: Sequence[Path]) -> None:
        self.metadata = metadata
        self.map = PieceMap.of(metadata)
        self.have: frozenset[int] = frozenset()
        """Pieces that are in the files, at the start."""
        self.paths = tuple(paths)
        if len(set(self.paths)) != len(self.paths):
            raise ProtocolError("a torrent lists the same content twice; tell its publisher")
        self._locks: dict[int, int] = {}
        self._records: dict[int, Checked] = {}
        self._writable: set[int] = set()

    @property
    def placement(self) -> Placement:
        """Where `Torrents.fetch` finds and keeps the files."""
        return Placement(paths=self.paths, have=self.have, keep=self.keep)

    def take(self, wanted: Iterable[int]) -> None:
        """Lock the files of the pieces ``wanted`` and find out what is there."""
        pieces: dict[int, set[int]] = {}
        for piece in wanted:
            file, number = self.map.place(piece)
            pieces.setdefault(file, set()).add(number)
        have: set[int] = set()
        for file, numbers in sorted(pieces.items()):
            record = self._take(file, numbers)
            have.update(self.map.first(file) + number for number in record.pieces)
        self.have = frozenset(have)

    def reserve(self, wanted: Iterable[int]) -> None:
        """Note how much the files will take, for whoever looks at the quota meanwhile."""
        sizes: dict[int, set[int]] = {}
        for piece in {*wanted, *self.have}:
            sizes.setdefault(self.map.place(piece)[0], set()).add(piece)
        for file in self._writable & sizes.keys():
            self._write(file, replace(self._records[file], reserved=self.map.bytes_in(sizes[file])))

    def keep(self, pieces: Sequence[int]) -> None:
        """Record pieces that were read back and hashed just now; a file that is whole may be shared from then on."""
        found: dict[int, set[int]] = {}
        for piece in pieces:
            file, number = self.map.place(piece)
            found.setdefault(file, set()).add(number)
        for file in found.keys() & self._writable:
            record = self._records[file]
            stamp = self._stamp(file)
            record = replace(record, pieces=record.pieces | found[file], stamp=stamp, boot=boot_id())
            self._write(file, record)
            if record.complete:
                self._share(file)

    def sync(self) -> None:
        """Make the disk keep what was recorded, so that it counts after a power cut, too."""
        for file in sorted(self._records):
            record = self._records[file]
            if not record.boot:
                continue
            _fsync(self.paths[file])
            stamp = self._stamp(file)
            if stamp == record.stamp:
                self._write(file, replace(record, boot=b""))

    def changed(self) -> Path | None:
        """A whole file that looks otherwise than when it was hashed: somebody else wrote to it, or cut it."""
        for file, record in self._records.items():
            if record.complete and stamp_of(self.paths[file]) != record.stamp:
                return self.paths[file]
        return None

    def close(self) -> None:
        """Give the files back."""
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()

    def _take(self, file: int, wanted: set[int]) -> Checked:
        """Lock one file and return what is checked of it."""
        path, facts = self.paths[file], self.metadata.files[file]
        alone = self._lock(file)
        record, stamp = read_record(path), stamp_of(path)
        trusted = (
            record is not None and stamp is not None and record.size == facts.size and record.holds(stamp, boot_id())
        )
        if trusted and record is not None and record.piece_length == self.metadata.piece_length:
            found = record
        elif trusted and record is not None and not alone:
            length = self.metadata.piece_length
            found = replace(record, pieces=record.recut(length), piece_length=length)
        else:
            found = self._look(file, record)
        if not alone and not wanted <= found.pieces:
            raise ResourceError(
                f"{path} is in use by another process or cannot be written, and lacks pieces that are wanted; wait "
                "until the other has fetched it, or give this one a home of its own"
            )
        self._records[file] = found
        if alone:
            self._writable.add(file)
            self._grow(path, facts.size)
            self._write(file, replace(found, stamp=self._stamp(file), reserved=0))
            if found.complete:
                self._share(file)
        return found

    def _look(self, file: int, record: Checked | None) -> Checked:
        """What is in a file of which the record tells nothing, or something that is no longer true: hash it."""
        files = WeightFiles(self.metadata, self.paths)
        first = self.map.first(file)
        try:
            pieces = frozenset(piece - first for piece in files.found(file))
        finally:
            files.close()
        return Checked(
            size=self.metadata.files[file].size,
            piece_length=self.metadata.piece_length,
            pieces=pieces,
            stamp=stamp_of(self.paths[file]) or Stamp(size=0, mtime_ns=0, ctime_ns=0),
            boot=boot_id(),
        )

    def _lock(self, file: int) -> bool:
        """Lock a file for this process alone (True), or together with others."""
        path = lock_path(self.paths[file])
        writable = True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.utime(descriptor)
        except OSError as error:
            writable = False
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                raise ResourceError(
                    f"cannot write to the store at {path.parent}: {error.strerror}; make it writable or choose another "
                    "home"
                ) from error
        self._locks[file] = descriptor
        if writable and try_lock(descriptor, fcntl.LOCK_EX):
            return True
        if not try_lock(descriptor, fcntl.LOCK_SH):
            raise ResourceError(
                f"another process is fetching {self.paths[file]}; wait until it has, or give this one a home of its own"
            )
        return False

    def _share(self, file: int) -> None:
        self._writable.discard(file)
        fcntl.flock(self._locks[file], fcntl.LOCK_SH)

    def _grow(self, path: Path, size: int) -> None:
        """libtorrent trusts what it is told of a file only if it has its full size; what is missing is a hole."""
        stamp = stamp_of(path)
        if stamp is None or stamp.size == size:
            return
        if stamp.size > size:
            raise ResourceError(f"{path} is longer than its content; remove it and start again")
        try:
            os.truncate(path, size)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}; choose another home") from error

    def _stamp(self, file: int) -> Stamp:
        return stamp_of(self.paths[file]) or Stamp(size=0, mtime_ns=0, ctime_ns=0)

    def _write(self, file: int, record: Checked) -> None:
        self._records[file] = record
        path = record_path(self.paths[file])
        part = path.with_suffix(f".{os.getpid()}")
        try:
            part.write_bytes(record.encode())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ResourceError(f"cannot write {path}: {error.strerror}; free some space or choose another") from error


def read_record(path: Path) -> Checked | None:
    """What is recorded of a file of the store; None where nothing is that can be read."""
    try:
        with record_path(path).open("rb") as stream:
            return Checked.decode(stream.read(MAX_RECORD + 1))
    except (OSError, ProtocolError):
        return None  # then the file itself is asked


def boot_id() -> bytes:
    """Which boot of the machine this is; where the system does not say, nothing unsynced outlives the process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return os.urandom(16)


def try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _fsync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}; check the disk") from error


def record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.checked")


def lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
