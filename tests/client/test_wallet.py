"""The client's money, on the fake chain and a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from client.bill import stage_costs
from client.route import Leg
from client.wallet import Wallet
from swarm.errors import PaymentError, VerificationError
from swarm.ids import Address, CallId, PeerId
from swarm.ledger import Ledger, open_ledger
from swarm.receipts import NO_ACCOUNT, Price, Receipt, SignedReceipt
from swarm.testing import FakeChain, FakeSettlement
from tests.client.quotes import free_quote, identity, leg
from tests.client.receipts import CLIENT, receipt

ME = Address(b"\xcc" * 20)
SPENDING = identity(500)
A, B = CallId(b"a" * 16), CallId(b"b" * 16)
TERMS = b"t" * 32
LEGS = (leg(1, 0, 3), leg(2, 3, 8))


def funded(tokens: int = 1_000_000) -> FakeSettlement:
    """A client's account with this deposit."""
    chain = FakeChain()
    settlement = chain.account(ME)
    chain.mint(ME, tokens)
    settlement.deposit(tokens)
    return settlement


@asynccontextmanager
async def open_wallet(
    path: Path, settlement: FakeSettlement | None, **options: Any
) -> AsyncIterator[tuple[Wallet, Ledger]]:
    """A wallet over the ledger in this folder."""
    fields: dict[str, Any] = {"spending": SPENDING, "allocation": 10_000}
    async with open_ledger(path / "client.db") as ledger:
        yield Wallet(ledger=ledger, settlement=settlement, **fields | options), ledger


async def prepare(wallet: Wallet, call: CallId = A, legs: tuple[Leg, ...] = LEGS, tokens: int = 10) -> None:
    """Room for a call of this size."""
    await wallet.prepare(call, legs, stage_costs(legs, prompt_tokens=10, max_tokens=tokens))


def billed(at: Leg, settlement: FakeSettlement, *, call: CallId = A, tokens: int = 10, **changes: Any) -> SignedReceipt:
    """The receipt of a leg's worker, signed by both."""
    found = settlement.channel(ME, at.candidate.signed.quote.account)
    assert found is not None
    fields: dict[str, Any] = {
        "start": at.start,
        "stop": at.stop,
        "input_tokens": 10,
        "output_tokens": tokens,
        "client_account": ME,
        "worker_account": found.worker,
        "channel_epoch": found.epoch,
    }
    number = int.from_bytes(found.worker, "big")
    made = receipt(call=call, worker=number, **fields | changes)
    if "cumulative" not in changes:
        made = replace(made, cumulative=made.amount)
    return SignedReceipt(receipt=made, worker_signature=made.sign(identity(number)), client_signature=made.sign(CLIENT))


async def test_one_transaction_allocates_a_whole_chain(tmp_path: Path) -> None:
    settlement = funded()
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet)
        assert [kind for kind, _ in wallet.transactions] == ["register", "allocate"]
        for at in LEGS:
            state = settlement.channel(ME, at.candidate.signed.quote.account)
            assert state is not None
            assert (state.cap, state.spending_key) == (10_000, SPENDING.peer_id)
        await prepare(wallet, B)  # there is enough for this one too
        assert len(wallet.transactions) == 2


async def test_a_long_call_gets_what_it_needs_at_once(tmp_path: Path) -> None:
    settlement = funded()
    async with open_wallet(tmp_path, settlement, allocation=100) as (wallet, _):
        await prepare(wallet, tokens=1_000)
        costs = stage_costs(LEGS, prompt_tokens=10, max_tokens=1_000)
        states = [settlement.channel(ME, at.candidate.signed.quote.account) for at in LEGS]
        assert [state.cap for state in states if state is not None] == [cost.whole for cost in costs]


async def test_calls_at_once_each_have_room_to_their_end(tmp_path: Path) -> None:
    settlement = funded()
    async with open_wallet(tmp_path, settlement, allocation=1) as (wallet, _):
        calls = [CallId(bytes([n]) * 16) for n in range(4)]
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(prepare, wallet, call, LEGS, 300)
        quote = LEGS[0].candidate.signed.quote
        (cost, _) = stage_costs(LEGS, prompt_tokens=10, max_tokens=300)
        for tokens in (0, 100, 300):
            for call in calls:
                await wallet.voucher(quote, call, cost.ceiling(tokens), TERMS)  # raises when the cap is too low
        state = settlement.channel(ME, quote.account)
        assert state is not None
        assert state.cap == 4 * cost.whole
        for call in calls:
            for at in LEGS:
                await wallet.settle_call(at.candidate.signed.quote, call, None)


