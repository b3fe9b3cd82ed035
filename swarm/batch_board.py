"""The contract `Batches` as a settler, a watcher, a worker or a client uses it, over any way to call a contract.

Methods block, as those of `swarm.settlement.Settlement` do, and raise the same errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from swarm.batch_check import ProofCall, record_fields
from swarm.batches import Batch, BatchTree, Place, PostedBatch, RecordProof
from swarm.errors import UsageError
from swarm.ids import Address
from swarm.settlement import MAX_BATCH, Transaction


class Standing(IntEnum):
    """Where a batch stands, as far as it was resolved."""

    unknown = 0
    pending = 1
    final = 2
    void = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest block."""

    number: int
    hash: bytes
    time: int
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One log entry of the contract."""

    name: str
    arguments: Mapping[str, Any]
    block: int
    transaction: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """What the contract keeps of a batch beside its commitment."""

    settler: Address
    deadline: int
    """Until when lies can be proven, in seconds; later while demands are open."""
    snapshot: int
    demands: int
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenBatch:
    """A batch as its posting was logged."""

    id: int
    settler: Address
    posted: PostedBatch
    block: int
    transaction: bytes


class ContractPort(Protocol):
    """Calls of one contract by one account."""

    @property
    def account(self) -> Address:
        """Who sends the transactions."""

    def call(self, name: str, *arguments: Any) -> Any:
        """A view's answer on the newest block."""

    def send(self, name: str, *arguments: Any) -> Transaction:
        """A transaction, once it is in a block. Raises `PaymentError` with the contract's reason."""

    def head(self) -> Head:
        """The newest block."""

    def events(self, name: str, first_block: int) -> list[Event]:
        """The contract's log entries of one kind from a block on, in order."""

    def inputs(self, transaction: bytes) -> Mapping[str, Any]:
        """The arguments of a call that is in a block, by name."""


