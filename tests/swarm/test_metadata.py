from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import codec
from swarm.errors import ProtocolError
from swarm.metadata import (
    BLOCK,
    MAX_PIECE,
    MIN_PIECE,
    PieceHasher,
    TorrentFile,
    TorrentMetadata,
    choose_piece_length,
    is_piece_length,
)

PIECE = 4 * BLOCK


def hashed(name: str, data: bytes, piece_length: int = PIECE) -> TorrentFile:
    hasher = PieceHasher(size=len(data), piece_length=piece_length)
    hasher.update(data)
    root, layer = hasher.finish()
    return TorrentFile(name=name, size=len(data), root=root, layer=layer)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def small_torrent() -> TorrentMetadata:
    files = (hashed("a.safetensors", content(3 * PIECE + 5)), hashed("b.safetensors", content(100)))
    return TorrentMetadata(files=files, piece_length=PIECE)


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, PIECE, PIECE + 1, 5 * PIECE - 1, 8 * PIECE, 9 * PIECE + 8])
def test_roots_and_layers_are_those_of_libtorrent(tmp_path: Path, size: int) -> None:
    data = {"a.safetensors": content(size), "b.safetensors": content(2 * PIECE + 7, seed=1)}
    ours = TorrentMetadata(files=tuple(hashed(name, raw) for name, raw in data.items()), piece_length=PIECE)
    (tmp_path / "t").mkdir()
    for name, raw in data.items():
        (tmp_path / "t" / name).write_bytes(raw)
    entries = [lt.create_file_entry(f"t/{name}", len(raw)) for name, raw in data.items()]
    made = lt.create_torrent(entries, PIECE, lt.create_torrent.v2_only)
    lt.set_piece_hashes(made, str(tmp_path))
    theirs: Any = made.generate()
    mine: Any = codec.decode(ours.encode(), limit=2**20)
    assert mine[b"info"][b"file tree"] == theirs[b"info"][b"file tree"]
    assert mine[b"piece layers"] == theirs[b"piece layers"]
    loaded = lt.load_torrent_buffer(ours.encode())
    assert loaded.ti is not None
    assert loaded.ti.info_hashes().v2.to_bytes() == ours.info_hash


