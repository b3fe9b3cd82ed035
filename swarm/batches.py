"""Batches: every batched channel's highest voucher in one file, and the two trees over it. Pure.

A file is a header record and records of 256 bytes in order of (worker, client), filled with zeros to blocks of 16 KiB:

    header  "swarm-batch/v1\\0\\0" 16 | chain_id 32 | contract 20 | snapshot 8 | count 8 | total 16 | zeros 156
    record  client 20 | worker 20 | epoch 8 | nonce 8 | cumulative 16 | counted 16 | worker_running 16 |
            total_running 16 | receipts_root 32 | signature 64 | terms_hash 32 | zeros 8

Numbers are big-endian. ``counted`` is min(cumulative, cap), the running sums are over ``counted``. ``record_root`` is
a SHA-256 tree over all records, ``pieces_root`` the BEP 52 root of the file, whose leaves are whole blocks. Both are
filled up to a power of two blocks, the first with zero records, the second with zero hashes as BEP 52 has it. The tree
needs no tags: leaves are hashes of 256 bytes or 16 KiB, nodes of 64.

A file of at most 1024 blocks is one piece of a torrent, so that the torrent follows from ``pieces_root`` and size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swarm.errors import ProtocolError, UsageError
from swarm.ids import Address
from swarm.merkle import HASH_SIZE
from swarm.metadata import BLOCK, MIN_PIECE, TorrentFile, TorrentMetadata
from swarm.receipts import UINT64_MAX, UINT128_MAX, Channel, SignedVoucher, Voucher

RECORD_SIZE = 256
RECORDS_PER_BLOCK = BLOCK // RECORD_SIZE
BLOCK_LEVELS = RECORDS_PER_BLOCK.bit_length() - 1
MAX_BLOCKS = 1024  # 16 MiB, the largest piece of a torrent; 65 535 channels
MAX_RECORDS = MAX_BLOCKS * RECORDS_PER_BLOCK - 1
HEADER_TAG = b"swarm-batch/v1\0\0"
EMPTY_RECORD = bytes(RECORD_SIZE)
EMPTY_LEAF = hashlib.sha256(EMPTY_RECORD).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHeader:
    """Record 0: which contract the batch is for, and which of its blocks it was made from."""

    chain_id: int
    contract: Address
    """The settlement contract, as vouchers name it."""
    snapshot: int
    """Number of the block whose state caps and closes are judged by."""
    count: int
    """Records without this one."""
    total: int
    """The sum of what they count, in base units."""

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MAX_RECORDS or not 0 <= self.snapshot <= UINT64_MAX:
            raise ProtocolError(f"a batch has 0 to {MAX_RECORDS} records and a block's number, not {self.count}")
        if not 0 <= self.total <= UINT128_MAX or not 0 <= self.chain_id < 1 << 256:
            raise ProtocolError("a batch's total or chain id is out of range")

    def pack(self) -> bytes:
        """The 256 bytes."""
        fields = (
            HEADER_TAG,
            self.chain_id.to_bytes(32, "big"),
            self.contract,
            self.snapshot.to_bytes(8, "big"),
            self.count.to_bytes(8, "big"),
            self.total.to_bytes(16, "big"),
        )
        return b"".join(fields).ljust(RECORD_SIZE, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One channel's highest voucher, and the sums up to it."""

    SIZE: ClassVar[int] = RECORD_SIZE

    client: Address
    worker: Address
    epoch: int
    nonce: int
    cumulative: int
    counted: int
    worker_running: int
    """Sum of ``counted`` over this worker's records so far: what the worker is due."""
    total_running: int
    """The same over all records so far."""
    receipts_root: bytes
    signature: bytes
    terms_hash: bytes
    reserved: int = 0

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What records are in order of."""
        return self.worker, self.client

    def pack(self) -> bytes:
        """The 256 bytes."""
        return b"".join(
            (
                self.client,
                self.worker,
                self.epoch.to_bytes(8, "big"),
                self.nonce.to_bytes(8, "big"),
                self.cumulative.to_bytes(16, "big"),
                self.counted.to_bytes(16, "big"),
                self.worker_running.to_bytes(16, "big"),
                self.total_running.to_bytes(16, "big"),
                self.receipts_root,
                self.signature,
                self.terms_hash,
                self.reserved.to_bytes(8, "big"),
            )
        )

    @classmethod
    def unpack(cls, raw: bytes) -> BatchRecord:
        """Read 256 bytes; any are a record. Raises `ProtocolError` for another number of them."""
        if len(raw) != RECORD_SIZE:
            raise ProtocolError(f"a batch's record is {RECORD_SIZE} bytes, not {len(raw)}")
        return cls(
            client=Address(raw[:20]),
            worker=Address(raw[20:40]),
            epoch=int.from_bytes(raw[40:48], "big"),
            nonce=int.from_bytes(raw[48:56], "big"),
            cumulative=int.from_bytes(raw[56:72], "big"),
            counted=int.from_bytes(raw[72:88], "big"),
            worker_running=int.from_bytes(raw[88:104], "big"),
            total_running=int.from_bytes(raw[104:120], "big"),
            receipts_root=raw[120:152],
            signature=raw[152:216],
            terms_hash=raw[216:248],
            reserved=int.from_bytes(raw[248:], "big"),
        )

    def voucher(self, *, chain_id: int, contract: Address) -> SignedVoucher:
        """The voucher that the record holds, for this contract."""
        channel = Channel(
            chain_id=chain_id, contract=contract, client=self.client, worker=self.worker, epoch=self.epoch
        )
        voucher = Voucher(
            channel=channel,
            nonce=self.nonce,
            cumulative=self.cumulative,
            receipts_root=self.receipts_root,
            terms_hash=self.terms_hash,
        )
        return SignedVoucher(voucher=voucher, signature=self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedBatch:
    """What stands on chain of a batch; every call about it repeats these fields."""

    record_root: bytes
    pieces_root: bytes
    snapshot: int
    count: int
    total: int
    posted: int
    """When it was posted, in seconds of the chain's clock; 0 before."""

    @property
    def blocks(self) -> int:
        """Blocks of its file."""
        return block_count(self.count)

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return self.blocks * BLOCK

    def torrent(self) -> TorrentMetadata:
        """The torrent of its file: one piece, so that root and size are all it takes."""
        piece = MIN_PIECE
        while piece < self.size:
            piece *= 2
        file = TorrentFile(name=file_name(self.pieces_root), size=self.size, root=self.pieces_root, layer=b"")
        return TorrentMetadata(files=(file,), piece_length=piece)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordProof:
    """A record with its path: what the contract checks before it believes a byte of it."""

    index: int
    """Its place; the header is 0."""
    record: bytes
    path: tuple[bytes, ...]
    """Siblings up to the record root, the lowest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a channel stands in a batch, or would stand."""

    at: RecordProof
    """Its own record, or the last before it (the header where there is none)."""
    after: RecordProof
    """The next record; the same as ``at`` where it is not looked at."""