class BatchBoard:
    """The batches of one settlement contract."""

    def __init__(self, port: ContractPort) -> None:
        self.port = port

    # Bonds and posting.

    def bond_balance(self, account: Address) -> int:
        """What of an account's bond money is held by no batch and no demand."""
        return int(self.port.call("balance_of", bytes(account)))

    def terms(self) -> tuple[int, int, int, int, int]:
        """Bond, deposit, challenge window, data window (seconds) and lag (blocks)."""
        bond, deposit, challenge, data, lag = self.port.call("terms")
        return bond, deposit, challenge, data, lag

    def post(self, batch: Batch, snapshot_hash: bytes) -> Transaction:
        """Post a batch made from the block with this hash, and stake the bond on it."""
        new = batch.posting
        return self.port.send(
            "post", new.record_root, new.pieces_root, new.snapshot, new.count, new.total, snapshot_hash
        )

    def batches(self, first_block: int = 0) -> list[SeenBatch]:
        """Every batch posted from a block on."""
        return [_seen(event) for event in self.port.events("Posted", first_block)]

    def state(self, batch_id: int) -> BatchState:
        """Where a batch stands."""
        settler, deadline, snapshot, demands, standing = self.port.call("state", batch_id)
        return BatchState(
            settler=Address.parse(settler),
            deadline=deadline,
            snapshot=snapshot,
            demands=demands,
            standing=Standing(standing),
        )

    def counts(self) -> tuple[int, int, int]:
        """How many batches were posted, resolved and found final."""
        return self.port.call("posted"), self.port.call("resolved"), self.port.call("finals")

    def last_final(self) -> int:
        """The id of the last final batch; 0 if there is none."""
        return int(self.port.call("final_batch", self.port.call("finals"))[0])

    def due(self) -> bool:
        """Whether `advance` would resolve something."""
        posted, resolved, _ = self.counts()
        if resolved == posted:
            return False
        state = self.state(resolved + 1)
        over = state.demands == 0 and self.port.head().time >= state.deadline
        return state.standing is Standing.void or over

    def advance(self) -> Transaction:
        """Resolve batches whose time has come."""
        return self.port.send("advance")

    # Lies and data.

    def prove(self, batch_id: int, posted: PostedBatch, proof: ProofCall) -> Transaction:
        """Prove a lie, or demand data where ``proof`` is that. Other than for a demand, the batch is void then."""
        return self.port.send(proof.function, batch_id, batch_fields(posted), *proof.arguments)

    def demand(self, batch_id: int, posted: PostedBatch, number: int) -> Transaction:
        """Demand a block of the file."""
        return self.port.send("demand_data", batch_id, batch_fields(posted), number)

    def demands(self, batch_id: int, first_block: int = 0) -> list[int]:
        """The blocks that are demanded and not shown yet."""
        asked = [event for event in self.port.events("DataDemanded", first_block) if event.arguments["id"] == batch_id]
        numbers = dict.fromkeys(int(event.arguments["number"]) for event in asked)
        return [number for number in numbers if self.question(batch_id, number)[1]]

    def question(self, batch_id: int, number: int) -> tuple[Address, int]:
        """Who demanded a block and until when it must be shown, in seconds; 0 if nobody does."""
        challenger, deadline = self.port.call("question", batch_id, number)
        return Address.parse(challenger), deadline

    def show(self, batch_id: int, posted: PostedBatch, tree: BatchTree, number: int) -> Transaction:
        """Answer a demand from the batch's file."""
        data = (tree.block(number), list(tree.piece_path(number)), list(tree.layer))
        return self.port.send("show_data", batch_id, batch_fields(posted), number, *data)

    def shown_layer(self, batch_id: int, first_block: int = 0) -> tuple[bytes, ...]:
        """The record tree's layer as an answer to a demand has shown it; empty if none was."""
        for event in self.port.events("DataShown", first_block):
            if event.arguments["id"] == batch_id:
                return tuple(bytes(node) for node in self.port.inputs(event.transaction)["layer"])
        return ()

    def void_withheld(self, batch_id: int, number: int) -> Transaction:
        """Void a batch whose data was not shown in time."""
        return self.port.send("void_withheld", batch_id, number)

    # Money.

    def entitled(self, batch_id: int, worker: Address, running: int) -> int:
        """What a worker whose running sum in the last final batch is ``running`` has earned in all."""
        gone = int(self.port.call("excluded", batch_id, bytes(worker)))
        return max(0, running + int(self.port.call("exited", bytes(worker))) - gone)

    def claim(self, batch_id: int, posted: PostedBatch, proofs: Sequence[RecordProof]) -> Transaction:
        """Pay workers what the last final batch and their closed channels come to; a record of each worker."""
        if not 0 < len(proofs) <= MAX_BATCH:
            raise UsageError(f"one transaction takes 1 to {MAX_BATCH} workers, not {len(proofs)}; split them")
        return self.port.send("claim", batch_id, batch_fields(posted), [record_fields(proof) for proof in proofs])

    def claim_exited(self, workers: Sequence[Address]) -> Transaction:
        """Pay workers for their closed channels alone."""
        return self.port.send("claim_exited", [bytes(worker) for worker in workers])

    def show_record(self, batch_id: int, posted: PostedBatch, proof: RecordProof) -> Transaction:
        """Put a final batch's record on record for its channel's close."""
        return self.port.send("show_record", batch_id, batch_fields(posted), record_fields(proof))

    def relevant(self, closing_block: int) -> tuple[int, int]:
        """The last final batch from before a close was requested: its number among the final ones and its id.

        Zeros if there is none.
        """
        number = int(self.port.call("finals"))
        while number:
            batch_id, snapshot = self.port.call("final_batch", number)
            if snapshot < closing_block:
                return number, batch_id
            number -= 1
        return 0, 0

    def finalize_close(
        self, client: Address, worker: Address, number: int, posted: PostedBatch | None, place: Place | None
    ) -> Transaction:
        """Close a batched channel. ``posted`` and ``place`` are None where there is no final batch from before."""
        at = place.at if place else RecordProof(index=0, record=bytes(256), path=())
        after = place.after if place else at
        fields = batch_fields(posted) if posted else (bytes(32), bytes(32), 0, 0, 0, 0)
        places = (record_fields(at), record_fields(after))
        return self.port.send("finalize_close", bytes(client), bytes(worker), number, fields, places)

    def finalize_unproven(self, client: Address, worker: Address) -> Transaction:
        """Close a batched channel after a second window, where nobody has the batch's data."""
        return self.port.send("finalize_unproven", bytes(client), bytes(worker))


def batch_fields(posted: PostedBatch) -> tuple[Any, ...]:
    """A batch as the contract's ``Batch`` tuple."""
    return posted.record_root, posted.pieces_root, posted.snapshot, posted.count, posted.total, posted.posted


def _seen(event: Event) -> SeenBatch:
    batch = event.arguments["batch"]
    return SeenBatch(
        id=event.arguments["id"],
        settler=Address.parse(event.arguments["settler"]),
        posted=PostedBatch(
            record_root=bytes(batch["record_root"]),
            pieces_root=bytes(batch["pieces_root"]),
            snapshot=batch["snapshot"],
            count=batch["count"],
            total=batch["total"],
            posted=batch["posted"],
        ),
        block=event.block,
        transaction=event.transaction,
    )
