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

    def check(self, cumulative: int) -> None:
        """Raise `PaymentError` for a promise above the channel's allocation."""
        if cumulative > self.cap:
            raise PaymentError(
                f"the voucher promises {cumulative}, the channel holds {self.cap}; allocate more and send it again"
            )

    def promise(self, cumulative: int) -> None:
        """A voucher of ``cumulative`` is on disk. The highest counts, in whatever order they come.

        Raises `PaymentError` for one above the channel's allocation.
        """
        self.check(cumulative)
        self.promised = max(self.promised, cumulative)

    def open(self, session: SessionId) -> None:
        """A call begins. Raises `PaymentError` for one that is open, whose accrual would be lost."""
        if session in self.accrued:
            raise PaymentError(f"session {session.short} is open on this channel already")
        self.accrued[session] = 0

    def spend(self, session: SessionId, total: int) -> bool:
        """Let a call's cost rise to ``total``; False, and nothing spent, when the credit does not cover it."""
        if self._missing(session, total) > 0:
            return False
        self.accrued[session] = max(total, self.accrued[session])
        return True

    def required(self, session: SessionId, total: int) -> int:
        """The cumulative voucher with which a call's cost may rise to ``total``; 0 when it may already."""
        missing = self._missing(session, total)
        return min(self.promised, self.cap) + missing if missing > 0 else 0

    def close(self, session: SessionId, amount: int) -> int:
        """A call has ended and cost ``amount`` (at most what it had accrued). Returns the channel's new earnings."""
        accrued = self.accrued[session]
        if amount > accrued:
            raise ValueError(f"a call that accrued {accrued} cannot cost {amount}")
        del self.accrued[session]
        self.earned += amount
        return self.earned

    def _missing(self, session: SessionId, total: int) -> int:
        return total - self.accrued[session] - self.credit