async def test_vouchers_are_on_disk_before_they_are_given(tmp_path: Path) -> None:
    settlement = funded()
    async with open_wallet(tmp_path, settlement) as (wallet, ledger):
        await prepare(wallet)
        quote = LEGS[0].candidate.signed.quote
        signed = await wallet.voucher(quote, A, 500, TERMS)
        assert signed is not None
        signed.verify(SPENDING.peer_id)
        assert ledger.issued(signed.voucher.channel) == signed
        assert signed.voucher.terms_hash == TERMS
        assert await wallet.voucher(quote, A, 500, TERMS) is None
        wallet.acknowledge(quote, 500)
        await wallet.settle_call(quote, A, billed(LEGS[0], settlement))
        assert await wallet.voucher(quote, B, 20, TERMS) == signed  # what is left of it pays this call


async def test_concurrent_vouchers_rise_and_cover_all_calls(tmp_path: Path) -> None:
    async with open_wallet(tmp_path, funded()) as (wallet, ledger):
        calls = [CallId(bytes([n]) * 16) for n in range(8)]
        for call in calls:
            await prepare(wallet, call)
        quote = LEGS[0].candidate.signed.quote
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(wallet.voucher, quote, call, 50, TERMS)
        (state,) = ledger.channels()
        assert state.issued is not None
        assert state.issued.voucher.cumulative == 400


async def test_a_restart_promises_nothing_twice(tmp_path: Path) -> None:
    settlement = funded()
    quote = LEGS[0].candidate.signed.quote
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet)
        await wallet.voucher(quote, A, 5_000, TERMS)
        await wallet.settle_call(quote, A, billed(LEGS[0], settlement))
        await prepare(wallet, B)
    async with open_wallet(tmp_path, settlement) as (wallet, ledger):
        await prepare(wallet, B)
        assert wallet.transactions == []
        signed = await wallet.voucher(quote, B, 200, TERMS)
        assert signed is not None
        # One unit more, since nobody knows whether the last one arrived: not another ceiling.
        assert (signed.voucher.cumulative, signed.voucher.nonce) == (5_001, 2)
        assert signed.voucher.receipts_root == ledger.receipts_root(signed.voucher.channel) != bytes(32)


async def test_no_funds_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    settlement = funded(15_000)
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        with pytest.raises(PaymentError, match="20000 allocated and the free balance is 15000; deposit more"):
            await prepare(wallet)
        assert settlement.account_state(ME).spending_key is None
        assert settlement.chain.transactions == 1  # the deposit
        await prepare(wallet, legs=(LEGS[0],))  # a shorter chain can be paid


async def test_a_channel_of_another_spending_key_is_refused(tmp_path: Path) -> None:
    settlement = funded()
    settlement.register_spending_key(identity(501).peer_id)
    settlement.allocate({LEGS[0].candidate.signed.quote.account: 10_000})
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        with pytest.raises(PaymentError, match="another spending key"):
            await prepare(wallet)


async def test_a_channel_that_is_being_closed_names_its_worker(tmp_path: Path) -> None:
    settlement = funded()
    quote = LEGS[1].candidate.signed.quote
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet)
    settlement.request_close(quote.account)
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        with pytest.raises(PaymentError, match="being closed; finalise") as caught:
            await prepare(wallet)
        assert caught.value.peer_id == quote.worker
        settlement.chain.advance(60)
        settlement.finalize_close(quote.account)
        await prepare(wallet)
        state = settlement.channel(ME, quote.account)
        assert state is not None
        assert state.epoch == 2


async def test_a_channel_that_the_worker_refused_is_read_again(tmp_path: Path) -> None:
    settlement = funded()
    quote = LEGS[0].candidate.signed.quote
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet)
        await wallet.voucher(quote, A, 100, TERMS)
        settlement.request_close(quote.account)  # by another tool
        settlement.chain.advance(60)
        settlement.finalize_close(quote.account)
        wallet.doubt(quote)
        await wallet.settle_call(quote, A, None)
        await prepare(wallet, B)
        signed = await wallet.voucher(quote, B, 100, TERMS)
        assert signed is not None
        assert (signed.voucher.channel.epoch, signed.voucher.cumulative) == (2, 100)


async def test_without_a_chain_only_free_workers_can_be_called(tmp_path: Path) -> None:
    free = replace(LEGS[0], candidate=replace(LEGS[0].candidate, signed=free_quote(1).sign(identity(1))))
    async with open_wallet(tmp_path, None) as (wallet, _):
        await prepare(wallet, legs=(free,))
        with pytest.raises(PaymentError, match="name a chain with --chain"):
            await prepare(wallet)
        with pytest.raises(PaymentError, match="no channel"):
            await wallet.voucher(LEGS[0].candidate.signed.quote, A, 1, TERMS)


