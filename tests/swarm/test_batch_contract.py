"""The contract Batches in pyrevm: honest batches pay and cannot be punished, every lie is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swarm.batch_board import Standing, batch_fields
from swarm.batch_check import Lie, ProofCall, differing_block, find_lie, proof_of, record_fields
from swarm.batches import EMPTY_LEAF, Batch, BatchRecord, BatchTree, Entry, pack_file
from swarm.errors import PaymentError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.metadata import BLOCK
from tests.swarm.batch_world import BOND, DEPOSIT, World, account

CLIENTS = [account(n) for n in (0x21, 0x22, 0x23)]
WORKERS = [account(n) for n in (0x41, 0x42, 0x43)]
SETTLER, WATCHER = account(0x61), account(0x62)


@pytest.fixture
def world() -> World:
    """Three clients with batched channels of 1000 to three workers, and a voucher on each."""
    world = World()
    for at, client in enumerate(CLIENTS):
        world.client(client).allocate(dict.fromkeys(WORKERS, 1000), batched=True)
        for number, worker in enumerate(WORKERS):
            world.promise(client, worker, 100 * (at + 1) + number)
    return world


def test_a_batch_from_posting_to_payment(world: World) -> None:
    board = world.bonded(SETTLER)
    number = world.post(board)
    assert board.bond_balance(SETTLER) == 9 * BOND
    with pytest.raises(PaymentError, match="not the last final batch"):
        world.claim(board, number, *WORKERS)
    world.chain.advance(99)
    assert not board.due()
    world.chain.advance(1)
    assert board.due()
    world.claim(board, number, *WORKERS)
    assert [world.tokens(worker) for worker in WORKERS] == [600, 603, 606]
    assert board.bond_balance(SETTLER) == 10 * BOND
    with pytest.raises(PaymentError, match="already paid"):
        world.claim(board, number, *WORKERS)
    world.promise(CLIENTS[0], WORKERS[0], 150)
    number = world.final(board)
    world.claim(board, number, *WORKERS)
    assert world.tokens(WORKERS[0]) == 650
    board.port.send("withdraw_bond", 10 * BOND)
    assert world.tokens(SETTLER) == 10 * BOND


# ---- lies ------------------------------------------------------------------------------------------------------------


def rebuilt(batch: Batch, records: list[BatchRecord], **header: int) -> Batch:
    """A batch of these records, whatever they say."""
    changed = replace(batch.header, count=len(records), total=header.get("total", batch.header.total))
    return Batch(header=changed, tree=BatchTree(pack_file(changed, [record.pack() for record in records])))


def resummed(batch: Batch, records: list[BatchRecord]) -> Batch:
    """The same with running sums and total that follow."""
    total, done = 0, []
    running: dict[Address, int] = {}
    for record in records:
        total += record.counted
        running[record.worker] = running.get(record.worker, 0) + record.counted
        done.append(replace(record, worker_running=running[record.worker], total_running=total))
    return rebuilt(batch, done, total=total)


def records_of(batch: Batch) -> list[BatchRecord]:
    return [batch.tree.record(index) for index in range(1, batch.header.count + 1)]


def altered(index: int, resum: bool = True, **change: Any) -> Callable[[World, Batch], Batch]:
    def lie(world: World, batch: Batch) -> Batch:
        records = records_of(batch)
        records[index] = replace(records[index], **change)
        return resummed(batch, records) if resum else rebuilt(batch, records)

    return lie


def forged_by_another_key(world: World, batch: Batch) -> Batch:
    world.promise(CLIENTS[0], WORKERS[0], 900, key=Identity(b"\x07" * 32))
    return world.build()


def uncapped(world: World, batch: Batch) -> Batch:
    world.promise(CLIENTS[0], WORKERS[0], 5000)
    entries = [replace(entry, cap=5000) for entry in world.entries()]
    return world.build(entries)


def unknown_channel(world: World, batch: Batch) -> Batch:
    signed = world.promise(CLIENTS[0], account(0x99), 100)
    return world.build([*world.entries(), Entry(signed=signed, cap=1000)])


def direct_channel(world: World, batch: Batch) -> Batch:
    world.chain.account(CLIENTS[0]).allocate({account(0x99): 500})
    return unknown_channel(world, batch)


def closing_channel(world: World, batch: Batch) -> Batch:
    entries = world.entries()
    world.chain.account(CLIENTS[1]).request_close(WORKERS[1])
    world.chain.mine()
    return world.build(entries)


def closed_channel(world: World, batch: Batch) -> Batch:
    entries = world.entries()
    world.chain.account(CLIENTS[1]).request_close(WORKERS[1])
    world.chain.mine(6)
    world.chain.advance(200)
    world.close(world.board(WATCHER), CLIENTS[1], WORKERS[1])
    return world.build(entries)


def other_epoch(world: World, batch: Batch) -> Batch:
    world.promise(CLIENTS[0], WORKERS[0], 100, epoch=2)
    return world.build([Entry(signed=signed, cap=1000) for signed in world.vouchers.values()])


def twice(world: World, batch: Batch) -> Batch:
    records = records_of(batch)
    return resummed(batch, [records[0], *records])


def swapped(world: World, batch: Batch) -> Batch:
    records = records_of(batch)
    return resummed(batch, [records[1], records[0], *records[2:]])


def wrong_total(world: World, batch: Batch) -> Batch:
    return rebuilt(batch, records_of(batch), total=batch.header.total + 1)


def wrong_header(world: World, batch: Batch) -> Batch:
    file = bytearray(batch.tree.file)
    file[200] = 1
    return replace(batch, tree=BatchTree(bytes(file)))


def wrong_count(world: World, batch: Batch) -> Batch:
    """The header posted says one record less than the file holds."""
    records = records_of(batch)
    header = replace(batch.header, count=batch.header.count - 1, total=records[-2].total_running)
    return Batch(header=header, tree=BatchTree(pack_file(header, [record.pack() for record in records])))


def hole_in_the_padding(world: World, batch: Batch) -> Batch:
    file = bytearray(batch.tree.file)
    file[-1] = 1
    return replace(batch, tree=BatchTree(bytes(file)))


LIES: dict[str, tuple[str, Callable[[World, Batch], Batch]]] = {
    "forged by another key": ("F1", forged_by_another_key),
    "a changed promise": ("F1", altered(0, cumulative=999)),
    "a changed nonce": ("F1", altered(4, nonce=1)),
    "changed receipts": ("F1", altered(4, receipts_root=bytes(32))),
    "changed terms": ("F1", altered(8, terms_hash=bytes(32))),
    "no signature": ("F1", altered(8, signature=bytes(64))),
    "more than the voucher": ("F2", altered(3, counted=102)),
    "more than the cap": ("F2", uncapped),
    "no such channel": ("F2", unknown_channel),
    "a direct channel": ("F2", direct_channel),
    "a channel that was closing": ("F2", closing_channel),
    "a channel that was closed": ("F2", closed_channel),
    "another epoch": ("F2", other_epoch),
    "a channel twice": ("F3", twice),
    "out of order": ("F3", swapped),
    "a worker's sum too high": ("F4", altered(5, resum=False, worker_running=10**6)),
    "a worker's first sum": ("F4", altered(0, resum=False, worker_running=10**6)),
    "the total sum": ("F4", altered(5, resum=False, total_running=0)),
    "a wrong total": ("F5", wrong_total),
    "reserved bytes": ("F5", altered(2, reserved=1)),
    "a wrong header": ("F5", wrong_header),
    "a wrong count": ("F5", wrong_count),
    "a hole in the padding": ("F5", hole_in_the_padding),
}


def find(world: World, number: int) -> Lie | None:
    return find_lie(
        world.posted[number],
        world.batches[number].tree,
        chain_id=world.chain.chain_id,
        contract=world.chain.settlement.address,
        channel=world.state,
    )


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found_proven_and_punished(world: World, name: str) -> None:
    kind, make = LIES[name]
    settler, watcher = world.bonded(SETTLER), world.board(WATCHER)
    number = world.post(settler, make(world, world.build()))
    lie = find(world, number)
    assert lie is not None
    assert lie.kind == kind, lie
    proof = proof_of(lie, world.batches[number].tree, count=world.posted[number].count)
    watcher.prove(number, world.posted[number], proof)
    assert watcher.state(number).standing is Standing.void
    assert watcher.bond_balance(WATCHER) == BOND // 2
    assert settler.bond_balance(SETTLER) == 9 * BOND
    assert watcher.port.call("burnt") == BOND - BOND // 2
    with pytest.raises(PaymentError, match="resolved"):
        watcher.prove(number, world.posted[number], proof)
    world.chain.advance(1000)
    with pytest.raises(PaymentError, match="not the last final"):
        world.claim(watcher, number, WORKERS[0])
    watcher.port.send("withdraw_bond", BOND // 2)
    assert world.tokens(WATCHER) == BOND // 2


def every_accusation(world: World, number: int) -> list[ProofCall]:
    """Everything that can be said against a batch in its own words, and with neighbours and paths mixed up."""
    tree, count = world.batches[number].tree, world.posted[number].count
    proofs = [record_fields(tree.proof(index)) for index in range(count + 2)]
    calls = [
        ProofCall(function=function, arguments=(proof,))
        for function in ("prove_forged", "prove_unbacked", "prove_end")
        for proof in proofs
    ]
    calls += [ProofCall(function="prove_step", arguments=(first, second)) for first in proofs for second in proofs]
    # A step from a header that is none.
    calls += [ProofCall(function="prove_step", arguments=((0, proof[1], proof[2]), proof)) for proof in proofs]
    for index in range(64):
        for leaf in (tree.leaf(index), EMPTY_LEAF, bytes(32)):
            calls.append(ProofCall(function="prove_filling", arguments=(index, leaf, list(tree.path(index)))))
    calls.append(ProofCall(function="prove_filling", arguments=(64, EMPTY_LEAF, list(tree.path(0)))))
    # Inner nodes in the place of leaves.
    calls.append(ProofCall(function="prove_filling", arguments=(0, tree.levels[1][0], list(tree.path(0)[1:]))))
    for data in (tree.block(0), bytes(BLOCK), b""):
        for node in (tree.layer[0], EMPTY_LEAF):
            calls.append(ProofCall(function="prove_differing", arguments=(0, data, [], node, [])))
    return calls


def test_an_honest_batch_cannot_be_punished(world: World) -> None:
    settler, watcher = world.bonded(SETTLER), world.board(WATCHER)
    world.promise(CLIENTS[0], WORKERS[0], 4000)
    batch = world.build()
    number = world.post(settler, batch)
    # What happens after the snapshot does not make it a lie: caps rise, keys change, closes begin.
    world.chain.account(CLIENTS[0]).allocate({WORKERS[1]: 1500})
    world.chain.account(CLIENTS[0]).register_spending_key(Identity(b"\x09" * 32).peer_id)
    world.chain.account(CLIENTS[1]).request_close(WORKERS[1])
    world.chain.account(WORKERS[2]).request_exit(CLIENTS[2])
    assert find(world, number) is None
    calls = every_accusation(world, number)
    for late in (0, 99):
        world.chain.advance(late)
        for call in calls:
            with pytest.raises(PaymentError):
                watcher.prove(number, world.posted[number], call)
    assert settler.state(number).standing is Standing.pending
    world.chain.advance(1)
    world.claim(settler, number, *WORKERS)
    assert world.tokens(WORKERS[0]) == 1000 + 200 + 300
    lying = world.post(settler, hole_in_the_padding(world, world.build()))
    lie = find(world, lying)
    assert lie is not None
    proof = proof_of(lie, world.batches[lying].tree, count=world.posted[lying].count)
    with pytest.raises(PaymentError, match="another batch"):
        watcher.prove(number, world.posted[lying], proof)
    world.chain.advance(100)
    with pytest.raises(PaymentError, match="window is over"):
        watcher.prove(lying, world.posted[lying], proof)


def test_a_payout_that_no_record_gives_cannot_be_claimed(world: World) -> None:
    """F6 and F6b: there is no payout beside the records, so that these lies have no place to stand in."""
    board = world.bonded(SETTLER)
    number = world.final(board)
    tree, posted = world.batches[number].tree, world.posted[number]
    richer = replace(tree.record(3), worker_running=10**6).pack()
    stranger = replace(tree.record(3), worker=account(0x77)).pack()
    for record in (richer, stranger, tree.raw(2)):
        with pytest.raises(PaymentError, match="path leads elsewhere"):
            board.claim(number, posted, [replace(tree.proof(3), record=record)])
    for index in (0, posted.count + 1):
        with pytest.raises(PaymentError, match="no record's"):
            board.claim(number, posted, [tree.proof(index)])
    with pytest.raises(PaymentError, match="another batch"):
        board.claim(number, replace(posted, total=10**6), [tree.proof(3)])
    # An earlier record of the worker pays less, and the rest later.
    board.claim(number, posted, [tree.proof(1)])
    assert world.tokens(WORKERS[0]) == 100
    board.claim(number, posted, [tree.proof(3)])
    assert world.tokens(WORKERS[0]) == 600


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large() -> World:
    """Two blocks and a half of channels."""
    world = World()
    for at in range(150):
        client = Address((at + 1).to_bytes(20, "big"))
        world.client(client, 100).allocate({WORKERS[at % 3]: 10}, batched=True)
        world.promise(client, WORKERS[at % 3], 5)
    return world


def test_data_that_is_shown_in_time_keeps_the_batch(large: World) -> None:
    settler, watcher = large.bonded(SETTLER), large.bonded(WATCHER, 100)
    number = large.post(settler)
    posted, tree = large.posted[number], large.batches[number].tree
    assert posted.blocks == 3
    for block in range(3):
        watcher.demand(number, posted, block)
    with pytest.raises(PaymentError, match="no such block"):
        watcher.demand(number, posted, 3)
    with pytest.raises(PaymentError, match="already demanded"):
        watcher.demand(number, posted, 0)
    assert watcher.bond_balance(WATCHER) == 100 - 3 * DEPOSIT
    large.chain.advance(99)
    for block in range(3):
        # Until somebody voids it, an answer counts.
        settler.show(number, posted, tree, block)
        with pytest.raises(PaymentError, match="nothing was demanded"):
            settler.void_withheld(number, block)
    assert settler.bond_balance(SETTLER) == 9 * BOND + 3 * DEPOSIT
    # What was shown late can be judged for another data window.
    assert settler.state(number).deadline == large.chain.now + 20
    large.chain.advance(19)
    with pytest.raises(PaymentError, match="challenge window is over"):
        watcher.demand(number, posted, 1)
    with pytest.raises(PaymentError, match="not the last final"):
        large.claim(settler, number, WORKERS[0])
    large.chain.advance(1)
    large.claim(settler, number, *WORKERS)
    assert [large.tokens(worker) for worker in WORKERS] == [250] * 3


def test_data_that_is_withheld_voids_the_batch(large: World) -> None:
    settler, watcher = large.bonded(SETTLER), large.bonded(WATCHER, 100)
    number = large.post(settler)
    watcher.demand(number, large.posted[number], 1)
    watcher.demand(number, large.posted[number], 2)
    large.chain.advance(20)
    with pytest.raises(PaymentError, match="data window is open"):
        watcher.void_withheld(number, 1)
    large.chain.advance(200)
    # A demand that is open keeps it from being final.
    assert not settler.due()
    settler.void_withheld(number, 1)
    assert watcher.state(number).standing is Standing.void
    with pytest.raises(PaymentError, match="batch is resolved"):
        settler.show(number, large.posted[number], large.batches[number].tree, 2)
    watcher.port.send("reclaim_deposit", number, 2)
    assert watcher.bond_balance(WATCHER) == 100 + BOND // 2
    # The next one is not held up.
    number = large.final(settler)
    large.claim(settler, number, *WORKERS)
    assert [large.tokens(worker) for worker in WORKERS] == [250] * 3


def differing(world: World, block: int) -> tuple[Batch, BatchTree]:
    """A batch whose record root is not that of its file: one block of the other tree pays somebody else more."""
    honest = world.build()
    file = bytearray(honest.tree.file)
    file[block * BLOCK + 3 * 256 + 100] ^= 1
    other = BatchTree(bytes(file))
    tree = BatchTree(honest.tree.file)
    tree.levels = other.levels
    return replace(honest, tree=tree), other


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_file_that_is_not_under_the_record_root(large: World, block: int) -> None:
    settler, watcher = large.bonded(SETTLER), large.bonded(WATCHER, 100)
    batch, other = differing(large, block)
    number = large.post(settler, batch)
    posted, mine = large.posted[number], BatchTree(batch.tree.file)
    lie = find_lie(posted, mine, chain_id=1337, contract=large.chain.settlement.address, channel=large.state)
    assert lie is not None
    assert lie.kind == "F7"
    # The path is in nobody's hands yet: the demand brings it out.
    watcher.prove(number, posted, proof_of(lie, mine, count=posted.count))
    settler.port.send(
        "show_data", number, batch_fields(posted), 0, mine.block(0), list(mine.piece_path(0)), list(other.layer)
    )
    found = differing_block(mine, other.layer, posted)
    assert found.index == block
    watcher.prove(number, posted, proof_of(found, mine, count=posted.count, layer=other.layer))
    assert watcher.state(number).standing is Standing.void
    assert watcher.bond_balance(WATCHER) == 100 - DEPOSIT + BOND // 2


def test_only_the_batchs_own_data_answers(large: World) -> None:
    settler, watcher = large.bonded(SETTLER), large.bonded(WATCHER, 100)
    batch = large.build()
    number = large.post(settler, batch)
    posted, tree = large.posted[number], batch.tree
    watcher.demand(number, posted, 1)
    good = (tree.block(1), list(tree.piece_path(1)), list(tree.layer))
    bad = {
        "a block is 16 KiB": (b"", *good[1:]),
        "path leads elsewhere": (tree.block(0), *good[1:]),
        "path has another length": (good[0], good[1][:-1], good[2]),
        "layer has another length": (*good[:2], good[2][:-1]),
        "layer leads elsewhere": (*good[:2], [good[2][1], *good[2][1:]]),
    }
    for reason, arguments in bad.items():
        with pytest.raises(PaymentError, match=reason):
            settler.port.send("show_data", number, batch_fields(posted), 1, *arguments)
    settler.port.send("show_data", number, batch_fields(posted), 1, *good)


# ---- posting ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_posted(world: World) -> None:
    poor, board = world.board(WATCHER), world.bonded(SETTLER)
    with pytest.raises(PaymentError, match="bond balance too low"):
        world.post(poor)
    old = world.build()
    with pytest.raises(PaymentError, match="was reorganised"):
        board.post(old, bytes(32))
    world.chain.mine(4)
    with pytest.raises(PaymentError, match="too old"):
        world.post(board, old)
    first, second = world.build(), None
    world.chain.mine()
    second = world.build()
    world.post(board, second)
    with pytest.raises(PaymentError, match="goes back"):
        world.post(board, first)
    world.bonded(WATCHER)
    world.post(world.board(WATCHER), world.build())
    with pytest.raises(PaymentError, match="bond balance too low"):
        board.port.send("withdraw_bond", 9 * BOND + 1)


def test_batches_are_resolved_in_their_order(world: World) -> None:
    board, watcher = world.bonded(SETTLER), world.bonded(WATCHER)
    first = world.post(board)
    watcher.demand(first, world.posted[first], 0)
    world.promise(CLIENTS[0], WORKERS[0], 500)
    second = world.post(board)
    third = world.post(board, hole_in_the_padding(world, world.build()))
    lie = find(world, third)
    assert lie is not None
    watcher.prove(third, world.posted[third], proof_of(lie, world.batches[third].tree, count=9))
    world.chain.advance(100)
    with pytest.raises(PaymentError, match="not the last final"):
        world.claim(board, second, WORKERS[0])
    board.show(first, world.posted[first], world.batches[first].tree, 0)
    world.chain.advance(20)
    world.claim(board, second, WORKERS[0])
    assert board.counts() == (3, 3, 2)
    assert world.tokens(WORKERS[0]) == 1000
    with pytest.raises(PaymentError, match="not the last final"):
        world.claim(board, first, WORKERS[0])


def test_an_empty_batch(world: World) -> None:
    board = world.bonded(SETTLER)
    number = world.final(board, world.build([]))
    with pytest.raises(PaymentError, match="no record's"):
        world.claim(board, number, WORKERS[0])
    with pytest.raises(PaymentError, match="already paid"):
        board.claim_exited(WORKERS)
