"""What a client has promised on one channel."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client.budget import ChannelBudget, StageCost
from swarm.errors import PaymentError
from swarm.ids import Address, CallId
from swarm.receipts import WINDOW_TOKENS, Channel, Price
from tests.client.receipts import receipt
from worker.credit import Account

TERMS = b"t" * 32
A, B = CallId(b"a" * 16), CallId(b"b" * 16)
CHANNEL = Channel(
    chain_id=1, contract=Address(b"k" * 20), client=Address(b"c" * 20), worker=Address(b"w" * 20), epoch=3
)
COST = StageCost(price=Price(per_1k_input=1_000, per_1k_output=3_000), layers=2, prompt_tokens=10, max_tokens=200)


def budget(cap: int = 10_000) -> ChannelBudget:
    """A fresh channel."""
    return ChannelBudget(channel=CHANNEL, cap=cap)


def test_a_ceiling_is_a_window_ahead_and_never_past_the_end() -> None:
    assert COST.ceiling(0) == COST.after(WINDOW_TOKENS)
    assert COST.ceiling(100) == COST.after(164)
    assert COST.ceiling(190) == COST.whole == COST.after(200) == 2 * (10 + 600)


def test_one_stream_covers_every_call_in_flight() -> None:
    channel = budget()
    first = channel.promise(A, 100, TERMS)
    assert first is not None
    assert (first.cumulative, first.nonce, first.terms_hash, first.channel) == (100, 1, TERMS, CHANNEL)
    second = channel.promise(B, 50, TERMS)
    assert second is not None
    assert (second.cumulative, second.nonce) == (150, 2)
    assert channel.promise(A, 90, TERMS) is None  # a ceiling does not fall
    third = channel.promise(A, 130, TERMS)
    assert third is not None
    assert third.cumulative == 180


def test_unearned_prepayment_pays_the_next_call() -> None:
    channel = budget()
    channel.promise(A, 500, TERMS)
    channel.acknowledge(500)
    channel.close(A, receipt(call=A, output_tokens=20, cumulative=60))
    assert channel.earned == 60
    assert channel.promise(B, 400, TERMS) is None
    renewal = channel.promise(B, 450, TERMS)
    assert renewal is not None
    assert renewal.cumulative == 510


def test_a_voucher_that_may_not_have_arrived_is_replaced_under_the_calls_own_terms() -> None:
    channel = budget()
    channel.promise(A, 500, TERMS)
    channel.close(A, receipt(call=A, output_tokens=20, cumulative=60))
    again = channel.promise(B, 100, b"u" * 32)
    assert again is not None
    assert (again.cumulative, again.nonce, again.terms_hash) == (501, 2, b"u" * 32)
    channel.acknowledge(500)  # an older one
    assert not channel.held
    channel.acknowledge(501)
    assert channel.held


def test_at_the_cap_the_last_voucher_must_do() -> None:
    channel = budget(cap=500)
    channel.promise(A, 500, TERMS)
    channel.close(A, receipt(call=A, output_tokens=20, cumulative=60))
    assert channel.promise(B, 100, TERMS) is None


@pytest.mark.parametrize("known", [False, True])
def test_nothing_is_promised_above_the_allocation(known: bool) -> None:
    channel = budget(cap=100)
    if known:
        assert channel.promise(A, 60, TERMS) is not None
    with pytest.raises(PaymentError, match="holds 100; allocate more") as caught:
        channel.promise(A, 101, TERMS)
    assert caught.value.call_id == A
    assert channel.open == ({A: 60} if known else {})
    assert channel.issued == (60 if known else 0)


def test_whole_calls_are_reserved() -> None:
    channel = budget(cap=1_000)
    assert channel.shortage(600) == 0
    channel.reserve(A, 600)
    assert channel.shortage(600) == 200
    channel.close(A, None)
    assert channel.shortage(600) == 0


def test_a_lost_receipt_is_conceded_when_the_worker_asks_and_ends_with_the_next() -> None:
    channel = budget()
    channel.promise(A, 100, TERMS)
    channel.acknowledge(100)
    channel.close(A, None)
    assert (channel.earned, channel.doubtful) == (0, 100)
    assert channel.promise(B, 80, TERMS) is None  # the worker may say that 20 are left of it
    channel.concede(80)  # it has that much
    assert channel.conceded == 0
    channel.concede(101)
    voucher = channel.promise(B, 80, TERMS)
    assert voucher is not None
    assert voucher.cumulative == 180
    channel.concede(10_000)  # there is no more in doubt
    assert channel.promise(B, 80, TERMS) is None
    assert channel.most_earned(B, 30) == 180
    channel.close(B, receipt(call=B, output_tokens=10, cumulative=95))
    assert (channel.earned, channel.conceded, channel.doubtful) == (95, 0, 0)


def test_what_a_receipt_may_count() -> None:
    channel = budget()
    channel.promise(A, 100, TERMS)
    channel.promise(B, 50, TERMS)
    assert channel.most_earned(A, 30) == 150  # the other call may have closed before
    channel.close(B, receipt(call=B, output_tokens=10, cumulative=30))
    assert channel.earned == 30
    assert channel.most_earned(A, 30) == 60


@settings(deadline=None)  # a loaded machine is no failure
@given(st.lists(st.integers(0, 300), max_size=8))
def test_vouchers_rise(ceilings: list[int]) -> None:
    channel, last = budget(), (0, 0)
    for index, ceiling in enumerate(ceilings):
        voucher = channel.promise(CallId(bytes([index]) * 16), ceiling, TERMS)
        if voucher is not None:
            assert (voucher.nonce, voucher.cumulative) > last
            assert voucher.cumulative > last[1]
            last = (voucher.nonce, voucher.cumulative)


class TwoSides(RuleBasedStateMachine):
    """Client and worker on one channel, with receipts that get lost: neither waits for ever, neither loses more."""

    def __init__(self) -> None:
        super().__init__()
        self.client = budget(cap=10**9)
        self.worker = Account(CHANNEL, cap=10**9)
        self.calls: dict[CallId, tuple[int, int]] = {}  # tokens computed, tokens known to the client
        self.number = 0
        self.in_doubt = 0

    def send(self, call: CallId, tokens: int) -> None:
        voucher = self.client.promise(call, COST.ceiling(tokens), TERMS)
        if voucher is not None:
            self.worker.promise(voucher.cumulative)
            self.client.acknowledge(voucher.cumulative)

    @rule()
    def open(self) -> None:
        self.number += 1
        call = CallId(self.number.to_bytes(16, "big"))
        self.send(call, 0)
        self.worker.open(call)  # type: ignore[arg-type]
        self.calls[call] = (0, 0)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), tokens=st.integers(1, 100), lag=st.integers(0, 40))
    def compute(self, data: st.DataObject, tokens: int, lag: int) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        computed, known = self.calls[call]
        for _ in range(tokens):
            total = COST.after(min(computed + 1, COST.max_tokens))
            if not self.worker.spend(call, total):  # type: ignore[arg-type]
                known = computed  # everything arrives; the worker asks, the client answers
                self.send(call, known)
                if (needed := self.worker.required(call, total)) > 0:  # type: ignore[arg-type]
                    self.client.concede(needed)
                    for other in sorted(self.calls):
                        self.calls[other] = (self.calls[other][0],) * 2
                        self.send(other, self.calls[other][0] if other != call else known)
                assert self.worker.spend(call, total), "the ring waits for ever"  # type: ignore[arg-type]
            computed = min(computed + 1, COST.max_tokens)
        self.calls[call] = (computed, max(known, computed - lag))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), lost=st.booleans())
    def close(self, data: st.DataObject, lost: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        computed, _ = self.calls.pop(call)
        amount = COST.after(computed) if computed else 0
        cumulative = self.worker.close(call, amount)  # type: ignore[arg-type]
        if lost or not computed:
            self.client.close(call, None)
            return
        assert cumulative <= self.client.most_earned(call, amount)
        self.client.close(
            call, receipt(call=call, layers=2, input_tokens=10, output_tokens=computed, cumulative=cumulative)
        )

    @invariant()
    def nobody_loses(self) -> None:
        assert self.worker.credit >= 0
        assert self.worker.promised == self.client.issued
        assert self.client.earned <= self.worker.earned
        assert self.worker.earned <= self.client.issued


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
