"""Both contracts in pyrevm with clients, workers and settlers: for tests of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.batch_board import BatchBoard, Event, Head
from swarm.batches import Batch, Entry, PostedBatch, build_batch
from swarm.deployment import Terms
from swarm.identity import Identity
from swarm.ids import Address
from swarm.receipts import Channel, SignedVoucher, Voucher
from swarm.settlement import ChannelState, Claim, Settlement, Transaction, refusal
from tests.swarm.revm import Deployed, Reverted, RevmChain

BOND, DEPOSIT = 1000, 10
TERMS = Terms(close_window=200, challenge_window=100, data_window=20, bond=BOND, deposit=DEPOSIT, lag=4, fee_bps=0)
SPENDING = Identity(bytes(range(32)))


def account(number: int) -> Address:
    return Address(number.to_bytes(1, "big") * 20)


@dataclass(kw_only=True)
class RevmPort:
    """`ContractPort` on a contract in pyrevm, without logs."""

    deployed: Deployed
    account: Address

    def call(self, name: str, *arguments: Any) -> Any:
        return self.deployed.call(self.account, name, *arguments)

    def send(self, name: str, *arguments: Any) -> Transaction:
        try:
            self.deployed.call(self.account, name, *arguments)
        except Reverted as error:
            raise refusal(str(error)) from error
        gas = self.deployed.chain.gas
        self.deployed.chain.mine()
        return Transaction(hash=bytes(32), gas=gas)

    def head(self) -> Head:
        chain = self.deployed.chain
        return Head(number=chain.block - 1, hash=bytes(chain.evm.block_hash(chain.block - 1)), time=chain.now)

    def events(self, name: str, first_block: int) -> list[Event]:
        raise NotImplementedError

    def inputs(self, transaction: bytes) -> Mapping[str, Any]:
        raise NotImplementedError


@dataclass(kw_only=True)
class World:
    """Channels and their vouchers; batches as they were posted."""

    terms: Terms = TERMS
    chain: RevmChain = field(init=False)
    vouchers: dict[tuple[Address, Address], SignedVoucher] = field(default_factory=dict)
    posted: dict[int, PostedBatch] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chain = RevmChain(terms=self.terms)
        self.chain.mine(9)

    def board(self, who: Address) -> BatchBoard:
        return BatchBoard(RevmPort(deployed=self.chain.batches, account=who))

    def client(self, who: Address, tokens: int = 10_000, key: Identity = SPENDING) -> Settlement:
        self.chain.mint(who, tokens)
        settlement = self.chain.account(who)
        settlement.register_spending_key(key.peer_id)
        settlement.deposit(tokens)
        return settlement

    def bonded(self, who: Address, tokens: int = 10 * BOND) -> BatchBoard:
        self.chain.mint(who, tokens)
        self.chain.token.call(who, "approve", f"0x{self.chain.batches.address}", tokens)
        board = self.board(who)
        board.port.send("deposit_bond", tokens)
        return board

    def state(self, client: Address, worker: Address) -> ChannelState | None:
        return self.chain.account(client).channel(client, worker)

    def tokens(self, who: Address) -> int:
        held: int = self.chain.token.call(who, "balanceOf", f"0x{who}")
        return held

    def promise(
        self, client: Address, worker: Address, cumulative: int, *, key: Identity = SPENDING, epoch: int = 1
    ) -> SignedVoucher:
        """Sign a voucher, which the next batches take."""
        channel = Channel(
            chain_id=self.chain.chain_id,
            contract=self.chain.settlement.address,
            client=client,
            worker=worker,
            epoch=epoch,
        )
        signed = Voucher(
            channel=channel,
            nonce=cumulative,
            cumulative=cumulative,
            receipts_root=hashlib.sha256(b"receipts").digest(),
            terms_hash=hashlib.sha256(b"terms").digest(),
        ).sign(key)
        self.vouchers[client, worker] = signed
        return signed

    def entries(self) -> list[Entry]:
        """What belongs into a batch now."""
        found = []
        for (client, worker), signed in self.vouchers.items():
            state = self.state(client, worker)
            if state is None or not state.batched or state.closing_at is not None:
                continue
            if state.epoch == signed.voucher.channel.epoch:
                found.append(Entry(signed=signed, cap=state.cap))
        return found

    def build(self, entries: list[Entry] | None = None) -> Batch:
        """A batch from the newest block."""
        return build_batch(
            self.entries() if entries is None else entries,
            chain_id=self.chain.chain_id,
            contract=self.chain.settlement.address,
            snapshot=self.chain.block - 1,
        )

    def post(self, board: BatchBoard, batch: Batch | None = None) -> int:
        """Post a batch, by default an honest one; its id."""
        batch = batch or self.build()
        board.post(batch, bytes(self.chain.evm.block_hash(batch.header.snapshot)))
        return self.note(board, batch)

    def note(self, board: BatchBoard, batch: Batch) -> int:
        number: int = board.port.call("posted")
        self.batches[number] = batch
        self.posted[number] = replace(batch.posting, posted=self.chain.now)
        return number

    def final(self, board: BatchBoard, batch: Batch | None = None) -> int:
        """Post a batch and let its window pass."""
        number = self.post(board, batch)
        self.chain.advance(self.terms.challenge_window)
        board.advance()
        return number

    def claim(self, board: BatchBoard, number: int, *workers: Address) -> Transaction:
        """Claim for these workers with their last records."""
        tree, posted = self.batches[number].tree, self.posted[number]
        top = Address(b"\xff" * 20)
        proofs = [tree.proof(tree.find(posted.count, top, worker)) for worker in workers]
        return board.claim(number, posted, proofs)

    def close(self, board: BatchBoard, client: Address, worker: Address) -> Transaction:
        """Finalise a close with the right batch and place."""
        if board.due():
            board.advance()
        state = self.state(client, worker)
        assert state is not None
        assert state.closing_block is not None
        number, batch_id = board.relevant(state.closing_block)
        if not number:
            return board.finalize_close(client, worker, 0, None, None)
        posted = self.posted[batch_id]
        place = self.batches[batch_id].tree.place(posted.count, client, worker)
        return board.finalize_close(client, worker, number, posted, place)

    def redeem(self, client: Address, worker: Address, amount: int) -> None:
        """Put a voucher on record."""
        self.chain.account(worker).redeem([Claim(signed=self.vouchers[client, worker], amount=amount)])