@pytest.mark.parametrize("size", [1, BLOCK, PIECE, PIECE + 1, 5 * PIECE - 1])
def test_a_piece_is_known_by_its_bytes(size: int) -> None:
    data = content(size)
    torrent = TorrentMetadata(files=(hashed("a.safetensors", data),), piece_length=PIECE)
    for number in range(-(-size // PIECE)):
        part = data[number * PIECE : (number + 1) * PIECE]
        assert torrent.is_piece(0, number, part)
        assert not torrent.is_piece(0, number, part[:-1])
        assert not torrent.is_piece(0, number, part + b"\0")
        assert not torrent.is_piece(0, number, part[:-1] + bytes([part[-1] ^ 1]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=12), st.integers(0, 9))
def test_the_hash_does_not_depend_on_how_the_bytes_come(sizes: list[int], seed: int) -> None:
    data = content(sum(sizes), seed)
    hasher = PieceHasher(size=len(data), piece_length=MIN_PIECE)
    at = 0
    for size in sizes:
        hasher.update(memoryview(data)[at : at + size])
        at += size
    assert hasher.finish() == (hashed("x", data, MIN_PIECE).root, hashed("x", data, MIN_PIECE).layer)


def test_the_root_is_the_same_at_every_piece_length() -> None:
    data = content(9 * PIECE + 1)
    assert len({hashed("x", data, length).root for length in (MIN_PIECE, PIECE, 8 * PIECE, MAX_PIECE)}) == 1


def test_a_file_that_changes_its_size_is_noticed() -> None:
    hasher = PieceHasher(size=10, piece_length=PIECE)
    hasher.update(b"short")
    with pytest.raises(ValueError, match="announced"):
        hasher.finish()


def test_a_torrent_is_read_back() -> None:
    torrent = small_torrent()
    assert TorrentMetadata.decode(torrent.encode()) == torrent


def hostile() -> dict[str, Any]:
    """Name of the trick → what it does to the decoded torrent."""

    def info(key: bytes, value: Any) -> Any:
        return lambda torrent: torrent[b"info"].__setitem__(key, value)

    def leaf(key: bytes, value: Any) -> Any:
        return lambda torrent: torrent[b"info"][b"file tree"][b"a.safetensors"][b""].__setitem__(key, value)

    def rename(name: bytes) -> Any:
        def change(torrent: Any) -> None:
            tree = torrent[b"info"][b"file tree"]
            tree[name] = tree.pop(b"b.safetensors")

        return change

    return {
        "hybrid": info(b"pieces", bytes(20)),
        "version 1 files": info(b"files", []),
        "version 1 length": info(b"length", 5),
        "private": info(b"private", 1),
        "version 1": info(b"meta version", 1),
        "version 3": info(b"meta version", 3),
        "another name": info(b"name", b"../x"),
        "not a power of two": info(b"piece length", PIECE + BLOCK),
        "tiny pieces": info(b"piece length", BLOCK // 2),
        "one-block pieces": info(b"piece length", BLOCK),
        "huge pieces": info(b"piece length", 2 * MAX_PIECE),
        "negative pieces": info(b"piece length", -PIECE),
        "pieces as text": info(b"piece length", b"65536"),
        "no tree": info(b"file tree", {}),
        "tree of the wrong type": info(b"file tree", []),
        "a file without pieces root": lambda t: t[b"info"][b"file tree"][b"a.safetensors"][b""].pop(b"pieces root"),
        "a link": leaf(b"symlink path", [b"etc"]),
        "attributes": leaf(b"attr", b"x"),
        "an empty file": leaf(b"length", 0),
        "a negative file": leaf(b"length", -1),
        "an endless file": leaf(b"length", 2**62),
        "a short root": leaf(b"pieces root", bytes(31)),
        "another root": leaf(b"pieces root", bytes(32)),
        "a longer file": leaf(b"length", 9 * PIECE),
        "upwards": rename(b"../b.safetensors"),
        "absolute": rename(b"/b.safetensors"),
        "hidden": rename(b".safetensors"),
        "another kind of file": rename(b"b.bin"),
        "a line break": rename(b"b.safetensors\n"),
        "not ASCII": rename(b"\xff.safetensors"),
        "a folder": lambda t: t[b"info"][b"file tree"].__setitem__(b"c", {b"c.safetensors": {b"": {}}}),
        "no layers": lambda t: t.__setitem__(b"piece layers", {}),
        "wrong layers": lambda t: t[b"piece layers"].update({key: bytes(128) for key in t[b"piece layers"]}),
        "short layers": lambda t: t[b"piece layers"].update({key: bytes(96) for key in t[b"piece layers"]}),
        "layers of no file": lambda t: t[b"piece layers"].__setitem__(bytes(32), bytes(64)),
        "layers of the wrong type": lambda t: t.__setitem__(b"piece layers", []),
        "a tracker": lambda t: t.__setitem__(b"announce", b"http://example.org/"),
        "web seeds": lambda t: t.__setitem__(b"url-list", b"http://example.org/"),
        "no info": lambda t: t.pop(b"info"),
    }


@pytest.mark.parametrize("trick", hostile())
def test_a_hostile_torrent_is_refused(trick: str) -> None:
    torrent: Any = codec.decode(small_torrent().encode(), limit=2**20)
    hostile()[trick](torrent)
    for table in (torrent, torrent.get(b"info", {})):
        for key, value in list(table.items()):
            table[key] = dict(sorted(value.items())) if isinstance(value, dict) else value
    with pytest.raises(ProtocolError):
        TorrentMetadata.decode(codec.encode(dict(sorted(torrent.items()))))


@settings(max_examples=200)
@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    raw = bytearray(small_torrent().encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = TorrentMetadata.decode(bytes(raw))
    except ProtocolError:
        return
    assert changed.info_hash != small_torrent().info_hash  # the root of a one-piece file, for instance


def test_pieces_are_a_64th_of_a_layer_within_limits() -> None:
    assert choose_piece_length(smallest=400 * 2**20, total=2**34) == 4 * 2**20
    assert choose_piece_length(smallest=1, total=1) == MIN_PIECE
    assert choose_piece_length(smallest=2**50, total=2**50) == MAX_PIECE
    assert choose_piece_length(smallest=2**20, total=2**40) == 4 * 2**20, "a torrent has a bounded number of pieces"
    assert all(is_piece_length(choose_piece_length(smallest=2**n, total=2**n)) for n in range(45))
    assert not is_piece_length(PIECE + 1)
