"""The store: weights by content, whatever model, torrent or name they came under.

    files/ROOT          one file of weights, named by its BEP 52 root; sparse while only parts of it are there
    files/ROOT.checked  which of its pieces were read back and hashed (`swarm.checked`)
    files/ROOT.lock     held by whoever uses the file: alone while it is being written, together once it is whole
    lock                held for moments, by whoever takes files into use or removes some

Nothing here has a name that a peer chose. Locks are the system's (`flock`): they end with the process that holds them,
however it ends. Several workers may use one store; only one at a time fetches into a file.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swarm.checked import Checked
from swarm.errors import ResourceError
from swarm.lease import Lease, lock_path, read_record, record_path, try_lock
from swarm.metadata import TorrentMetadata
from swarm.pieces import PieceMap
from swarm.weight_files import WeightFiles

FILES = "files"
BLOCK = 512  # bytes of stat's block
_NAME = re.compile(r"[0-9a-f]{64}(?:\.checked)?")  # a transfer that has just begun has no data yet


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of weights. Sizes in bytes."""

    root: bytes
    size: int
    """Of the whole file; 0 where nothing is recorded of it."""
    on_disk: int
    checked: int
    """Bytes in pieces that were read back and hashed."""
    used: float
    """When it was last taken into use, in Unix seconds."""
    in_use: bool


class Store:
    """Files of weights under one folder. Everything blocks; call it in a thread."""

    def __init__(self, path: Path, *, quota: int = 0) -> None:
        self.path = path
        self.quota = quota
        """Bytes that it may take; 0 is whatever the disk has."""

    def lease(self, metadata: TorrentMetadata, wanted: Collection[int]) -> Lease:
        """Take the files of the pieces ``wanted`` into use, with room for what is missing of them.

        Whatever is there is found: by the record where the file is unchanged, else by hashing it. Files that nobody
        uses are removed, the longest unused first, if the quota asks for it. Raises `ResourceError` when another
        process fetches into one of the files, when there is no room, or when the store cannot be written.
        """
        lease = Lease(metadata, [self.path_of(file.root) for file in metadata.files])
        try:
            with self._locked():
                lease.take(wanted)
                self._make_room(lease, wanted)
        except BaseException:
            lease.close()
            raise
        return lease

    def files(self) -> list[StoredFile]:
        """Everything in it, the longest unused first."""
        found = [self._describe(path) for path in self._data_files()]
        return sorted(found, key=lambda file: file.used)

    def used(self) -> int:
        """Bytes on disk, or promised to transfers under way."""
        total = 0
        for path in self._data_files():
            record = read_record(path)
            reserved = record.reserved if record is not None and self._in_use(path) else 0
            total += max(_on_disk(path), reserved)
        return total

    def collect(self, *, needed: Collection[bytes] | None = None) -> list[StoredFile]:
        """Remove files that nobody uses: those whose root is not ``needed`` (None needs all), then by the quota.

        Returns what was removed.
        """
        with self._locked():
            removed = [
                file
                for file in self.files()
                if needed is not None and file.root not in needed and self._remove(file.root)
            ]
            if self.quota:
                removed += self._shrink(self.used() - self.quota)
        return removed

    def verify(self, metadata: TorrentMetadata, file: int) -> list[int]:
        """Hash every checked piece of one file of a torrent again; returns those that are wrong, numbered within it.

        What is wrong is forgotten, so that it is fetched again, unless the file is in use.
        """
        path = self.path_of(metadata.files[file].root)
        record = read_record(path)
        if record is None:
            return []
        paths = [self.path_of(each.root) for each in metadata.files]
        files = WeightFiles(metadata, paths)
        first = PieceMap.of(metadata).first(file)
        try:
            pieces = record.recut(metadata.piece_length)
            wrong = [number for number in sorted(pieces) if not _holds(files, first + number)]
        finally:
            files.close()
        with self._locked():
            if wrong and not self._in_use(path):
                record_path(path).unlink(missing_ok=True)  # whoever takes it next hashes it
        return wrong

    def path_of(self, root: bytes) -> Path:
        """Where the file with this root lies."""
        return self.path / FILES / root.hex()

    def _make_room(self, lease: Lease, wanted: Collection[int]) -> None:
        missing = lease.map.bytes_in(set(wanted) - lease.have)
        if not missing:
            return
        if self.quota:
            self._shrink(self.used() + missing - self.quota)
            if (left := self.quota - self.used()) < missing:
                raise ResourceError(
                    f"{missing:,} bytes are needed and the quota of {self.quota:,} has room for {max(0, left):,}; "
                    "raise disk_quota, take a shorter span, or end what else uses the store"
                )
        facts = os.statvfs(self.path)
        if (free := facts.f_bavail * facts.f_frsize) < missing:
            self._shrink(missing - free)
            facts = os.statvfs(self.path)
            if (free := facts.f_bavail * facts.f_frsize) < missing:
                raise ResourceError(
                    f"{missing:,} bytes are needed and the disk of {self.path} has {free:,} left; free some space, "
                    "take a shorter span, or choose another home"
                )
        lease.reserve(wanted)

    def _shrink(self, excess: int) -> list[StoredFile]:
        """Remove what nobody uses, the longest unused first, until ``excess`` bytes are gone."""
        removed: list[StoredFile] = []
        for file in self.files():
            if excess <= 0:
                break
            if self._remove(file.root):
                removed.append(file)
                excess -= file.on_disk
        return removed

    def _remove(self, root: bytes) -> bool:
        """Remove one file unless it is in use. The store's lock is held: nobody takes it meanwhile."""
        path = self.path_of(root)
        if self._in_use(path):
            return False
        try:
            for each in (record_path(path), path, lock_path(path)):
                each.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot remove {path}: {error.strerror}; check the store's permissions") from error
        return True

    def _describe(self, path: Path) -> StoredFile:
        record = read_record(path)
        lock = lock_path(path)
        return StoredFile(
            root=bytes.fromhex(path.name),
            size=record.size if record is not None else 0,
            on_disk=_on_disk(path),
            checked=_bytes_checked(record) if record is not None else 0,
            used=lock.stat().st_mtime if lock.exists() else 0.0,
            in_use=self._in_use(path),
        )

    def _in_use(self, path: Path) -> bool:
        try:
            descriptor = os.open(lock_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return not try_lock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)

    def _data_files(self) -> list[Path]:
        folder = self.path / FILES
        if not folder.is_dir():
            return []
        roots = {path.name.partition(".")[0] for path in folder.iterdir() if _NAME.fullmatch(path.name)}
        return sorted(folder / root for root in roots)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The store's own lock; on a store that cannot be written nobody removes anything, so there it is left out."""
        descriptor = None
        try:
            folder = self.path / FILES
            if folder.is_symlink():
                raise ResourceError(f"{folder} is a link; the store writes through none: remove it")
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if not (self.path / FILES).is_dir():
                raise ResourceError(f"cannot use {self.path}: {error.strerror}; choose another home") from error
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _holds(files: WeightFiles, piece: int) -> bool:
    try:
        return files.holds(piece)
    except ResourceError:
        return False  # cut short, or the disk cannot read it


def _on_disk(path: Path) -> int:
    try:
        return path.lstat().st_blocks * BLOCK
    except OSError:
        return 0


def _bytes_checked(record: Checked) -> int:
    short = (record.count - 1) in record.pieces and record.size % record.piece_length
    return len(record.pieces) * record.piece_length - (record.piece_length - short if short else 0)
