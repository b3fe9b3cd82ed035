"""Closes of batched channels, and walks through everything the two contracts can do against a model of the money."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak

from swarm.batch_board import Standing
from swarm.batch_check import find_lie, proof_of
from swarm.batches import HEADER_TAG, Batch, BatchTree
from swarm.deployment import Terms
from swarm.errors import PaymentError
from swarm.ids import Address
from tests.swarm.batch_world import BOND, DEPOSIT, TERMS, World, account

CLIENTS = [account(n) for n in (0x21, 0x22, 0x23)]
WORKER_KEYS = [n.to_bytes(32, "big") for n in (0x41, 0x42, 0x43)]
WORKERS = [Address.parse(Account.from_key(key).address) for key in WORKER_KEYS]
SETTLER, WATCHER, ANYONE = account(0x61), account(0x62), account(0x63)


@pytest.fixture
def world() -> World:
    """Two clients with batched channels of 1000 to two workers, and vouchers of 100 and 200 on each."""
    world = World()
    for at, client in enumerate(CLIENTS[:2]):
        world.client(client).allocate(dict.fromkeys(WORKERS[:2], 1000), batched=True)
        for worker in WORKERS[:2]:
            world.promise(client, worker, 100 * (at + 1))
    return world


def free(world: World, client: Address) -> int:
    return world.chain.account(client).account_state(client).free_balance


def pass_window(world: World) -> None:
    world.chain.mine(TERMS.lag + 1)
    world.chain.advance(TERMS.close_window)


def agreement(world: World, client: Address, worker: Address, total: int, *, epoch: int = 1) -> tuple[int, int, int]:
    """The worker's signature under a total."""
    fields = (HEADER_TAG, 1337, f"0x{world.chain.batches.address}", f"0x{client}", f"0x{worker}", epoch, total)
    inner = keccak(encode(["bytes16", "uint256", "address", "address", "address", "uint256", "uint256"], fields))
    signed = Account.sign_message(encode_defunct(inner), WORKER_KEYS[WORKERS.index(worker)])
    return signed.v, signed.r, signed.s


