"""A call's bill: what it may cost, what each stage's receipt must say, and whether the receipts fit together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from client.budget import StageCost
from client.route import Leg
from swarm.errors import VerificationError
from swarm.ids import PeerId
from swarm.merkle import ChainedRoot
from swarm.messages import PREFILL_CHUNK, pack_ids
from swarm.receipts import WINDOW_TOKENS, Receipt


def stage_costs(legs: Sequence[Leg], *, prompt_tokens: int, max_tokens: int) -> list[StageCost]:
    """What each stage of a chain costs for a call of this size."""
    return [
        StageCost(
            price=leg.candidate.signed.quote.price,
            layers=leg.stop - leg.start,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
        )
        for leg in legs
    ]


def affordable_tokens(costs: Sequence[StageCost], max_tokens: int, max_spend: int | None) -> int:
    """The most tokens, up to ``max_tokens``, whose whole cost is at most ``max_spend``; 0 when not even one is."""
    low, high = 0, max_tokens
    if max_spend is None:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if sum(cost.after(middle) for cost in costs) <= max_spend:
            low = middle
        else:
            high = middle - 1
    return low


def check_receipt(
    receipt: Receipt, *, expected: Mapping[str, object], prompt_tokens: int, accepted: int, received: int
) -> None:
    """Raise `VerificationError` naming the first field of a stage's receipt that is not what it should be.

    ``accepted`` of the ``received`` tokens were accepted; what came after is not billed, within the window that a
    worker may have run ahead.
    """
    wrong = next((name for name, value in expected.items() if getattr(receipt, name) != value), "")
    if not wrong and receipt.input_tokens > prompt_tokens:
        wrong = "input_tokens"
    if not wrong and receipt.output_tokens > max(accepted, received - WINDOW_TOKENS, 1):
        wrong = "output_tokens"
    if wrong:
        worker = receipt.worker
        raise VerificationError(f"peer {worker.short}'s receipt has the wrong {wrong}; not signed", peer_id=worker)


def compare_roots(prompt_ids: Sequence[int], tokens: Sequence[int], receipts: Sequence[Receipt]) -> None:
    """After a whole call, each stage's input must be the output of the one before, and both ends what is known here.

    Raises `VerificationError` naming the stage whose receipt does not fit.
    """
    given, drawn = ChainedRoot(), ChainedRoot()
    for start in range(0, len(prompt_ids), PREFILL_CHUNK):
        chunk = list(prompt_ids[start : start + PREFILL_CHUNK])
        given.append(pack_ids(chunk), tokens=len(chunk))
    for token in tokens[:-1]:
        given.append(pack_ids([token]), tokens=1)
    for token in tokens:
        drawn.append(pack_ids([token]), tokens=1)
    if receipts[0].input_root != given.value():
        raise _mismatch(receipts[0].worker, "the prompt and tokens it was given")
    for before, after in pairwise(receipts):
        if before.output_root != after.input_root:
            raise _mismatch(after.worker, f"what peer {before.worker.short} signed as sent")
    if receipts[-1].output_root != drawn.value():
        raise _mismatch(receipts[-1].worker, "the tokens it sent")


def _mismatch(worker: PeerId, what: str) -> VerificationError:
    return VerificationError(
        f"peer {worker.short}'s receipt does not match {what}; the output cannot be trusted, call again",
        peer_id=worker,
    )
