"""A call's bill: what it may cost, what each stage's receipt must say, and whether the receipts fit together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from client.budget import StageCost
from client.route import Leg
from swarm.errors import VerificationError
from swarm.ids import PeerId
from swarm.merkle import EMPTY_ROOT, ChainedRoot
from swarm.messages import PREFILL_CHUNK, OpenSession, pack_ids
from swarm.receipts import WINDOW_TOKENS, Price, Receipt
from swarm.records import CLOCK_TOLERANCE


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a stage's receipt must say, and the most that it may."""

    fields: Mapping[str, object]
    """Fields of the receipt that are known exactly."""
    cost: StageCost
    tokens: int
    """Output tokens that may be billed: those accepted, or what the worker may have run ahead."""
    began_ms: int
    """Unix milliseconds on this machine's clock."""
    now_ms: int


def known_fields(opening: OpenSession, *, client: PeerId, price: Price) -> dict[str, object]:
    """What the receipt of the stage that ``opening`` opened must say."""
    stage = opening.chain[opening.index]
    return {
        "manifest_id": opening.manifest_id,
        "client": client,
        "worker": stage.peer_id,
        "session_id": opening.session_id,
        "call_id": opening.call_id,
        "chain_epoch": opening.chain_epoch,
        "start": stage.start,
        "stop": stage.stop,
        "request_hash": opening.request_hash,
        "fingerprint_root": EMPTY_ROOT,
        "price": price,
        "rebuilt_tokens": 0,
    }


def billable(*, accepted: int, received: int) -> int:
    """Tokens that a stage may bill when ``accepted`` of ``received`` were accepted.

    A stage has computed one more than came back at most; of those past the accepted ones, one window is its own risk.
    """
    return max(accepted, received + 1 - WINDOW_TOKENS, 1)


def check_receipt(receipt: Receipt, due: Due) -> None:
    """Raise `VerificationError` naming the first field of a stage's receipt that is not what it should be."""
    wrong = next((name for name, value in due.fields.items() if getattr(receipt, name) != value), "")
    cost, tolerance = due.cost, CLOCK_TOLERANCE * 1000
    if not wrong and not 1 <= receipt.input_tokens <= cost.prompt_tokens:
        wrong = "input_tokens"
    if not wrong and receipt.output_tokens and receipt.input_tokens != cost.prompt_tokens:
        wrong = "input_tokens"
    # Money is compared, not tokens: a price below a unit a token lets a stage run further ahead for the same amount.
    if not wrong and (receipt.output_tokens > cost.max_tokens or receipt.amount > cost.after(due.tokens)):
        wrong = "output_tokens"
    if not wrong and not due.began_ms - tolerance <= receipt.started_ms <= receipt.finished_ms:
        wrong = "started_ms"
    if not wrong and receipt.finished_ms > due.now_ms + tolerance:
        wrong = "finished_ms"
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