def test_a_close_pays_what_the_last_batch_before_it_counted(world: World) -> None:
    board, client = world.bonded(SETTLER), world.chain.account(CLIENTS[0])
    number = world.final(board)
    world.claim(board, number, *WORKERS[:2])
    assert world.tokens(WORKERS[0]) == 300
    client.request_close(WORKERS[0])
    # A batch from after the request leaves the channel out, and the sum is short of what was paid until the close.
    world.chain.mine()
    later = world.post(board)
    with pytest.raises(PaymentError, match="closing window is open"):
        world.close(board, CLIENTS[0], WORKERS[0])
    pass_window(world)
    with pytest.raises(PaymentError, match="a later batch counts"):
        board.finalize_close(CLIENTS[0], WORKERS[0], 0, None, None)
    place = world.batches[later].tree.place(3, CLIENTS[0], WORKERS[0])
    with pytest.raises(PaymentError, match="from after the request"):
        board.finalize_close(CLIENTS[0], WORKERS[0], 2, world.posted[later], place)
    with pytest.raises(PaymentError, match="channel is batched"):
        client.finalize_close(WORKERS[0])
    world.close(world.board(ANYONE), CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 8000 + 900
    with pytest.raises(PaymentError, match="already paid"):
        world.claim(board, later, *WORKERS[:2])
    world.promise(CLIENTS[1], WORKERS[0], 250)
    world.claim(board, world.final(board), WORKERS[0])
    assert world.tokens(WORKERS[0]) == 350


def test_the_place_of_a_channel_cannot_be_lied_about(world: World) -> None:
    board = world.bonded(SETTLER)
    world.vouchers.pop((CLIENTS[1], WORKERS[0]))
    number = world.final(board)
    posted, tree = world.posted[number], world.batches[number].tree
    for client, worker in ((CLIENTS[0], WORKERS[0]), (CLIENTS[1], WORKERS[0])):
        world.chain.account(client).request_close(worker)
    pass_window(world)
    own = tree.find(3, CLIENTS[0], WORKERS[0])
    for at in range(4):
        for after in range(4):
            if at == own:
                continue
            place = replace(tree.place(3, CLIENTS[0], WORKERS[0]), at=tree.proof(at), after=tree.proof(after))
            with pytest.raises(PaymentError):
                board.finalize_close(CLIENTS[0], WORKERS[0], 1, posted, place)
    # The other is nowhere in the batch, and its neighbours show it.
    world.close(board, CLIENTS[1], WORKERS[0])
    assert free(world, CLIENTS[1]) == 9000
    world.close(board, CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 8900
    world.claim(board, number, WORKERS[0])
    assert world.tokens(WORKERS[0]) == 100


def test_a_worker_whom_batches_leave_out_exits_by_its_voucher(world: World) -> None:
    board = world.bonded(SETTLER)
    world.promise(CLIENTS[0], WORKERS[0], 700)
    number = world.final(
        board, world.build([e for e in world.entries() if e.cap and e.signed.voucher.cumulative < 700])
    )
    world.redeem(CLIENTS[0], WORKERS[0], 650)
    assert world.tokens(WORKERS[0]) == 0
    world.chain.account(WORKERS[0]).request_exit(CLIENTS[0])
    pass_window(world)
    world.close(board, CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 8000 + 350
    board.claim_exited([WORKERS[0]])
    assert world.tokens(WORKERS[0]) == 650
    world.claim(board, number, WORKERS[0])
    assert world.tokens(WORKERS[0]) == 850


def test_without_any_batch_closes_and_exits_work(world: World) -> None:
    world.redeem(CLIENTS[0], WORKERS[0], 60)
    world.chain.account(CLIENTS[0]).request_close(WORKERS[0])
    world.chain.account(CLIENTS[0]).request_close(WORKERS[1])
    world.chain.advance(TERMS.close_window)
    with pytest.raises(PaymentError, match="a batch may still count it"):
        world.close(world.board(ANYONE), CLIENTS[0], WORKERS[0])
    pass_window(world)
    for worker in WORKERS[:2]:
        world.close(world.board(ANYONE), CLIENTS[0], worker)
    world.board(ANYONE).claim_exited([WORKERS[0]])
    assert (free(world, CLIENTS[0]), world.tokens(WORKERS[0])) == (9940, 60)
    # Again, with a new epoch in which the old voucher is worth nothing.
    world.chain.account(CLIENTS[0]).allocate({WORKERS[0]: 500}, batched=True)
    with pytest.raises(PaymentError, match="another epoch"):
        world.redeem(CLIENTS[0], WORKERS[0], 100)
    assert world.build().header.count == 2


def test_a_batch_that_goes_back_cannot_take_from_others(world: World) -> None:
    """A client, its worker and a settler drop a paid record; anyone who keeps the earlier batch stops the refund."""
    board = world.bonded(SETTLER)
    first = world.final(board)
    world.claim(board, first, *WORKERS[:2])
    dropped = [e for e in world.entries() if e.signed.voucher.channel.client != CLIENTS[0]]
    world.final(board, world.build(dropped))
    world.chain.mine()
    world.chain.account(CLIENTS[0]).request_close(WORKERS[0])
    tree, posted = world.batches[first].tree, world.posted[first]
    proof = tree.proof(tree.find(4, CLIENTS[0], WORKERS[0]))
    world.board(ANYONE).show_record(first, posted, proof)
    with pytest.raises(PaymentError, match="nothing new"):
        world.board(ANYONE).show_record(first, posted, proof)
    pass_window(world)
    world.close(board, CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 8900


def test_what_nobody_showed_is_held_back_from_the_worker_s_sum_at_least(world: World) -> None:
    board = world.bonded(SETTLER)
    first = world.final(board)
    world.claim(board, first, *WORKERS[:2])
    world.final(board, world.build([]))
    world.chain.mine()
    for client in CLIENTS[:2]:
        world.chain.account(client).request_close(WORKERS[0])
    pass_window(world)
    for client in CLIENTS[:2]:
        world.close(board, client, WORKERS[0])
    # Refunds end where the worker's money ends: nobody else's is touched.
    assert free(world, CLIENTS[0]) + free(world, CLIENTS[1]) == 16000 + 2000 - 300
    committed, paid = world.chain.settlement.call(ANYONE, "worker_totals", f"0x{WORKERS[0]}")
    assert committed == paid == 300


def test_with_the_data_lost_a_close_takes_two_windows(world: World) -> None:
    board = world.bonded(SETTLER)
    world.final(board)
    world.chain.account(CLIENTS[0]).request_close(WORKERS[0])
    pass_window(world)
    with pytest.raises(PaymentError, match="second window is open"):
        board.finalize_unproven(CLIENTS[0], WORKERS[0])
    world.chain.advance(2 * TERMS.close_window)
    board.finalize_unproven(CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 9000


def test_both_sides_close_without_the_window(world: World) -> None:
    board = world.bonded(SETTLER)
    number = world.final(board)
    client, other = world.board(CLIENTS[0]), world.board(CLIENTS[1])
    signature = agreement(world, CLIENTS[0], WORKERS[0], 150)
    for sender, total, refused in ((other, 150, "did not sign"), (client, 149, "did not sign"), (client, 1001, "cap")):
        with pytest.raises(PaymentError, match=refused):
            sender.port.send("close_together", f"0x{WORKERS[0]}", total, *signature)
    client.port.send("close_together", f"0x{WORKERS[0]}", 150, *signature)
    with pytest.raises(PaymentError, match="a batch may still count it"):
        world.close(board, CLIENTS[0], WORKERS[0])
    world.chain.mine(TERMS.lag + 1)
    world.close(board, CLIENTS[0], WORKERS[0])
    assert free(world, CLIENTS[0]) == 8000 + 850
    world.claim(board, number, WORKERS[0])
    assert world.tokens(WORKERS[0]) == 350
    with pytest.raises(PaymentError, match="not open"):
        client.port.send("close_together", f"0x{WORKERS[0]}", 150, *signature)


def test_a_close_together_waits_for_batches_that_may_count_it(world: World) -> None:
    board = world.bonded(SETTLER)
    number = world.post(board)
    signature = agreement(world, CLIENTS[1], WORKERS[0], 50)
    world.board(CLIENTS[1]).port.send("close_together", f"0x{WORKERS[0]}", 50, *signature)
    world.chain.mine(TERMS.lag + 1)
    with pytest.raises(PaymentError, match="a batch is pending"):
        world.close(board, CLIENTS[1], WORKERS[0])
    world.chain.advance(TERMS.challenge_window)
    world.close(board, CLIENTS[1], WORKERS[0])
    # The batch counted 200, whatever they agreed on.
    assert free(world, CLIENTS[1]) == 8800
    world.claim(board, number, WORKERS[0])
    assert world.tokens(WORKERS[0]) == 300


def test_a_direct_channel_closes_together_at_once(world: World) -> None:
    client = world.chain.account(CLIENTS[0])
    client.allocate({WORKERS[2]: 500})
    world.promise(CLIENTS[0], WORKERS[2], 300)
    world.redeem(CLIENTS[0], WORKERS[2], 200)
    board = world.board(CLIENTS[0])
    low = agreement(world, CLIENTS[0], WORKERS[2], 199)
    with pytest.raises(PaymentError, match="more was paid already"):
        board.port.send("close_together", f"0x{WORKERS[2]}", 199, *low)
    signature = agreement(world, CLIENTS[0], WORKERS[2], 260)
    board.port.send("close_together", f"0x{WORKERS[2]}", 260, *signature)
    assert (world.tokens(WORKERS[2]), free(world, CLIENTS[0])) == (260, 8000 - 260)


def test_only_the_batch_contract_pays_and_closes(world: World) -> None:
    for name, arguments in (
        ("pay_batched", [[(f"0x{WORKERS[0]}", 10)]]),
        ("begin_close", [f"0x{CLIENTS[0]}", f"0x{WORKERS[0]}"]),
        ("finish_close", [f"0x{CLIENTS[0]}", f"0x{WORKERS[0]}", 0]),
    ):
        with pytest.raises(Exception, match="only for the batch contract"):
            world.chain.settlement.call(CLIENTS[0], name, *arguments)


def test_the_fee_goes_to_the_pool() -> None:
    pool = account(0x7F)
    world = World(terms=replace(TERMS, fee_bps=500, pool=pool))
    world.client(CLIENTS[0]).allocate({WORKERS[0]: 1000}, batched=True)
    world.chain.account(CLIENTS[0]).allocate({WORKERS[1]: 1000})
    world.promise(CLIENTS[0], WORKERS[0], 1000)
    board = world.bonded(SETTLER)
    world.claim(board, world.final(board), WORKERS[0])
    world.promise(CLIENTS[0], WORKERS[1], 999)
    world.redeem(CLIENTS[0], WORKERS[1], 999)
    assert (world.tokens(WORKERS[0]), world.tokens(WORKERS[1])) == (950, 950)
    world.chain.settlement.call(ANYONE, "collect_fees")
    assert world.tokens(pool) == 99
    with pytest.raises(Exception, match="no fees to collect"):
        world.chain.settlement.call(ANYONE, "collect_fees")
    with pytest.raises(Exception, match=r"outside 0\.\.500"):
        Terms(fee_bps=501, pool=pool)


# ---- walks -----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Open:
    """What the model knows of an open channel."""

    cap: int
    batched: bool
    promised: int = 0
    recorded: int = 0
    counted: int = 0
    """The highest that a final batch counts."""
    agreed: int | None = None
    closing: bool = False

    @property
    def total(self) -> int:
        """What it has to pay if it closes now."""
        return max(self.recorded if self.agreed is None else self.agreed, self.counted)


class Walk:
    """Random calls by a seeded generator; the model says what every account must have at the end."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.free = dict.fromkeys(CLIENTS, 10_000)
        self.earned = dict.fromkeys(WORKERS, 0)
        self.direct = dict.fromkeys(WORKERS, 0)
        self.open: dict[tuple[Address, Address], Open] = {}
        self.epochs: Counter[tuple[Address, Address]] = Counter()
        self.lying: dict[int, bool] = {}
        self.noted = 0
        self.done: Counter[str] = Counter()
        for client in CLIENTS:
            self.world.client(client)
        self.settler, self.watcher = self.world.bonded(SETTLER, 50 * BOND), self.world.bonded(WATCHER, 50 * BOND)
        self.minted = 3 * 10_000 + 100 * BOND

    def step(self) -> None:
        """One call. What is refused is counted, and must leave everything as it was."""
        name = self.rng.choices(list(STEPS), weights=list(STEPS.values()))[0]
        try:
            done = getattr(self, name)()
        except PaymentError as error:
            self.done[f"{name}: {error.message.split(';')[0].rpartition(': ')[2]}"] += 1
        else:
            self.done[name] += done is not False
        self.catch_liars()
        self.note_finals()
        self.check()

    # What can happen.

    def allocate(self) -> None:
        client, worker = self.rng.choice(CLIENTS), self.rng.choice(WORKERS)
        found = self.open.get((client, worker))
        cap = (found.cap if found else 0) + self.rng.randint(1, 400)
        batched = self.rng.random() < 0.75
        self.world.chain.account(client).allocate({worker: cap}, batched=batched)
        self.free[client] -= cap - (found.cap if found else 0)
        if found is None:
            self.epochs[client, worker] += 1
            self.open[client, worker] = Open(cap=cap, batched=batched)
        else:
            found.cap = cap

    def promise(self) -> bool:
        pair = self.pick()
        if pair is None:
            return False
        channel = self.open[pair]
        channel.promised += self.rng.randint(1, 200)
        self.world.promise(*pair, channel.promised, epoch=self.epochs[pair])
        return True

    def redeem(self) -> bool:
        pair = self.pick(lambda channel: channel.promised > 0)
        if pair is None:
            return False
        channel = self.open[pair]
        amount = self.rng.randint(1, channel.promised)
        before = channel.recorded
        self.world.redeem(*pair, amount)
        channel.recorded = max(before, amount)
        if not channel.batched:
            self.direct[pair[1]] += channel.recorded - before
        return True

    def post(self) -> None:
        entries = self.world.entries()
        if self.rng.random() < 0.3:  # some are left out, some fall back
            entries = [entry for entry in entries if self.rng.random() < 0.7]
        batch = self.world.build(entries)
        lie = self.rng.random() < 0.25
        if lie:
            file = bytearray(batch.tree.file)
            file[self.rng.randrange(100, 256 * (batch.header.count + 1))] ^= 1 << self.rng.randrange(8)
            batch = Batch(header=batch.header, tree=BatchTree(bytes(file)))
        self.lying[self.world.post(self.settler, batch)] = lie

    def request_close(self) -> bool:
        pair = self.pick()
        if pair is None:
            return False
        if self.rng.random() < 0.5:
            self.world.chain.account(pair[0]).request_close(pair[1])
        else:
            self.world.chain.account(pair[1]).request_exit(pair[0])
        self.open[pair].closing = True
        self.world.chain.mine()
        return True

    def close(self) -> bool:
        pair = self.pick(lambda channel: channel.closing)
        if pair is None:
            return False
        channel = self.open[pair]
        if not channel.batched:
            self.world.chain.account(pair[0]).finalize_close(pair[1])
            self.shut(pair, channel.recorded)
            return True
        if self.watcher.due():
            self.watcher.advance()
            self.note_finals()
        self.show_best(pair)
        self.world.close(self.world.board(ANYONE), *pair)
        self.earned[pair[1]] += channel.total
        self.shut(pair, channel.total)
        return True

    def agree(self) -> bool:
        pair = self.pick()
        if pair is None:
            return False
        channel = self.open[pair]
        total = self.rng.randint(0, channel.cap)
        signature = agreement(self.world, *pair, total, epoch=self.epochs[pair])
        self.world.board(pair[0]).port.send("close_together", f"0x{pair[1]}", total, *signature)
        if channel.batched:
            channel.agreed, channel.closing = total, True
            self.world.chain.mine()
        else:
            self.direct[pair[1]] += total - channel.recorded
            self.shut(pair, total)
        return True

    def claim(self) -> bool:
        latest = self.watcher.last_final()
        if not latest:
            return False
        tree, posted = self.world.batches[latest].tree, self.world.posted[latest]
        if not posted.count:
            return False
        picked = [tree.proof(self.rng.randint(1, posted.count)) for _ in range(3)]
        self.watcher.claim(latest, posted, picked)
        return True

    def claim_exited(self) -> None:
        self.watcher.claim_exited(self.rng.sample(WORKERS, 2))

    def demand(self) -> bool:
        _, resolved, _ = self.watcher.counts()
        number = resolved + 1
        if number not in self.world.posted or self.lying[number]:
            return False
        self.watcher.demand(number, self.world.posted[number], 0)
        if self.rng.random() < 0.6:
            self.settler.show(number, self.world.posted[number], self.world.batches[number].tree, 0)
        return True

    def void_withheld(self) -> bool:
        posted, resolved, _ = self.watcher.counts()
        waiting = [n for n in range(resolved + 1, posted + 1) if self.watcher.question(n, 0)[1]]
        if not waiting:
            return False
        self.watcher.void_withheld(waiting[0], 0)
        return True

    def withdraw(self) -> None:
        client = self.rng.choice(CLIENTS)
        amount = self.rng.randint(1, 500)
        self.world.chain.account(client).withdraw(amount)
        self.world.chain.token.call(client, "approve", f"0x{self.world.chain.settlement.address}", amount)
        self.world.chain.account(client).deposit(amount)

    def time(self) -> None:
        self.world.chain.advance(self.rng.choice([1, 10, 30, 60, 110]))
        self.world.chain.mine(self.rng.choice([0, 1, 3, 6]))

    # What the model does about it.

    def pick(self, wanted: Callable[[Open], bool] = lambda channel: True) -> tuple[Address, Address] | None:
        pairs = [pair for pair, channel in sorted(self.open.items()) if wanted(channel)]
        return self.rng.choice(pairs) if pairs else None

    def shut(self, pair: tuple[Address, Address], total: int) -> None:
        channel = self.open.pop(pair)
        self.free[pair[0]] += channel.cap - total
        self.world.vouchers.pop(pair, None)

    def catch_liars(self) -> None:
        """The watcher proves every lie at once; what is no lie it cannot."""
        number, _, _ = self.watcher.counts()
        if number not in self.lying or self.watcher.state(number).standing is not Standing.pending:
            return
        batch, posted = self.world.batches[number], self.world.posted[number]
        contract = self.world.chain.settlement.address
        lie = find_lie(posted, batch.tree, chain_id=1337, contract=contract, channel=self.world.state)
        assert (lie is not None) == self.lying[number], lie
        if lie is not None:
            self.watcher.prove(number, posted, proof_of(lie, batch.tree, count=posted.count))
            self.done[f"caught {lie.kind}"] += 1
            assert self.watcher.state(number).standing is Standing.void

    def note_finals(self) -> None:
        """What batches that became final count."""
        finals = self.watcher.counts()[2]
        while self.noted < finals:
            self.noted += 1
            batch_id = self.watcher.port.call("final_batch", self.noted)[0]
            assert not self.lying[batch_id]
            tree = self.world.batches[batch_id].tree
            for index in range(1, self.world.posted[batch_id].count + 1):
                record = tree.record(index)
                pair = (record.client, record.worker)
                if pair in self.open and self.epochs[pair] == record.epoch:
                    self.open[pair].counted = max(self.open[pair].counted, record.counted)

    def show_best(self, pair: tuple[Address, Address]) -> None:
        """What an honest holder of old batches does when a channel closes."""
        best: tuple[int, int, int] = (0, 0, 0)
        for number in range(1, self.noted + 1):
            batch_id = self.watcher.port.call("final_batch", number)[0]
            tree, count = self.world.batches[batch_id].tree, self.world.posted[batch_id].count
            at = tree.find(count, *pair)
            if at and tree.record(at).key == (pair[1], pair[0]) and tree.record(at).epoch == self.epochs[pair]:
                best = max(best, (tree.record(at).counted, batch_id, at))
        if best[0]:
            tree, posted = self.world.batches[best[1]].tree, self.world.posted[best[1]]
            with suppress(PaymentError):  # as much is on record already
                self.watcher.show_record(best[1], posted, tree.proof(best[2]))

    def check(self) -> None:
        """Both contracts hold what they owe; no worker has more than its channels' totals."""
        chain = self.world.chain
        owed = 0
        for client in CLIENTS:
            assert free(self.world, client) == self.free[client]
            owed += self.free[client]
        for channel in self.open.values():
            owed += 0 if channel.batched else channel.cap - channel.recorded
        for worker in WORKERS:
            committed, paid = chain.settlement.call(worker, "worker_totals", f"0x{worker}")
            assert paid <= committed
            owed += committed - paid
            assert self.world.tokens(worker) == paid + self.direct[worker]
            most = sum(c.counted for (_, w), c in self.open.items() if w == worker and c.batched)
            assert paid <= self.earned[worker] + most
        held = chain.token.call(SETTLER, "balanceOf", f"0x{chain.settlement.address}")
        assert held == owed
        bonds = sum(self.watcher.bond_balance(who) for who in (SETTLER, WATCHER)) + self.watcher.port.call("burnt")
        posted, resolved, _ = self.watcher.counts()
        for number in range(max(1, resolved - 40), posted + 1):
            standing = self.watcher.state(number).standing
            bonds += BOND if standing is Standing.pending else 0
            bonds += DEPOSIT if self.watcher.question(number, 0)[1] else 0
        stuck = sum(DEPOSIT for number in range(1, max(1, resolved - 40)) if self.watcher.question(number, 0)[1])
        assert chain.token.call(SETTLER, "balanceOf", f"0x{chain.batches.address}") == bonds + stuck

    def end(self) -> None:
        """Everything is closed and paid out: nothing is left that belongs to somebody."""
        for pair, channel in list(self.open.items()):
            if not channel.closing:
                self.world.chain.account(pair[0]).request_close(pair[1])
                channel.closing = True
        for number in range(1, self.watcher.counts()[0] + 1):
            if self.watcher.question(number, 0)[1] and self.watcher.state(number).standing is Standing.pending:
                self.settler.show(number, self.world.posted[number], self.world.batches[number].tree, 0)
        pass_window(self.world)
        while self.watcher.due():
            self.watcher.advance()
        self.note_finals()
        while self.open:
            assert self.close()
            self.check()
        # Sums of the last batch with channels need their records; the next one, though empty, goes without.
        self.world.final(self.settler)
        with suppress(PaymentError):
            self.watcher.claim_exited(WORKERS)
        for worker in WORKERS:
            committed, paid = self.world.chain.settlement.call(worker, "worker_totals", f"0x{worker}")
            assert committed == paid == self.earned[worker]
        for client in CLIENTS:
            if self.free[client]:
                self.world.chain.account(client).withdraw(self.free[client])
        settlement = self.world.chain.settlement.address
        assert self.world.chain.token.call(SETTLER, "balanceOf", f"0x{settlement}") == 0


STEPS = {
    "allocate": 4, "promise": 5, "redeem": 2, "post": 3, "request_close": 2, "close": 4, "agree": 1, "claim": 4,
    "claim_exited": 1, "demand": 1, "void_withheld": 1, "withdraw": 1, "time": 5,
}  # fmt: skip


def walk(seeds: range, steps: int) -> Counter[str]:
    done: Counter[str] = Counter()
    for seed in seeds:
        walk = Walk(seed)
        for _ in range(steps):
            walk.step()
        walk.end()
        done += walk.done
    assert STEPS.keys() <= done.keys()
    assert {"caught F1", "caught F2", "caught F4", "caught F5"} & done.keys()
    return done


def test_any_sequence_keeps_every_account_whole() -> None:
    walk(range(2), 250)


@pytest.mark.slow
def test_five_thousand_steps_keep_every_account_whole() -> None:
    done = walk(range(100, 110), 500)
    assert sum(done.values()) >= 3000
    assert {f"caught F{kind}" for kind in (1, 2, 4, 5)} <= done.keys()
