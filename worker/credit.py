"""What a channel still covers: the worker's side of prepayment, without I/O.

A channel is worth `min(highest voucher, cap)`. What closed calls have earned and what open ones have accrued comes
off it. A step is only computed when its cost still fits, so the worker never works for a promise it does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.errors import PaymentError
from swarm.ids import SessionId
from swarm.receipts import UINT128_MAX, Channel


@dataclass(slots=True)
class Account:
    """One channel's credit. ``channel`` is None for a worker that serves for nothing: then nothing has a cost."""

    channel: Channel | None
    cap: int = 0
    promised: int = 0
    earned: int = 0
    accrued: dict[SessionId, int] = field(default_factory=dict)

    @property
    def credit(self) -> int:
        """What may still be spent, in base units."""
        if self.channel is None:
            return UINT128_MAX
        return min(self.promised, self.cap) - self.earned - sum(self.accrued.values())

    def promise(self, cumulative: int) -> None:
        """A voucher of ``cumulative`` is on disk. The highest counts, in whatever order they come.

        Raises `PaymentError` for one above the channel's allocation.
        """
        if cumulative > self.cap:
            raise PaymentError(
                f"the voucher promises {cumulative}, the channel holds {self.cap}; allocate more and send it again"
            )
        self.promised = max(self.promised, cumulative)

    def open(self, session: SessionId) -> None:
        """A call begins."""
        self.accrued[session] = 0

    def spend(self, session: SessionId, total: int) -> int:
        """Let a call's cost rise to ``total``. Returns what is missing; 0 means it was spent."""
        missing = total - self.accrued[session] - self.credit
        if missing > 0:
            return missing
        self.accrued[session] = max(total, self.accrued[session])
        return 0

    def required(self, missing: int) -> int:
        """The cumulative voucher that would cover ``missing`` more."""
        return min(self.promised, self.cap) + missing

    def close(self, session: SessionId, amount: int) -> int:
        """A call has ended and cost ``amount`` (at most what it had accrued). Returns the channel's new earnings."""
        accrued = self.accrued.pop(session)
        if amount > accrued:
            raise ValueError(f"a call that accrued {accrued} cannot cost {amount}")
        self.earned += amount
        return self.earned
