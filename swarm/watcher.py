"""A watcher: fetches every batch by its root, checks every record, and proves a lie by itself.

It trusts nobody's copy: a file is what its pieces root says, channels are what the chain says. Data that it cannot get
it demands, and a batch whose data is not shown in time it voids. What it has it shows, whoever demands it. One honest
watcher that is online once per challenge window keeps everybody's money; without any, the caps of a worker's own
channels are the most that a lie about this worker can move.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from swarm.batch_board import BatchBoard, SeenBatch, Standing
from swarm.batch_check import Lie, LieKind, differing_block, find_lie, proof_of
from swarm.batch_files import BatchFiles
from swarm.batches import BatchTree, PostedBatch
from swarm.errors import PaymentError, ResourceError, SwarmError, UnavailableError
from swarm.layout import ByteRange
from swarm.settler import PERIOD, SnapshotSettlement
from swarm.torrents import Torrents

FETCH_TIMEOUT = 600.0  # seconds for 16 MiB from anybody; after that the data is demanded on chain


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherConfig:
    """Where a watcher keeps files and from whom it fetches them."""

    folder: Path
    peers: tuple[tuple[str, int], ...] = ()
    """Torrent addresses of settlers and other watchers."""
    fetch_timeout: float = FETCH_TIMEOUT
    first_block: int = 0
    """Where to begin to read the chain's log."""
    demand: bool = True
    """Demand data that cannot be fetched; it takes a deposit."""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What one turn found and did."""

    checked: list[int] = field(default_factory=list)
    """Batches that are true."""
    proven: list[tuple[int, Lie]] = field(default_factory=list)
    """Batches that were voided for a lie."""
    demanded: list[int] = field(default_factory=list)
    voided: list[int] = field(default_factory=list)
    """Batches that were voided for withheld data."""
    shown: int = 0
    """Records put on record for closes."""
    problems: list[str] = field(default_factory=list)


class Watcher:
    """One watcher on one contract."""

    def __init__(
        self,
        board: BatchBoard,
        settlement: SnapshotSettlement,
        config: WatcherConfig,
        torrents: Torrents | None = None,
    ) -> None:
        self.board = board
        self.settlement = settlement
        self.config = config
        self.files = BatchFiles(config.folder)
        self._torrents = torrents
        self._seeding: set[bytes] = set()
        self._fine: set[tuple[int, PostedBatch]] = set()
        """Batches that were checked; with what was posted, as a reorganisation may put another under the same id."""

    async def turn(self) -> Findings:
        """Check what is new, act on what is wrong. One batch's trouble does not keep the others from being checked."""
        findings = Findings()
        seen = await trio.to_thread.run_sync(self.board.batches, self.config.first_block)
        for batch in seen:
            if (batch.id, batch.posted) in self._fine:
                await self._seed(batch)
                continue
            try:
                await self._look(batch, findings)
            except SwarmError as error:
                findings.problems.append(f"batch {batch.id}: {error.message}")
        findings.shown = await trio.to_thread.run_sync(self._guard_closes, seen)
        return findings

    async def _look(self, batch: SeenBatch, findings: Findings) -> None:
        state = await trio.to_thread.run_sync(self.board.state, batch.id)
        if state.standing is Standing.void:
            return
        tree = await self._file(batch)
        if state.standing is not Standing.pending:
            if tree is not None:
                self._fine.add((batch.id, batch.posted))  # kept for closes
            return
        await trio.to_thread.run_sync(self._judge, batch, tree, findings)
        if tree is not None:
            await self._seed(batch)

    def _judge(self, batch: SeenBatch, tree: BatchTree | None, findings: Findings) -> None:
        """Prove, demand or void; or find nothing."""
        if tree is None:
            self._press(batch, findings)
            return
        lie = find_lie(
            batch.posted,
            tree,
            chain_id=self.settlement.chain_id,
            contract=self.settlement.contract,
            channel=self.settlement.channel,
        )
        if lie is None:
            self._answer(batch, tree)
            self._fine.add((batch.id, batch.posted))
            findings.checked.append(batch.id)
            return
        layer: tuple[bytes, ...] = ()
        if lie.kind is LieKind.differing:
            layer = self.board.shown_layer(batch.id, batch.block)
            if not layer:
                self._press(batch, findings)
                return
            lie = differing_block(tree, layer, batch.posted)
        self.board.prove(batch.id, batch.posted, proof_of(lie, tree, count=batch.posted.count, layer=layer))
        findings.proven.append((batch.id, lie))

    def _press(self, batch: SeenBatch, findings: Findings) -> None:
        """Demand the first block, with which the whole record tree has to be shown; void when that was not done."""
        _, deadline = self.board.question(batch.id, 0)
        if deadline:
            if self.board.port.head().time > deadline:
                self.board.void_withheld(batch.id, 0)
                findings.voided.append(batch.id)
        elif self.config.demand:
            self.board.demand(batch.id, batch.posted, 0)
            findings.demanded.append(batch.id)

    def _answer(self, batch: SeenBatch, tree: BatchTree) -> None:
        if self.board.state(batch.id).demands:
            for number in self.board.demands(batch.id, batch.block):
                self.board.show(batch.id, batch.posted, tree, number)

    def _guard_closes(self, seen: Sequence[SeenBatch]) -> int:
        """Put records of older batches on record for closes, where later ones went back; how many."""
        shown = 0
        for client, worker in dict.fromkeys(self.settlement.close_requests(self.config.first_block)):
            state = self.settlement.channel(client, worker)
            if state is None or state.closing_block is None:
                continue
            best: tuple[int, SeenBatch, BatchTree, int] | None = None
            last = 0
            for batch in seen:
                tree = self.files.load(batch.posted)
                if tree is None or self.board.state(batch.id).standing is not Standing.final:
                    continue
                index = tree.find(batch.posted.count, client, worker)
                record = tree.record(index) if index else None
                here = record is not None and record.key == (worker, client) and record.epoch == state.epoch
                last = record.counted if record is not None and here else 0
                if here and last > (best[0] if best else 0):
                    best = (last, batch, tree, index)
                if batch.posted.snapshot >= state.closing_block:
                    break
            if best is not None and best[0] > last:
                with suppress(PaymentError):  # as much is on record already
                    self.board.show_record(best[1].id, best[1].posted, best[2].proof(best[3]))
                    shown += 1
        return shown

    async def _file(self, batch: SeenBatch) -> BatchTree | None:
        """The batch's file: from the folder, or from peers."""
        tree = await trio.to_thread.run_sync(self.files.load, batch.posted)
        if tree is None and self._torrents is not None and self.config.peers:
            await self._fetch(self._torrents, batch.posted)
            tree = await trio.to_thread.run_sync(self.files.load, batch.posted)
        return tree

    async def _fetch(self, torrents: Torrents, posted: PostedBatch) -> None:
        everything = [ByteRange(file=0, start=0, stop=posted.size)]
        with trio.move_on_after(self.config.fetch_timeout):
            torrent = await torrents.fetch(posted.torrent().encode(), self.config.folder, [everything])
            try:
                for host, port in self.config.peers:
                    torrent.add_peer(host, port)
                await torrent.wait(everything)
                self._seeding.add(posted.pieces_root)
            finally:
                if posted.pieces_root not in self._seeding:
                    with trio.CancelScope(shield=True):
                        await torrents.remove(torrent)

    async def _seed(self, batch: SeenBatch) -> None:
        if self._torrents is not None and batch.posted.pieces_root not in self._seeding:
            if not await trio.to_thread.run_sync(partial(self.files.path(batch.posted.pieces_root).exists)):
                return
            self._seeding.add(batch.posted.pieces_root)
            await self._torrents.seed(batch.posted.torrent().encode(), self.config.folder)


async def run_watcher(
    watcher: Watcher, *, period: float = PERIOD, report: trio.MemorySendChannel[Findings | str] | None = None
) -> None:
    """Take turns until cancelled; what stands in the way of one is reported and met again at the next."""
    while True:
        said: Findings | str
        try:
            said = await watcher.turn()
        except (UnavailableError, PaymentError, ResourceError) as error:
            said = error.message
        if report is not None:
            with suppress(trio.WouldBlock):
                report.send_nowait(said)
        await trio.sleep(period)
