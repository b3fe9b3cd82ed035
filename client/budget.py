"""What a client has promised on one channel, without I/O.

One cumulative stream serves all calls in flight: a voucher promises what closed calls have cost plus a ceiling for
each open one. Each open call is prepaid by a window, renewed at half of it, so the ring never waits for money and
neither side can lose more than a window.

A call that ends without a receipt (a worker that fell silent, a client that was killed) leaves a doubt: the worker may
have counted up to its ceiling as earned. Nothing is promised for that until the worker asks, and it ends with the
next receipt, which says what the worker counts in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.errors import PaymentError
from swarm.ids import CallId
from swarm.merkle import EMPTY_ROOT
from swarm.receipts import WINDOW_TOKENS, Channel, Price, Receipt, Voucher


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one call costs at one stage."""

    price: Price
    layers: int
    prompt_tokens: int
    max_tokens: int

    @property
    def whole(self) -> int:
        """The most that the call can cost."""
        return self.after(self.max_tokens)

    def after(self, tokens: int) -> int:
        """The cost once ``tokens`` tokens were generated."""
        return self.price.amount(layers=self.layers, input_tokens=self.prompt_tokens, output_tokens=tokens)

    def ceiling(self, tokens: int) -> int:
        """What should be promised when ``tokens`` tokens were generated: a window ahead, never past the call's end."""
        return self.after(min(tokens + WINDOW_TOKENS, self.max_tokens))


@dataclass(slots=True)
class ChannelBudget:
    """The client's side of one channel."""

    channel: Channel
    cap: int
    issued: int = 0
    nonce: int = 0
    earned: int = 0
    """What the worker has earned by its receipts."""
    receipts_root: bytes = EMPTY_ROOT
    held: bool = False
    """Whether the worker is known to have the last voucher; one that it has not would name terms it forgot."""
    doubtful: int = 0
    """What the worker may have earned beside that, by calls that ended without a receipt."""
    conceded: int = 0
    """The part of it that the worker has asked for."""
    open: dict[CallId, int] = field(default_factory=dict)
    """What each open call may cost so far."""
    reserved: dict[CallId, int] = field(default_factory=dict)
    """What each call may cost to its end; never less than its ceiling."""

    @property
    def committed(self) -> int:
        """What the last voucher has to cover."""
        return self.earned + self.conceded + sum(self.open.values())

    def shortage(self, cost: int) -> int:
        """By how much the cap is too low for one more call of this whole cost beside those that are reserved."""
        return max(0, self.earned + self.doubtful + self.conceded + sum(self.reserved.values()) + cost - self.cap)

    def reserve(self, call: CallId, cost: int) -> None:
        """Keep room under the cap for the whole of a call, so that none stops half-way for want of it."""
        self.reserved[call] = cost

    def promise(self, call: CallId, ceiling: int, terms_hash: bytes) -> Voucher | None:
        """The voucher to send so that ``call`` may cost up to ``ceiling``; None when the last one covers it.

        Raises `PaymentError` when the channel's allocation does not.
        """
        before = self.open.get(call)
        self.open[call] = max(ceiling, before or 0)
        needed = self.committed
        if needed > self.cap:
            if before is None:
                del self.open[call]
            else:
                self.open[call] = before
            raise PaymentError(
                f"this needs {needed} on the channel to {self.channel.worker.short}, which holds {self.cap}; "
                "allocate more",
                call_id=call,
            )
        if needed <= self.issued:
            if before is not None or self.held or self.issued == self.cap:
                return None
            needed = self.issued + 1  # the last one may never have arrived: one under this call's terms replaces it
        self.issued = needed
        self.held = False
        self.nonce += 1
        return Voucher(
            channel=self.channel,
            nonce=self.nonce,
            cumulative=needed,
            receipts_root=self.receipts_root,
            terms_hash=terms_hash,
        )

    def acknowledge(self, cumulative: int) -> None:
        """The worker has a voucher of ``cumulative`` on disk."""
        self.held = self.held or cumulative >= self.issued

    def concede(self, cumulative: int) -> None:
        """The worker has stopped until a voucher of ``cumulative``. What is in doubt is promised, and no more."""
        if cumulative > self.committed:
            self.conceded += self.doubtful
            self.doubtful = 0

    def most_earned(self, call: CallId, amount: int) -> int:
        """The most that a receipt of ``amount`` for ``call`` may say that the channel has earned in all.

        Calls share the channel's credit, so what others have cost, or lost, is only bounded by all that was promised.
        """
        alone = not self.doubtful and not self.conceded and self.open.keys() <= {call}
        return min(self.issued, self.earned + amount) if alone else self.issued

    def close(self, call: CallId, receipt: Receipt | None) -> None:
        """A call has ended, with this receipt or without one."""
        self.reserved.pop(call, None)
        promised = self.open.pop(call, 0)
        if receipt is not None:
            self.earned += receipt.amount
            if not self.open:  # then it counts everything
                self.earned = max(self.earned, receipt.cumulative)
                self.doubtful = self.conceded = 0
        unexplained = max(0, self.issued - self.earned - self.conceded)
        self.doubtful = unexplained if promised and receipt is None else min(self.doubtful, unexplained)
