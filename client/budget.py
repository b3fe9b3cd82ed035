"""What a client has promised on one channel, without I/O.

One cumulative stream serves all calls in flight: a voucher promises what closed calls have cost plus a ceiling for
each open one. Each open call is prepaid by a window, renewed at half of it, so the ring never waits for money and
neither side can lose more than a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.errors import PaymentError
from swarm.ids import CallId
from swarm.merkle import EMPTY_ROOT
from swarm.receipts import WINDOW_TOKENS, Channel, Price, Voucher


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one call costs at one stage."""

    price: Price
    layers: int
    prompt_tokens: int
    max_tokens: int

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
    """What the worker's receipts add up to."""
    receipts_root: bytes = EMPTY_ROOT
    open: dict[CallId, int] = field(default_factory=dict)

    def promise(self, call: CallId, ceiling: int, terms_hash: bytes) -> Voucher | None:
        """The voucher to send so that ``call`` may cost up to ``ceiling``; None when the last one covers it.

        Raises `PaymentError` when the channel's allocation does not.
        """
        before = self.open.get(call)
        self.open[call] = max(ceiling, before or 0)
        needed = self.earned + sum(self.open.values())
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
            return None
        self.issued = needed
        self.nonce += 1
        return Voucher(
            channel=self.channel,
            nonce=self.nonce,
            cumulative=needed,
            receipts_root=self.receipts_root,
            terms_hash=terms_hash,
        )

    def close(self, call: CallId, amount: int) -> None:
        """A call has ended; its receipt says ``amount`` (0 without one)."""
        self.open.pop(call, None)
        self.earned += amount
