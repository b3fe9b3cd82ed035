"""Files of batches and their trees, against plain definitions."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.batches import (
    EMPTY_LEAF,
    HEADER_TAG,
    MAX_RECORDS,
    BatchHeader,
    BatchRecord,
    BatchTree,
    Entry,
    PostedBatch,
    block_count,
    build_batch,
    depth_of,
    layer_path,
    layer_root,
    pack_file,
    subtree,
)
from swarm.errors import ProtocolError, UsageError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.metadata import BLOCK, PieceHasher, TorrentMetadata
from swarm.receipts import Channel, SignedVoucher, Voucher

KEY = Identity(bytes(32))
CONTRACT = Address(b"\x11" * 20)


def voucher(
    client: int, worker: int, cumulative: int, *, contract: Address = CONTRACT, epoch: int = 1
) -> SignedVoucher:
    channel = Channel(
        chain_id=5,
        contract=contract,
        client=Address(client.to_bytes(20, "big")),
        worker=Address(worker.to_bytes(20, "big")),
        epoch=epoch,
    )
    made = Voucher(channel=channel, nonce=7, cumulative=cumulative, receipts_root=b"\x01" * 32, terms_hash=b"\x02" * 32)
    return SignedVoucher(voucher=made, signature=hashlib.sha512(made.pack()).digest())


def entries(count: int) -> list[Entry]:
    return [Entry(signed=voucher(at % 7 + 1, at // 7 + 1, at + 1), cap=at // 2 + 1) for at in range(count)]


def simple_root(leaves: list[bytes], pad: bytes, width: int) -> bytes:
    """The root from the definition: every leaf of a full tree."""
    row = leaves + [pad] * (width - len(leaves))
    while len(row) > 1:
        row = [hashlib.sha256(row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
    return row[0]


def climbs(leaf: bytes, index: int, path: tuple[bytes, ...]) -> bytes:
    for level, sibling in enumerate(path):
        pair = sibling + leaf if index >> level & 1 else leaf + sibling
        leaf = hashlib.sha256(pair).digest()
    return leaf


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**128 - 1), st.integers(1, 10**6)),
        unique_by=lambda row: row[:2],
        max_size=40,
    )
)
@settings(max_examples=40, deadline=None)
def test_records_are_in_order_and_their_sums_follow(rows: list[tuple[int, int, int, int]]) -> None:
    given_entries = [Entry(signed=voucher(client, worker, amount), cap=cap) for client, worker, amount, cap in rows]
    batch = build_batch(given_entries, chain_id=5, contract=CONTRACT, snapshot=9)
    records = [batch.tree.record(index) for index in range(1, len(rows) + 1)]
    assert [record.key for record in records] == sorted(record.key for record in records)
    due: dict[Address, int] = {}
    total = 0
    for record in records:
        client, worker = int.from_bytes(record.client, "big"), int.from_bytes(record.worker, "big")
        [(_, _, amount, cap)] = [row for row in rows if row[:2] == (client, worker)]
        assert record.counted == min(amount, cap)
        total += record.counted
        due[record.worker] = due.get(record.worker, 0) + record.counted
        assert (record.worker_running, record.total_running) == (due[record.worker], total)
        assert record.voucher(chain_id=5, contract=CONTRACT) == voucher(client, worker, amount)
        assert BatchRecord.unpack(record.pack()) == record
    assert batch.header == BatchHeader(chain_id=5, contract=CONTRACT, snapshot=9, count=len(rows), total=total)
    assert batch.tree.file == pack_file(batch.header, [record.pack() for record in records])


@pytest.mark.parametrize("count", [0, 1, 62, 63, 64, 127, 128, 200, 320])
def test_both_trees_are_what_their_definitions_say(count: int) -> None:
    batch = build_batch(entries(count), chain_id=5, contract=CONTRACT, snapshot=9)
    tree, file = batch.tree, batch.tree.file
    blocks = block_count(count)
    assert len(file) == blocks * BLOCK == batch.posting.size
    leaves = [hashlib.sha256(file[at : at + 256]).digest() for at in range(0, len(file), 256)]
    assert leaves[0] == hashlib.sha256(batch.header.pack()).digest()
    assert set(leaves[count + 1 :]) <= {EMPTY_LEAF}
    width = 64 << depth_of(blocks)
    assert tree.root == simple_root(leaves, EMPTY_LEAF, width)
    hasher = PieceHasher(size=len(file), piece_length=batch.posting.torrent().piece_length)
    hasher.update(file)
    assert (tree.pieces_root, b"") == hasher.finish()
    for index in {0, 1, count, count // 2, len(leaves) - 1}:
        assert len(tree.path(index)) == 6 + depth_of(blocks)
        assert climbs(leaves[index], index, tree.path(index)) == tree.root
    for number in range(blocks):
        assert subtree(tree.block(number)) == tree.layer[number]
        assert climbs(tree.layer[number], number, tree.block_path(number)) == tree.root
        assert climbs(hashlib.sha256(tree.block(number)).digest(), number, tree.piece_path(number)) == tree.pieces_root
        assert layer_path(tree.layer, number) == tree.block_path(number)
    assert layer_root(tree.layer) == tree.root


def test_the_torrent_follows_from_root_and_size() -> None:
    posted = build_batch(entries(200), chain_id=5, contract=CONTRACT, snapshot=9).posting
    metadata = posted.torrent()
    assert TorrentMetadata.decode(metadata.encode()) == metadata
    assert metadata.files[0].name == posted.pieces_root.hex() + ".batch"
    largest = replace(posted, count=MAX_RECORDS)
    assert largest.torrent().piece_length == largest.size == 16 * 2**20


def test_a_channel_is_found_or_its_neighbours_are() -> None:
    batch = build_batch(entries(40), chain_id=5, contract=CONTRACT, snapshot=9)
    for at in range(40):
        client, worker = Address((at % 7 + 1).to_bytes(20, "big")), Address((at // 7 + 1).to_bytes(20, "big"))
        index = batch.tree.find(40, client, worker)
        assert batch.tree.record(index).key == (worker, client)
        assert batch.tree.place(40, client, worker).at.index == index
    first, last = Address(bytes(20)), Address(b"\xff" * 20)
    assert batch.tree.place(40, last, first).at.index == 0
    assert batch.tree.place(40, last, first).after.index == 1
    assert batch.tree.place(40, first, last).at.index == batch.tree.place(40, first, last).after.index == 40
    between = batch.tree.place(40, last, Address((1).to_bytes(20, "big")))
    assert (between.at.index, between.after.index) == (7, 8)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="batch it there"):
        build_batch(
            [Entry(signed=voucher(1, 1, 1, contract=Address(bytes(20))), cap=1)],
            chain_id=5,
            contract=CONTRACT,
            snapshot=0,
        )
    with pytest.raises(UsageError, match="batch it there"):
        build_batch(entries(1), chain_id=6, contract=CONTRACT, snapshot=0)
    twice = [Entry(signed=voucher(1, 1, 1), cap=1), Entry(signed=voucher(1, 1, 2, epoch=2), cap=1)]
    with pytest.raises(UsageError, match="twice"):
        build_batch(twice, chain_id=5, contract=CONTRACT, snapshot=0)
    for size in (0, 256, BLOCK + 1, 1025 * BLOCK):
        with pytest.raises(ProtocolError, match="1 to 1024 blocks"):
            BatchTree(bytes(size))
    with pytest.raises(ProtocolError, match="256 bytes, not 255"):
        BatchRecord.unpack(bytes(255))
    with pytest.raises(ProtocolError, match="0 to 65535 records"):
        BatchHeader(chain_id=1, contract=CONTRACT, snapshot=0, count=MAX_RECORDS + 1, total=0)
    with pytest.raises(ProtocolError, match="out of range"):
        BatchHeader(chain_id=1, contract=CONTRACT, snapshot=0, count=0, total=2**128)


def test_the_layout_of_a_header_and_a_record() -> None:
    header = BatchHeader(chain_id=5, contract=CONTRACT, snapshot=6, count=7, total=8).pack()
    assert header[:16] == HEADER_TAG
    assert [int.from_bytes(header[a:b], "big") for a, b in ((16, 48), (68, 76), (76, 84), (84, 100))] == [5, 6, 7, 8]
    assert (header[48:68], header[100:]) == (bytes(CONTRACT), bytes(156))
    batch = build_batch([Entry(signed=voucher(1, 2, 30), cap=20)], chain_id=5, contract=CONTRACT, snapshot=9)
    raw = batch.tree.raw(1)
    numbers = [(0, 20), (20, 40), (40, 48), (48, 56), (56, 72), (72, 88), (88, 104), (104, 120), (248, 256)]
    assert [int.from_bytes(raw[a:b], "big") for a, b in numbers] == [1, 2, 1, 7, 30, 20, 20, 20, 0]
    assert (raw[120:152], raw[216:248]) == (b"\x01" * 32, b"\x02" * 32)


def test_a_posted_batch_knows_its_size() -> None:
    posted = PostedBatch(record_root=bytes(32), pieces_root=bytes(32), snapshot=1, count=64, total=0, posted=0)
    assert (posted.blocks, posted.size) == (2, 2 * BLOCK)
