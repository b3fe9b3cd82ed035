"""A model's torrent: version 2 only (BEP 52), one flat list of safetensors files, one byte string per content.

libtorrent reads a hybrid torrent that lacks ``pieces`` outside its buffer, so no metadata reaches it that is not,
byte for byte, what `TorrentMetadata.encode` would write: no version 1 keys, no trackers, no comments, no paths. The
torrent's name follows from its content, so whoever publishes the same files gets the same info-hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swarm import codec
from swarm.errors import ProtocolError
from swarm.ids import ContentHash, InfoHash
from swarm.safetensors_header import MAX_FILE

BLOCK = 16 * 1024  # BEP 52's leaf
MIN_PIECE = 2 * BLOCK  # with one-block pieces libtorrent drops honest peers after a corrupt piece ("invalid hashes")
MAX_PIECE = 16 * 2**20  # larger ones make a span's overhead 26 % and a corrupt block expensive
MAX_FILES = 4096  # the largest published models have a few hundred shards
MAX_PIECES = 2**20 - 2**10  # their hashes fit MAX_TORRENT with room for the file list
MAX_TORRENT = 32 * 2**20  # the limit of an object served by hash
HASH_SIZE = 32

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,113}\.safetensors")
_BATCH_NAME = re.compile(r"[0-9a-f]{64}\.batch")  # a settlement batch, by its pieces root
_EMPTY = bytes(HASH_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorrentFile:
    """One file: its name (no folders), size in bytes, BEP 52 pieces root and piece layer.

    The layer is the concatenated 32-byte hashes of its pieces, empty for a file that fits one piece.
    """

    name: str
    size: int
    root: bytes
    layer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TorrentMetadata:
    """The whole torrent. Files are in order of their names; every layer has been checked against its root."""

    files: tuple[TorrentFile, ...]
    piece_length: int

    def __post_init__(self) -> None:
        if not is_piece_length(self.piece_length):
            raise ProtocolError(f"piece length {self.piece_length} is not a power of two in {MIN_PIECE}..{MAX_PIECE}")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise ProtocolError(f"a model's torrent has 1 to {MAX_FILES} files, not {len(self.files)}")
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ProtocolError("a torrent's files are not in order of their names, each once")
        if sum(piece_count(file.size, self.piece_length) for file in self.files) > MAX_PIECES:
            raise ProtocolError(f"a model's torrent has at most {MAX_PIECES} pieces; use larger ones")
        for file in self.files:
            _check_file(file, self.piece_length)

    @property
    def info_hash(self) -> InfoHash:
        """SHA-256 of the info dictionary."""
        return info_hash(tuple((file.name, file.size, file.root) for file in self.files), self.piece_length)

    def is_piece(self, file: int, number: int, data: bytes | memoryview) -> bool:
        """Whether ``data`` is piece ``number`` of file number ``file``, each counted from 0."""
        facts = self.files[file]
        start = number * self.piece_length
        if len(data) != min(self.piece_length, facts.size - start):
            return False
        leaves = [hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
        if not facts.layer:
            return _tree_root(leaves, _power(len(leaves)), _EMPTY) == facts.root
        wanted = facts.layer[number * HASH_SIZE : (number + 1) * HASH_SIZE]
        return _tree_root(leaves, self.piece_length // BLOCK, _EMPTY) == wanted

    def encode(self) -> bytes:
        """The canonical bytes of the .torrent file. Raises `ProtocolError` if they are over `MAX_TORRENT`."""
        facts = tuple((file.name, file.size, file.root) for file in self.files)
        layers = {file.root: file.layer for file in self.files if file.layer}
        raw = codec.encode({b"info": _info(facts, self.piece_length), b"piece layers": dict(sorted(layers.items()))})
        if len(raw) > MAX_TORRENT:
            raise ProtocolError(f"a torrent of {len(raw)} bytes is over the limit of {MAX_TORRENT}; use larger pieces")
        return raw

    @property
    def content_hash(self) -> ContentHash:
        """SHA-256 of the .torrent file, under which it is served."""
        return ContentHash(hashlib.sha256(self.encode()).digest())

    @classmethod
    def decode(cls, raw: bytes) -> TorrentMetadata:
        """Read a .torrent file. Raises `ProtocolError` unless it is exactly what `encode` writes."""
        fields = _table(codec.decode(raw, limit=MAX_TORRENT), {b"info", b"piece layers"}, "a torrent")
        info = _table(fields[b"info"], {b"file tree", b"meta version", b"name", b"piece length"}, "info")
        tree, layers, piece_length = info[b"file tree"], fields[b"piece layers"], info[b"piece length"]
        if info[b"meta version"] != 2 or type(piece_length) is not int:
            raise ProtocolError("a model's torrent is of version 2 with an integer piece length")
        if not isinstance(tree, dict) or not isinstance(layers, dict):
            raise ProtocolError("a torrent's file tree and piece layers are dictionaries")
        if len(tree) > MAX_FILES:
            raise ProtocolError(f"a model's torrent has at most {MAX_FILES} files, not {len(tree)}")
        files = tuple(_file(name, node, layers) for name, node in tree.items())
        metadata = cls(files=files, piece_length=piece_length)
        if metadata.encode() != raw:
            raise ProtocolError("a model's torrent holds a name or piece layers that do not follow from its files")
        return metadata


class PieceHasher:
    """Hashes one file of a known size, fed in order, into its pieces root and piece layer."""

    __slots__ = ("_fed", "_leaves", "_part", "_piece_length", "_pieces", "_size")

    def __init__(self, *, size: int, piece_length: int) -> None:
        if not is_piece_length(piece_length) or size <= 0:
            raise ValueError(f"cannot cut {size} bytes into pieces of {piece_length}")
        self._size, self._piece_length = size, piece_length
        self._fed = 0
        self._part = b""
        self._leaves: list[bytes] = []
        self._pieces: list[bytes] = []

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file. Whole multiples of 16 KiB are hashed without a copy."""
        self._fed += len(data)
        view = memoryview(data)
        if self._part:
            missing = BLOCK - len(self._part)
            self._part, view = self._part + bytes(view[:missing]), view[missing:]
            if len(self._part) < BLOCK:
                return
            self._leaf(self._part)
        whole = len(view) - len(view) % BLOCK
        for start in range(0, whole, BLOCK):
            self._leaf(view[start : start + BLOCK])
        self._part = bytes(view[whole:])

    def finish(self) -> tuple[bytes, bytes]:
        """(pieces root, piece layer). Raises `ValueError` if other than ``size`` bytes came."""
        if self._fed != self._size:
            raise ValueError(f"{self._fed} bytes came where {self._size} were announced")
        if self._part:
            self._leaf(self._part)
            self._part = b""
        if self._size <= self._piece_length:
            leaves = self._leaves or self._pieces
            root = leaves[0] if self._pieces else _tree_root(leaves, _power(len(leaves)), _EMPTY)
            return root, b""
        if self._leaves:
            self._close_piece()
        return _layer_root(self._pieces, self._piece_length), b"".join(self._pieces)

    def _leaf(self, block: bytes | memoryview) -> None:
        self._leaves.append(hashlib.sha256(block).digest())
        if len(self._leaves) * BLOCK == self._piece_length:
            self._close_piece()

    def _close_piece(self) -> None:
        self._pieces.append(_tree_root(self._leaves, self._piece_length // BLOCK, _EMPTY))
        self._leaves = []


def is_piece_length(value: int) -> bool:
    """Whether a model's torrent may have pieces of this many bytes."""
    return MIN_PIECE <= value <= MAX_PIECE and not value & (value - 1)


def choose_piece_length(*, smallest: int, total: int) -> int:
    """Piece length for a model whose smallest unit of placement has ``smallest`` of its ``total`` bytes.

    At most 1/64 of that unit, so that a span costs about 1 % beyond its bytes; more only if the torrent would have
    too many pieces.
    """
    length = MIN_PIECE
    while length < MAX_PIECE and (length * 2 * 64 <= smallest or total // length > MAX_PIECES // 2):
        length *= 2
    return length


def info_hash(files: tuple[tuple[str, int, bytes], ...], piece_length: int) -> InfoHash:
    """The info-hash of a torrent of these (name, size, pieces root), in order of their names."""
    return InfoHash(hashlib.sha256(codec.encode(_info(files, piece_length))).digest())


def piece_count(size: int, piece_length: int) -> int:
    """Pieces of a file."""
    return -(-size // piece_length)


def _info(files: tuple[tuple[str, int, bytes], ...], piece_length: int) -> dict[bytes, Any]:
    content = hashlib.sha256(b"".join(root for _, _, root in files)).hexdigest()
    return {
        b"file tree": {
            name.encode("ascii"): {b"": {b"length": size, b"pieces root": root}} for name, size, root in files
        },
        b"meta version": 2,
        b"name": f"weights-{content[:16]}".encode("ascii"),
        b"piece length": piece_length,
    }


def _file(name: bytes, node: Any, layers: dict[bytes, Any]) -> TorrentFile:
    leaf = _table(_table(node, {b""}, "a file tree entry")[b""], {b"length", b"pieces root"}, "a file")
    size, root = leaf[b"length"], leaf[b"pieces root"]
    if type(size) is not int or not isinstance(root, bytes):
        raise ProtocolError("a torrent's file has an integer length and a byte string root")
    layer = layers.get(root, b"")
    if not isinstance(layer, bytes):
        raise ProtocolError("a torrent's piece layers are byte strings")
    return TorrentFile(name=name.decode("latin-1"), size=size, root=root, layer=layer)


def check_file_name(name: str) -> None:
    """Raise `ProtocolError` unless ``name`` is a plain file name ending in .safetensors."""
    if not _NAME.fullmatch(name):
        raise ProtocolError("a torrent's file is not named like model-00001-of-00002.safetensors")


def _check_file(file: TorrentFile, piece_length: int) -> None:
    if not _BATCH_NAME.fullmatch(file.name):
        check_file_name(file.name)
    if not 1 <= file.size <= MAX_FILE:
        raise ProtocolError(f"file {file.name} has {file.size} bytes, outside 1..{MAX_FILE}")
    if len(file.root) != HASH_SIZE:
        raise ProtocolError(f"file {file.name} has a pieces root of {len(file.root)} bytes, not {HASH_SIZE}")
    pieces = piece_count(file.size, piece_length) if file.size > piece_length else 0
    if len(file.layer) != pieces * HASH_SIZE:
        raise ProtocolError(f"file {file.name} has a piece layer of {len(file.layer)} bytes, not {pieces * HASH_SIZE}")
    if pieces and _layer_root(list(_hashes(file.layer)), piece_length) != file.root:
        raise ProtocolError(f"file {file.name} has a piece layer that does not hash to its root")


def _hashes(layer: bytes) -> Iterator[bytes]:
    return (layer[start : start + HASH_SIZE] for start in range(0, len(layer), HASH_SIZE))


def _table(value: Any, keys: set[bytes], what: str) -> dict[bytes, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        raise ProtocolError(f"{what} in a model's torrent has other keys than its {len(keys)}")
    return value


def _layer_root(pieces: list[bytes], piece_length: int) -> bytes:
    """The root over piece hashes; what is missing to a power of two are pieces of empty leaves."""
    pad = _EMPTY
    for _ in range((piece_length // BLOCK).bit_length() - 1):
        pad = hashlib.sha256(pad + pad).digest()
    return _tree_root(pieces, _power(len(pieces)), pad)


def _tree_root(leaves: list[bytes], width: int, pad: bytes) -> bytes:
    """The root of a binary SHA-256 tree of ``width`` (a power of two) leaves, the missing ones ``pad``."""
    row = leaves
    while width > 1:
        if len(row) % 2:
            row = [*row, pad]
        row = [hashlib.sha256(row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
        pad = hashlib.sha256(pad + pad).digest()
        width //= 2
    return row[0]


def _power(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()
