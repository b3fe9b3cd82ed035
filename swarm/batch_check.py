"""Whether a batch is true, and if it is not, the one transaction that proves it. Pure.

`find_lie` checks every record of a batch's file as the contract would judge it; `proof_of` makes the call. Kinds are
those of docs/settlement.md: each names one thing that a settler can lie about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from swarm.batches import (
    EMPTY_LEAF,
    RECORD_SIZE,
    BatchHeader,
    BatchRecord,
    BatchTree,
    PostedBatch,
    RecordProof,
    layer_path,
    layer_root,
)
from swarm.errors import ProtocolError, VerificationError
from swarm.ids import Address
from swarm.settlement import ChannelState

ChannelLookup = Callable[[Address, Address], ChannelState | None]
"""The channel between a client and a worker as the chain has it now, or None."""


class LieKind(StrEnum):
    """What is wrong, by the names of docs/settlement.md."""

    forged = "F1"
    unbacked = "F2"
    disorder = "F3"
    sums = "F4"
    ends = "F5"
    differing = "F7"
    withheld = "F8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """The first thing that is wrong with a batch."""

    kind: LieKind
    index: int
    """The record (the header is 0), or for `differing` and `withheld` the block."""
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofCall:
    """A function of the contract Batches and its arguments after the batch itself, as the ABI takes them."""

    function: str
    arguments: tuple[Any, ...]


def find_lie(
    posted: PostedBatch, tree: BatchTree, *, chain_id: int, contract: Address, channel: ChannelLookup
) -> Lie | None:
    """The first lie in a batch, or None. ``tree`` is over the file that its pieces root names.

    Raises `ProtocolError` if it is over another file. A file that differs from the record root is `differing`, with
    the block unknown: -1; see `differing_block`.
    """
    if len(tree.file) != posted.size or tree.pieces_root != posted.pieces_root:
        raise ProtocolError("this is not the file of the batch; fetch it again")
    if tree.root != posted.record_root:
        return Lie(kind=LieKind.differing, index=-1, what="the file has another record root than was posted")
    header = BatchHeader(
        chain_id=chain_id, contract=contract, snapshot=posted.snapshot, count=posted.count, total=posted.total
    )
    if tree.raw(0) != header.pack():
        return Lie(kind=LieKind.ends, index=0, what="the header is not what was posted")
    before: BatchRecord | None = None
    for index in range(1, posted.count + 1):
        record = tree.record(index)
        lie = _step(index, before, record) or _alone(index, record, channel, header)
        if lie is not None:
            return lie
        before = record
    if before is not None and before.total_running != posted.total:
        return Lie(kind=LieKind.ends, index=posted.count, what="the last running sum is not the total")
    for index in range(posted.count + 1, len(tree.file) // RECORD_SIZE):
        if tree.leaf(index) != EMPTY_LEAF:
            return Lie(kind=LieKind.ends, index=index, what="what fills the last block up is not zero")
    return None


def differing_block(tree: BatchTree, layer: Sequence[bytes], posted: PostedBatch) -> Lie:
    """Which block is not what the record root has, once ``layer`` was shown on chain.

    Raises `ProtocolError` if the layer does not lead to the posted root, or differs nowhere.
    """
    if len(layer) != posted.blocks or layer_root(layer) != posted.record_root:
        raise ProtocolError("this layer does not lead to the batch's record root; read it from the chain again")
    for number, (ours, theirs) in enumerate(zip(tree.layer, layer, strict=True)):
        if ours != theirs:
            return Lie(kind=LieKind.differing, index=number, what=f"block {number} has other records under the root")
    raise ProtocolError("the layer is that of the file; there is nothing to prove")


def proof_of(lie: Lie, tree: BatchTree, *, count: int, layer: Sequence[bytes] = ()) -> ProofCall:
    """The call that proves a lie. For `differing`, ``layer`` is what was shown on chain."""
    index = lie.index
    match lie.kind:
        case LieKind.forged:
            return ProofCall(function="prove_forged", arguments=(record_fields(tree.proof(index)),))
        case LieKind.unbacked:
            return ProofCall(function="prove_unbacked", arguments=(record_fields(tree.proof(index)),))
        case LieKind.disorder | LieKind.sums:
            pair = (record_fields(tree.proof(index - 1)), record_fields(tree.proof(index)))
            return ProofCall(function="prove_step", arguments=pair)
        case LieKind.ends if 0 < index <= count:
            return ProofCall(function="prove_end", arguments=(record_fields(tree.proof(index)),))
        case LieKind.ends:
            arguments = (index, tree.leaf(index), list(tree.path(index)))
            return ProofCall(function="prove_filling", arguments=arguments)
        case LieKind.differing if layer:
            path, node = layer_path(layer, index), layer[index]
            block = (index, tree.block(index), list(tree.piece_path(index)))
            return ProofCall(function="prove_differing", arguments=(*block, node, list(path)))
    # Data that is missing, or a place in the other tree that nobody has seen: the settler has to show it.
    return ProofCall(function="demand_data", arguments=(max(index, 0),))


def record_fields(proof: RecordProof) -> tuple[Any, ...]:
    """A proof as the contract's ``Proof`` tuple."""
    words = [int.from_bytes(proof.record[at : at + 32], "big") for at in range(0, RECORD_SIZE, 32)]
    return proof.index, words, list(proof.path)


def _step(index: int, before: BatchRecord | None, record: BatchRecord) -> Lie | None:
    """What is wrong with a record beside the one before it."""
    worker, total = record.counted, record.counted
    if before is not None:
        if before.key >= record.key:
            return Lie(kind=LieKind.disorder, index=index, what=f"record {index} does not stand behind the one before")
        worker += before.worker_running if before.worker == record.worker else 0
        total += before.total_running
    if (record.worker_running, record.total_running) != (worker, total):
        return Lie(kind=LieKind.sums, index=index, what=f"the running sums of record {index} do not follow")
    return None


def _alone(index: int, record: BatchRecord, channel: ChannelLookup, header: BatchHeader) -> Lie | None:
    """What is wrong with a record by itself."""
    if record.reserved:
        return Lie(kind=LieKind.ends, index=index, what=f"record {index} has reserved bytes that are not zero")
    state = channel(record.client, record.worker)
    if (
        state is None
        or not state.batched
        or state.epoch != record.epoch
        or record.counted > min(record.cumulative, state.cap)
        or (state.closing_block is not None and state.closing_block <= header.snapshot)
    ):
        return Lie(kind=LieKind.unbacked, index=index, what=f"record {index} is not backed by an open channel")
    try:
        record.voucher(chain_id=header.chain_id, contract=header.contract).verify(state.spending_key)
    except VerificationError:
        return Lie(kind=LieKind.forged, index=index, what=f"the voucher of record {index} is forged")
    return None
