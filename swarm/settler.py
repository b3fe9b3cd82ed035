"""A settler: batches the highest vouchers it knows, posts them under its bond, and pays the workers it serves.

It keeps nothing that the chain and its folder of files do not say. A file is on disk before its batch is posted, so
that whoever starts again after a crash finds its batch on chain, with the file beside it, or finds none and posts
anew. Snapshots lie a few blocks back and their hash is posted along: a reorganisation in between makes the posting
revert rather than be judged by another state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from swarm.batch_board import BatchBoard, SeenBatch, Standing
from swarm.batch_files import BatchFiles
from swarm.batches import Batch, BatchTree, Entry, build_batch
from swarm.errors import PaymentError, ResourceError, UnavailableError, VerificationError
from swarm.ids import Address
from swarm.ledger import read_ledger
from swarm.receipts import SignedVoucher
from swarm.settlement import MAX_BATCH, ChannelState, Settlement

EPOCH = 24 * 3600  # seconds between two batches: as long as a challenge window, so that one is pending at a time
PERIOD = 15.0  # seconds between two looks at the chain: about a block of the slowest chains in use
CONFIRMATIONS = 2  # blocks that a snapshot lies back: most reorganisations are of one block
TOP = Address(b"\xff" * Address.size)

Pair = tuple[Address, Address]


class SnapshotSettlement(Settlement, Protocol):
    """A settlement whose channels can be read as of a block."""

    def channel(self, client: Address, worker: Address, *, block: int | None = None) -> ChannelState | None:
        """The open channel between two accounts, or None; as of a block, or of the newest."""

    def block_hash(self, number: int) -> bytes:
        """The hash of a block."""

    def worker_totals(self, worker: Address) -> tuple[int, int]:
        """What is committed to a worker over its batched channels, and what of it was paid."""

    def close_requests(self, first_block: int = 0) -> list[Pair]:
        """(client, worker) of the channels whose close was requested from a block on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlerConfig:
    """What a settler serves and where it keeps files."""

    folder: Path
    """Batch files."""
    ledgers: tuple[Path, ...] = ()
    """Ledgers of the workers whose vouchers it batches and whom it pays."""
    epoch: int = EPOCH
    """Seconds between two batches."""
    confirmations: int = CONFIRMATIONS
    """Blocks that a snapshot lies back."""
    first_block: int = 0
    """Where to begin to read the chain's log: the block of the contract's deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn did."""

    posted: int | None = None
    """The id of the batch that was posted."""
    answered: int = 0
    """Demands for data."""
    claimed: tuple[Address, ...] = ()
    """Workers who were paid."""
    closed: tuple[Pair, ...] = ()
    """Channels whose close was finalised."""


