from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.errors import ProtocolError, ResourceError
from swarm.lease import Lease, read_record
from swarm.metadata import PieceHasher, TorrentFile, TorrentMetadata
from swarm.store import Store

PIECE = 32 * 1024
SIZES = (3 * PIECE + 100, 2 * PIECE)


def content(number: int, size: int) -> bytes:
    return bytes((number + at) % 251 for at in range(size))


def torrent(*numbers: int, piece: int = PIECE) -> TorrentMetadata:
    """Files by number: the same number is the same content in any torrent."""
    files = []
    for place, number in enumerate(numbers):
        data = content(number, SIZES[number % 2])
        hasher = PieceHasher(size=len(data), piece_length=piece)
        hasher.update(data)
        root, layer = hasher.finish()
        files.append(TorrentFile(name=f"model-{place}.safetensors", size=len(data), root=root, layer=layer))
    return TorrentMetadata(files=tuple(files), piece_length=piece)


def write(lease: Lease, *pieces: int) -> None:
    """What a transfer does: the bytes into the files, then the word that they were hashed there."""
    for piece in pieces:
        file, number = lease.map.place(piece)
        facts = lease.metadata.files[file]
        data = next(content(n, facts.size) for n in range(10) if torrent(n).files[0].root == facts.root)
        length = lease.metadata.piece_length
        with open(lease.paths[file], "r+b" if lease.paths[file].exists() else "w+b") as stream:
            stream.truncate(facts.size)
            stream.seek(number * length)
            stream.write(data[number * length : (number + 1) * length])
    lease.keep(pieces)


def fill(store: Store, metadata: TorrentMetadata) -> None:
    lease = store.lease(metadata, range(Lease(metadata, [Path(f.name) for f in metadata.files]).map.total))
    write(lease, *sorted(set(range(lease.map.total)) - lease.have))
    lease.sync()
    lease.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_written_is_there_for_the_next_lease_and_for_another_torrent(store: Store) -> None:
    lease = store.lease(torrent(0, 1), {0, 1, 4})
    assert lease.have == frozenset()
    write(lease, 0, 4)
    lease.close()
    again = store.lease(torrent(0, 1), {0, 1, 4, 5})
    assert again.have == {0, 4}
    again.close()
    other = store.lease(torrent(3, 0), {0, 2, 3})
    assert other.have == {2}, "the shared file is the second of this torrent"
    other.close()
    names = {path.name for path in (store.path / "files").iterdir()}
    assert all(name[:64] in {file.root.hex() for file in torrent(0, 1, 3).files} for name in names)


def test_a_record_is_trusted_only_while_the_file_looks_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = torrent(0)
    fill(store, metadata)
    path = store.path_of(metadata.files[0].root)

    def never(*_: object) -> None:
        raise AssertionError("an unchanged file is not hashed again")

    with monkeypatch.context() as patched:
        patched.setattr("swarm.lease.WeightFiles", never)
        lease = store.lease(metadata, {0, 1, 2, 3})
        assert lease.have == {0, 1, 2, 3}
        lease.close()
    raw = bytearray(path.read_bytes())
    raw[PIECE + 1] ^= 1
    path.write_bytes(raw)
    lease = store.lease(metadata, {0, 1, 2, 3})
    assert lease.have == {0, 2, 3}, "changed underneath: the piece is found wrong, the rest is kept"
    lease.close()


def test_a_truncated_file_keeps_the_pieces_before_the_cut(store: Store) -> None:
    metadata = torrent(0)
    fill(store, metadata)
    path = store.path_of(metadata.files[0].root)
    os.truncate(path, 2 * PIECE + 5)
    lease = store.lease(metadata, {0, 1, 2, 3})
    assert lease.have == {0, 1}
    assert path.stat().st_size == SIZES[0]
    lease.close()


def test_without_a_record_the_bytes_on_disk_are_hashed_and_holes_are_skipped(store: Store) -> None:
    metadata = torrent(0)
    lease = store.lease(metadata, {0, 2})
    write(lease, 0, 2)
    lease.close()
    path = store.path_of(metadata.files[0].root)
    path.with_name(f"{path.name}.checked").write_bytes(b"garbage")
    lease = store.lease(metadata, {0, 1})
    assert lease.have == {0, 2}
    lease.close()