class BatchTree:
    """The levels of the record tree over a file of whole blocks."""

    def __init__(self, file: bytes) -> None:
        if not file or len(file) % BLOCK or len(file) > MAX_BLOCKS * BLOCK:
            raise ProtocolError(f"a batch's file is 1 to {MAX_BLOCKS} blocks of {BLOCK} bytes, not {len(file)} bytes")
        self.file = file
        leaves = [hashlib.sha256(file[at : at + RECORD_SIZE]).digest() for at in range(0, len(file), RECORD_SIZE)]
        self.levels = _levels(leaves, BLOCK_LEVELS + depth_of(len(file) // BLOCK), EMPTY_LEAF)
        blocks = [hashlib.sha256(file[at : at + BLOCK]).digest() for at in range(0, len(file), BLOCK)]
        self._pieces = _levels(blocks, depth_of(len(blocks)), bytes(HASH_SIZE))

    @property
    def root(self) -> bytes:
        """``record_root``."""
        return self.levels[-1][0]

    @property
    def pieces_root(self) -> bytes:
        """The BEP 52 root of the file."""
        return self._pieces[-1][0]

    @property
    def layer(self) -> tuple[bytes, ...]:
        """What stands in the record tree for each block of the file."""
        return tuple(self.levels[BLOCK_LEVELS][: len(self.file) // BLOCK])

    def raw(self, index: int) -> bytes:
        """The bytes of record ``index``, the header's being 0."""
        return self.file[index * RECORD_SIZE : (index + 1) * RECORD_SIZE]

    def record(self, index: int) -> BatchRecord:
        """Record ``index``, from 1."""
        return BatchRecord.unpack(self.raw(index))

    def block(self, number: int) -> bytes:
        """The bytes of one block."""
        return self.file[number * BLOCK : (number + 1) * BLOCK]

    def leaf(self, index: int) -> bytes:
        """The hash that stands at a place of the file."""
        return self.levels[0][index]

    def path(self, index: int) -> tuple[bytes, ...]:
        """Siblings of record ``index``, the lowest first."""
        return _path(self.levels, index)

    def block_path(self, number: int) -> tuple[bytes, ...]:
        """Siblings of a block in the record tree, the lowest first."""
        return _path(self.levels[BLOCK_LEVELS:], number)

    def piece_path(self, number: int) -> tuple[bytes, ...]:
        """Siblings of a block up to ``pieces_root``, the lowest first."""
        return _path(self._pieces, number)

    def proof(self, index: int) -> RecordProof:
        """A record with its path."""
        return RecordProof(index=index, record=self.raw(index), path=self.path(index))

    def find(self, count: int, client: Address, worker: Address) -> int:
        """The place of the last of ``count`` records that does not stand behind this channel's; 0 if all do."""
        low, high = 0, count
        while low < high:
            middle = (low + high + 1) // 2
            if self.record(middle).key <= (worker, client):
                low = middle
            else:
                high = middle - 1
        return low

    def place(self, count: int, client: Address, worker: Address) -> Place:
        """Where a channel stands, for its close."""
        at = self.find(count, client, worker)
        return Place(at=self.proof(at), after=self.proof(min(at + 1, count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A channel for a batch: its highest voucher, and the cap at the snapshot in base units."""

    signed: SignedVoucher
    cap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch in the making: its file's tree and what will be posted of it."""

    header: BatchHeader
    tree: BatchTree

    @property
    def posting(self) -> PostedBatch:
        """What is posted, without the time."""
        return PostedBatch(
            record_root=self.tree.root,
            pieces_root=self.tree.pieces_root,
            snapshot=self.header.snapshot,
            count=self.header.count,
            total=self.header.total,
            posted=0,
        )


def build_batch(entries: Iterable[Entry], *, chain_id: int, contract: Address, snapshot: int) -> Batch:
    """The batch of these channels. Raises `UsageError` for vouchers of another contract and channels given twice."""
    rows = sorted(entries, key=lambda entry: (entry.signed.voucher.channel.worker, entry.signed.voucher.channel.client))
    if len(rows) > MAX_RECORDS:
        raise UsageError(f"a batch takes {MAX_RECORDS} channels, not {len(rows)}; post several")
    records: list[BatchRecord] = []
    for entry in rows:
        voucher, before = entry.signed.voucher, records[-1] if records else None
        channel = voucher.channel
        if (channel.chain_id, channel.contract) != (chain_id, contract):
            raise UsageError(f"a voucher is for contract 0x{channel.contract}; batch it there")
        if before is not None and before.key == (channel.worker, channel.client):
            raise UsageError(f"channel {channel.client.short} to {channel.worker.short} is there twice; keep one")
        counted = min(voucher.cumulative, entry.cap)
        same = before is not None and before.worker == channel.worker
        record = BatchRecord(
            client=channel.client,
            worker=channel.worker,
            epoch=channel.epoch,
            nonce=voucher.nonce,
            cumulative=voucher.cumulative,
            counted=counted,
            worker_running=counted + (before.worker_running if before is not None and same else 0),
            total_running=counted + (before.total_running if before is not None else 0),
            receipts_root=voucher.receipts_root,
            signature=entry.signed.signature,
            terms_hash=voucher.terms_hash,
        )
        records.append(record)
    total = records[-1].total_running if records else 0
    header = BatchHeader(chain_id=chain_id, contract=contract, snapshot=snapshot, count=len(records), total=total)
    return Batch(header=header, tree=BatchTree(pack_file(header, [record.pack() for record in records])))


def pack_file(header: BatchHeader, records: Sequence[bytes]) -> bytes:
    """The file of packed records under a header."""
    data = b"".join((header.pack(), *records))
    return data + bytes(-len(data) % BLOCK)


def block_count(count: int) -> int:
    """Blocks of the file of so many records."""
    return count // RECORDS_PER_BLOCK + 1


def depth_of(blocks: int) -> int:
    """Levels of the trees above so many blocks."""
    return (blocks - 1).bit_length()


def file_name(pieces_root: bytes) -> str:
    """What a batch's file is called, in a torrent and on disk."""
    return f"{pieces_root.hex()}.batch"


def layer_root(layer: Sequence[bytes]) -> bytes:
    """The record root over the nodes of the file's blocks."""
    return _levels(list(layer), depth_of(len(layer)), empty_block())[-1][0]


def layer_path(layer: Sequence[bytes], number: int) -> tuple[bytes, ...]:
    """Siblings of a block's node up to that root, the lowest first."""
    return _path(_levels(list(layer), depth_of(len(layer)), empty_block()), number)


def empty_block() -> bytes:
    """What stands in the record tree for 64 zero records."""
    return _levels([EMPTY_LEAF], BLOCK_LEVELS, EMPTY_LEAF)[-1][0]


def subtree(block: bytes) -> bytes:
    """What stands in the record tree for a block of 16 KiB."""
    leaves = [hashlib.sha256(block[at : at + RECORD_SIZE]).digest() for at in range(0, BLOCK, RECORD_SIZE)]
    return _levels(leaves, BLOCK_LEVELS, EMPTY_LEAF)[-1][0]


def _levels(leaves: list[bytes], depth: int, pad: bytes) -> list[list[bytes]]:
    """A tree of 2**depth leaves, the missing ones ``pad``: its levels from the leaves up, each filled to be even."""
    levels = [leaves]
    for _ in range(depth):
        row = levels[-1]
        if len(row) % 2:
            row.append(pad)
        levels.append([hashlib.sha256(row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)])
        pad = hashlib.sha256(pad + pad).digest()
    return levels


def _path(levels: Sequence[Sequence[bytes]], index: int) -> tuple[bytes, ...]:
    return tuple(row[(index >> level) ^ 1] for level, row in enumerate(levels[:-1]))