class Settler:
    """One settler on one contract. `turn` does whatever is due; it blocks."""

    def __init__(self, board: BatchBoard, settlement: SnapshotSettlement, config: SettlerConfig) -> None:
        self.board = board
        self.settlement = settlement
        self.config = config
        self.files = BatchFiles(config.folder)

    def turn(self) -> Turn:
        """Resolve, answer, post, pay and close what is due. Raises what the chain raises; a later turn goes on."""
        if self.board.due():
            self.board.advance()
        seen = self.board.batches(self.config.first_block)
        answered = self.answer(seen)
        posted = self.post(seen)
        return Turn(posted=posted, answered=answered, claimed=self.claim(seen), closed=self.close(seen))

    # Posting.

    def post(self, seen: Sequence[SeenBatch]) -> int | None:
        """Post a batch if the epoch is over and it says anything new; its id."""
        standing = [batch for batch in seen if self.board.state(batch.id).standing is not Standing.void]
        head = self.board.port.head()
        if standing and head.time < standing[-1].posted.posted + self.config.epoch:
            return None
        before = self._newest_tree(standing)
        snapshot = max(0, head.number - self.config.confirmations)
        batch = self.build(snapshot, before)
        if not batch.header.count or (before is not None and not _is_news(batch, *before)):
            return None
        self.files.save(batch.tree)
        bond = self.board.terms()[0]
        if self.board.bond_balance(self.board.port.account) < bond:
            raise PaymentError(f"a batch takes a bond of {bond}; run: swarm settle --bond {bond}")
        self.board.post(batch, self.settlement.block_hash(snapshot))
        return next(
            found.id
            for found in reversed(self.board.batches(self.config.first_block))
            if found.posted.record_root == batch.tree.root
        )

    def build(self, snapshot: int, before: tuple[SeenBatch, BatchTree] | None) -> Batch:
        """The batch of all known vouchers of channels that were open, and not closing, at a block."""
        best: dict[Pair, SignedVoucher] = {}
        for signed in (*self._vouchers(), *(_vouchers_in(*before, self.settlement) if before else ())):
            channel = signed.voucher.channel
            pair = (channel.client, channel.worker)
            known = best.get(pair)
            if known is None or _rank(known) < _rank(signed):
                best[pair] = signed
        entries = []
        for pair, signed in best.items():
            state = self.settlement.channel(*pair, block=snapshot)
            if state is None or not state.batched or state.closing_at is not None:
                continue
            if state.epoch == signed.voucher.channel.epoch and _is_signed(signed, state):
                entries.append(Entry(signed=signed, cap=state.cap))
        return build_batch(
            entries, chain_id=self.settlement.chain_id, contract=self.settlement.contract, snapshot=snapshot
        )

    def _vouchers(self) -> Iterable[SignedVoucher]:
        """The highest vouchers in the ledgers, for this contract."""
        with ExitStack() as stack:
            for path in self.config.ledgers:
                for state in stack.enter_context(read_ledger(path)).channels():
                    channel = state.channel
                    here = (channel.chain_id, channel.contract) == (
                        self.settlement.chain_id,
                        self.settlement.contract,
                    )
                    if here and state.accepted is not None:
                        yield state.accepted

    def _newest_tree(self, standing: Sequence[SeenBatch]) -> tuple[SeenBatch, BatchTree] | None:
        """The last batch that is not void and whose file is here: its records are carried on."""
        for batch in reversed(standing):
            tree = self.files.load(batch.posted)
            if tree is not None:
                return batch, tree
        return None

    # What follows from batches.

    def answer(self, seen: Sequence[SeenBatch]) -> int:
        """Show data that is demanded and here, whoever posted it; how often."""
        answered = 0
        for batch in seen:
            state = self.board.state(batch.id)
            if state.standing is not Standing.pending or not state.demands:
                continue
            tree = self.files.load(batch.posted)
            if tree is None or tree.root != batch.posted.record_root:
                continue
            for number in self.board.demands(batch.id, batch.block):
                self.board.show(batch.id, batch.posted, tree, number)
                answered += 1
        return answered

    def claim(self, seen: Sequence[SeenBatch]) -> tuple[Address, ...]:
        """Pay the workers of the ledgers what the last final batch comes to."""
        latest = self.board.last_final()
        batch = next((found for found in seen if found.id == latest), None)
        tree = self.files.load(batch.posted) if batch is not None else None
        if batch is None or tree is None:
            return ()
        workers = sorted({signed.voucher.channel.worker for signed in self._vouchers()})
        due: dict[Address, int] = {}
        for worker in workers:
            index = tree.find(batch.posted.count, TOP, worker)
            if index and tree.record(index).worker == worker:
                running = tree.record(index).worker_running
                committed, paid = self.settlement.worker_totals(worker)
                if min(self.board.entitled(latest, worker, running), committed) > paid:
                    due[worker] = index
        found = list(due.items())
        for start in range(0, len(found), MAX_BATCH):
            proofs = [tree.proof(index) for _, index in found[start : start + MAX_BATCH]]
            self.board.claim(latest, batch.posted, proofs)
        return tuple(due)

    def close(self, seen: Sequence[SeenBatch]) -> tuple[Pair, ...]:
        """Finalise the closes whose time has come and for which the right batch's file is here."""
        done: list[Pair] = []
        for pair in dict.fromkeys(self.settlement.close_requests(self.config.first_block)):
            state = self.settlement.channel(*pair)
            if state is None or not state.batched or state.closing_block is None:
                continue
            # What cannot be finalised yet is refused, and tried again at the next turn.
            with suppress(PaymentError):
                if finalize(self.board, self.files, seen, state):
                    done.append(pair)
        return tuple(done)


def finalize(board: BatchBoard, files: BatchFiles, seen: Sequence[SeenBatch], state: ChannelState) -> bool:
    """Finalise the close of a batched channel; False if the batch's file that it takes is not here."""
    assert state.closing_block is not None  # noqa: S101 - of a channel that is closing
    number, batch_id = board.relevant(state.closing_block)
    if not number:
        board.finalize_close(state.client, state.worker, 0, None, None)
        return True
    batch = next((found for found in seen if found.id == batch_id), None)
    tree = files.load(batch.posted) if batch is not None else None
    if batch is None or tree is None:
        return False
    place = tree.place(batch.posted.count, state.client, state.worker)
    board.finalize_close(state.client, state.worker, number, batch.posted, place)
    return True


async def run_settler(
    settler: Settler, *, period: float = PERIOD, report: trio.MemorySendChannel[Turn | str] | None = None
) -> None:
    """Take turns until cancelled. A node that goes away, a full disk or a refused transaction is reported and met
    again at the next turn; nothing is lost by it."""
    while True:
        said: Turn | str
        try:
            said = await trio.to_thread.run_sync(settler.turn)
        except (UnavailableError, PaymentError, ResourceError) as error:
            said = error.message
        if report is not None:
            with suppress(trio.WouldBlock):
                report.send_nowait(said)
        await trio.sleep(period)


def _rank(signed: SignedVoucher) -> tuple[int, int]:
    return signed.voucher.channel.epoch, signed.voucher.cumulative


def _is_signed(signed: SignedVoucher, state: ChannelState) -> bool:
    try:
        signed.verify(state.spending_key)
    except VerificationError:
        return False
    return True


def _vouchers_in(batch: SeenBatch, tree: BatchTree, settlement: Settlement) -> list[SignedVoucher]:
    records = (tree.record(index) for index in range(1, batch.posted.count + 1))
    return [record.voucher(chain_id=settlement.chain_id, contract=settlement.contract) for record in records]


def _is_news(batch: Batch, before: SeenBatch, tree: BatchTree) -> bool:
    """Whether a batch counts more for any channel than the one before."""
    for index in range(1, batch.header.count + 1):
        record = batch.tree.record(index)
        at = tree.find(before.posted.count, record.client, record.worker)
        known = tree.record(at) if at else None
        if known is None or known.key != record.key or known.epoch != record.epoch or known.counted < record.counted:
            return True
    return False