def test_unsynced_bytes_count_until_the_machine_stops(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = torrent(0)
    lease = store.lease(metadata, {0})
    write(lease, 0)
    lease.close()
    path = store.path_of(metadata.files[0].root)
    with path.open("r+b") as stream:  # a power cut: the record is there, the bytes never came to the disk
        stream.write(bytes(PIECE))
    record = read_record(path)
    assert record is not None
    stamp = path.stat()
    forged = record.encode().replace(
        b"stampl" + b"".join(b"i%de" % n for n in (record.stamp.size, record.stamp.mtime_ns, record.stamp.ctime_ns)),
        b"stampl" + b"".join(b"i%de" % n for n in (stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns)),
    )
    path.with_name(f"{path.name}.checked").write_bytes(forged)
    monkeypatch.setattr("swarm.lease.boot_id", lambda: b"the next boot")
    lease = store.lease(metadata, {0})
    assert lease.have == frozenset()
    lease.close()


def test_one_process_fetches_into_a_file_and_many_use_it_once_it_is_whole(store: Store) -> None:
    metadata = torrent(0, 1)
    lease = store.lease(metadata, {0, 1})
    with pytest.raises(ResourceError, match=r"another process is fetching .*files/[0-9a-f]{64}; wait"):
        store.lease(metadata, {1})
    other = store.lease(metadata, {4})
    other.close()
    write(lease, 0, 1, 2, 3)
    sharing = store.lease(metadata, {0, 1})
    assert sharing.have == {0, 1, 2, 3}
    for each in (sharing, lease):
        each.close()


def test_a_lock_ends_with_its_process(store: Store) -> None:
    code = """
import sys
from pathlib import Path
from tests.swarm.test_store import Store, torrent, write
lease = Store(Path(sys.argv[1])).lease(torrent(0), {0, 1})
write(lease, 0)
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match="another process is fetching"):
            store.lease(torrent(0), {0})
        assert store.collect(needed=()) == []
        process.kill()
    lease = store.lease(torrent(0), {0, 1})
    assert lease.have == {0}
    lease.close()


def test_the_longest_unused_makes_room_and_what_is_in_use_stays(store: Store) -> None:
    for number, age in ((0, 300), (1, 200), (2, 100)):
        fill(store, torrent(number))
        lock = store.path_of(torrent(number).files[0].root)
        os.utime(lock.with_name(f"{lock.name}.lock"), (10**9 - age, 10**9 - age))
    held = store.lease(torrent(0), {0})
    store.quota = store.used() + PIECE // 2
    lease = store.lease(torrent(3), {0, 1})
    left = {file.root for file in store.files()}
    assert torrent(1).files[0].root not in left, "the oldest that nobody uses"
    assert {torrent(number).files[0].root for number in (0, 2, 3)} <= left
    store.quota = 10 * PIECE
    with pytest.raises(ResourceError, match=r"bytes are needed and the quota of 327,680 has room for"):
        store.lease(torrent(4, 5, 6), range(9))
    for each in (held, lease):
        each.close()


def test_a_model_larger_than_the_quota_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", quota=PIECE)
    with pytest.raises(ResourceError, match="raise disk_quota, take a shorter span"):
        store.lease(torrent(0), {0, 1})
    lease = store.lease(torrent(0), {0})
    lease.close()


def test_what_transfers_under_way_will_take_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", quota=6 * PIECE)
    first = store.lease(torrent(0), {0, 1, 2, 3})
    with pytest.raises(ResourceError, match="quota"):
        store.lease(torrent(2), {0, 1, 2, 3})
    first.close()
    store.lease(torrent(2), {0, 1, 2, 3}).close()


def test_collecting_removes_what_no_model_needs(store: Store) -> None:
    for number in (0, 1):
        fill(store, torrent(number))
    (store.path / "files" / "notes.txt").write_text("somebody's")
    removed = store.collect(needed={torrent(0).files[0].root})
    assert [file.root for file in removed] == [torrent(1).files[0].root]
    assert removed[0].checked == SIZES[1]
    (kept,) = store.files()
    assert kept.root == torrent(0).files[0].root
    assert kept.size == kept.checked == SIZES[0]
    assert not kept.in_use
    assert (store.path / "files" / "notes.txt").exists(), "not a name of the store's"


def test_links_and_repeated_contents_are_refused(store: Store, tmp_path: Path) -> None:
    metadata = torrent(0)
    path = store.path_of(metadata.files[0].root)
    path.parent.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"x")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ResourceError, match="no plain file; remove it"):
        store.lease(metadata, {0})
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="is a link"):
        store.lease(metadata, {0})
    twice = torrent(0, 2)
    same = TorrentFile(
        name=twice.files[1].name, size=twice.files[0].size, root=twice.files[0].root, layer=twice.files[0].layer
    )
    with pytest.raises(ProtocolError, match="same content twice"):
        store.lease(TorrentMetadata(files=(twice.files[0], same), piece_length=PIECE), {0})


def test_a_file_that_changes_while_it_is_served_is_noticed(store: Store) -> None:
    metadata = torrent(0)
    fill(store, metadata)
    lease = store.lease(metadata, {0, 1, 2, 3})
    assert lease.changed() is None
    with store.path_of(metadata.files[0].root).open("r+b") as stream:
        stream.write(b"x")
    assert lease.changed() == lease.paths[0]
    lease.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_store_serves_what_it_has_and_names_the_rest(disk: Path) -> None:
    store = Store(disk / "store")
    fill(store, torrent(0))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    lease = store.lease(torrent(0), {0, 1})
    assert lease.have == {0, 1, 2, 3}
    lease.close()
    with pytest.raises(ResourceError, match=r"cannot write to the store at .*: .*(?i:read-only file system); make it"):
        store.lease(torrent(1), {0})


def test_a_disk_without_room_is_named_before_anything_is_fetched(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64k", str(disk)], check=True)
    with pytest.raises(ResourceError, match=r"bytes are needed and the disk of .*store has .* left; free some space"):
        Store(disk / "store").lease(torrent(0), {0, 1, 2, 3})