async def test_a_worker_on_another_chain_is_named(tmp_path: Path) -> None:
    async with open_wallet(tmp_path, funded()) as (wallet, _):
        for changes in ({"chain_id": 5}, {"contract": Address(b"x" * 20)}):
            with pytest.raises(PaymentError, match="is paid on chain") as caught:
                await prepare(wallet, legs=(leg(1, **changes),))
            assert caught.value.peer_id == identity(1).peer_id


async def test_two_stages_of_one_account_are_refused(tmp_path: Path) -> None:
    same = Address(b"o" * 20)
    async with open_wallet(tmp_path, funded()) as (wallet, _):
        with pytest.raises(PaymentError, match="same account") as caught:
            await prepare(wallet, legs=(leg(1, 0, 3, account=same), leg(2, 3, 8, account=same)))
        assert caught.value.peer_id == identity(2).peer_id


async def test_a_settled_call_frees_its_ceiling_and_enters_the_next_vouchers_root(tmp_path: Path) -> None:
    settlement = funded()
    quote = LEGS[0].candidate.signed.quote
    async with open_wallet(tmp_path, settlement) as (wallet, ledger):
        await prepare(wallet)
        first = await wallet.voucher(quote, A, 9_000, TERMS)
        assert first is not None
        bill = billed(LEGS[0], settlement)
        wallet.check(bill.receipt, quote)
        await wallet.settle_call(quote, A, bill)
        assert ledger.earned(first.voucher.channel) == bill.receipt.amount
        await prepare(wallet, B)
        second = await wallet.voucher(quote, B, 9_000, TERMS)
        assert second is not None
        assert second.voucher.cumulative == 9_000 + bill.receipt.amount
        assert second.voucher.receipts_root == bill.receipt.leaf()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("channel", {"client_account": Address(b"x" * 20)}),
        ("channel", {"worker_account": Address(b"x" * 20)}),
        ("channel", {"channel_epoch": 2}),
        ("channel", {"client_account": NO_ACCOUNT, "worker_account": NO_ACCOUNT, "channel_epoch": 0}),
        ("cumulative", {"cumulative": 141}),
        ("cumulative", {"cumulative": 10**9}),
    ],
)
async def test_a_receipt_of_another_channel_or_sum_is_not_signed(
    tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    settlement = funded()
    quote = LEGS[0].candidate.signed.quote
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet)
        await wallet.voucher(quote, A, 9_000, TERMS)
        good: Receipt = billed(LEGS[0], settlement).receipt
        assert good.amount == 120
        wallet.check(good, quote)
        with pytest.raises(VerificationError, match=f"wrong {what}") as caught:
            wallet.check(billed(LEGS[0], settlement, **changes).receipt, quote)
        assert caught.value.peer_id == quote.worker


async def test_a_priced_call_that_cost_nothing_still_names_its_channel(tmp_path: Path) -> None:
    settlement = funded()
    outputs_only = leg(1, price=Price(per_1k_input=0, per_1k_output=5))
    async with open_wallet(tmp_path, settlement) as (wallet, _):
        await prepare(wallet, legs=(outputs_only,))
        bill = billed(outputs_only, settlement, tokens=0, price=Price(per_1k_input=0, per_1k_output=5))
        assert bill.receipt.amount == 0
        wallet.check(bill.receipt, outputs_only.candidate.signed.quote)


async def test_a_free_receipt_counts_nothing(tmp_path: Path) -> None:
    async with open_wallet(tmp_path, None) as (wallet, ledger):
        quote = free_quote(1)
        free = receipt(price=quote.price, input_tokens=3)
        wallet.check(free, quote)
        with pytest.raises(VerificationError, match="cumulative"):
            wallet.check(replace(free, cumulative=1), quote)
        signed = SignedReceipt(
            receipt=free, worker_signature=free.sign(identity(1)), client_signature=free.sign(CLIENT)
        )
        await wallet.settle_call(quote, A, signed)
        assert [call.call_id for call in ledger.calls()] == [A]


async def test_spending_keys_sign_vouchers_and_nothing_else(tmp_path: Path) -> None:
    async with open_wallet(tmp_path, funded()) as (wallet, _):
        await prepare(wallet)
        signed = await wallet.voucher(LEGS[0].candidate.signed.quote, A, 1, TERMS)
        assert signed is not None
        with pytest.raises(VerificationError):
            signed.verify(PeerId(CLIENT.peer_id))
