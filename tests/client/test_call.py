"""The real client against workers that break the rules: the right peer is named, nothing hangs, no money is stuck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from client import call as call_module
from client.call import Call, open_call
from swarm.errors import (
    BusyError,
    ClosedError,
    PaymentError,
    ProtocolError,
    SwarmError,
    UnreachableError,
    VerificationError,
)
from swarm.ids import Address, CallId, ManifestId, PeerId, SessionId
from swarm.messages import (
    Begin,
    CreditAck,
    Message,
    NeedCredit,
    ReceiptOffer,
    SessionClosed,
    Tokens,
)
from swarm.receipts import WINDOW_TOKENS, Price, Receipt
from tests.client.rogues import RogueSwarm, open_rogues, rebilled
from tests.worker.sessions import draw

FREE = Price(per_1k_input=0, per_1k_output=0)


async def run(swarm: RogueSwarm, call: Call | None = None) -> tuple[list[int], Call]:
    """A call to its end."""
    tokens: list[int] = []
    with trio.fail_after(30):
        async with open_call(call or swarm.call()) as opened:
            async for message in opened:
                tokens.extend(message.ids)
            await opened.finish()
    return tokens, opened


async def failing(
    swarm: RogueSwarm, kind: type[SwarmError], culprit: int | None, call: Call | None = None
) -> SwarmError:
    """Run a call that fails by this stage's fault, and see that nothing of it is left."""
    with pytest.raises(kind) as caught:
        await run(swarm, call)
    assert type(caught.value) is kind
    named = None if culprit is None else swarm.rogues.identities[culprit].peer_id
    assert caught.value.peer_id == named
    assert swarm.nothing_is_promised()
    return caught.value


@pytest.mark.parametrize("stages", [1, 2, 3])
async def test_rogues_that_keep_the_rules_serve_calls(tmp_path: Path, stages: int) -> None:
    async with open_rogues(tmp_path, stages) as swarm:
        tokens, call = await run(swarm, swarm.call(tokens=WINDOW_TOKENS * 3, prompt=700))
        assert tokens == [draw(700 + at) for at in range(WINDOW_TOKENS * 3)]
        assert all(stage.receipt is not None for stage in call.stages)
        assert swarm.nothing_is_promised()
        assert sorted(swarm.rogues.closed) == [(index, len(tokens)) for index in range(stages)]
        for index in range(stages):
            assert swarm.ledger.earned(swarm.channel(index)) == call._costs[index].whole


# ---- tokens ----------------------------------------------------------------------------------------------------------

Say = Callable[[Tokens], Sequence[tuple[int, Message]]]


def moved(tokens: Tokens, **changes: Any) -> Tokens:
    fields: dict[str, Any] = {"chain_epoch": 0, "position": tokens.position, "ids": tokens.ids, "finish": tokens.finish}
    return Tokens(**fields | changes)


SAYINGS: list[tuple[str, Say, int]] = [
    ("ahead", lambda t: [(1, moved(t, position=t.position + 1))], 1),
    ("again", lambda t: [(1, t), (1, t)], 1),
    ("of another epoch", lambda t: [(1, moved(t, chain_epoch=1))], 1),
    ("none", lambda t: [(1, moved(t, ids=()))], 1),
    ("too many", lambda t: [(1, moved(t, ids=(1,) * 7))], 1),
    ("an early end", lambda t: [(1, moved(t, finish="length"))], 1),
    ("a stop that was not asked for", lambda t: [(1, moved(t, finish="stop"))], 1),
    ("no end", lambda t: [(1, moved(t, finish=""))], 1),
    ("log-probabilities", lambda t: [(1, Tokens(0, t.position, t.ids, t.finish, ((0.0, ()),)))], 1),
    ("by another stage", lambda t: [(0, t)], 0),
    ("a message of the client's", lambda t: [(1, Begin(0, 0))], 1),
    ("a need that is no number", lambda t: [(0, NeedCredit("-1"))], 0),
    ("an acknowledgement that is no number", lambda t: [(0, CreditAck("many"))], 0),
    ("an early goodbye", lambda t: [(0, SessionClosed())], 0),
    ("no receipt", lambda t: [(0, ReceiptOffer(b"x" * 388, bytes(64)))], 0),
]


@pytest.mark.parametrize(("say", "culprit"), [each[1:] for each in SAYINGS], ids=[each[0] for each in SAYINGS])
async def test_what_stages_say_out_of_turn(tmp_path: Path, say: Say, culprit: int) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.say = say
        await failing(swarm, ProtocolError, culprit)
        assert {index for index, _ in swarm.rogues.closed} >= {1 - culprit}


async def test_tokens_after_a_failure_are_no_accident(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.say = lambda t: [(0, SessionClosed()), (1, t)]
        await failing(swarm, ProtocolError, 0)


# ---- receipts --------------------------------------------------------------------------------------------------------

WRONG_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("manifest_id", {"manifest_id": ManifestId(b"x" * 32)}),
    ("client", {"client": PeerId(b"x" * 32)}),
    ("session_id", {"session_id": SessionId(b"x" * 16)}),
    ("call_id", {"call_id": CallId(b"x" * 16)}),
    ("chain_epoch", {"chain_epoch": 1}),
    ("start", {"start": 3}),
    ("stop", {"stop": 9}),
    ("request_hash", {"request_hash": b"x" * 32}),
    ("fingerprint_root", {"fingerprint_root": b"x" * 32}),
    ("input_tokens", {"input_tokens": 4}),
    ("output_tokens", {"output_tokens": 7}),
    ("rebuilt_tokens", {"rebuilt_tokens": 1}),
    ("price", {"price": Price(per_1k_input=1_000, per_1k_output=9_000)}),
    ("cumulative", {"cumulative": 10**9}),
    ("channel", {"client_account": Address(b"x" * 20)}),
    ("channel", {"worker_account": Address(b"x" * 20)}),
    ("channel", {"channel_epoch": 2}),
    ("started_ms", {"started_ms": 0}),
    ("finished_ms", {"finished_ms": 2**50}),
    ("does not match", {"input_root": b"x" * 32}),
    ("does not match", {"output_root": b"x" * 32}),
]


@pytest.mark.parametrize(("what", "changes"), WRONG_FIELDS, ids=[next(iter(each[1])) for each in WRONG_FIELDS])
async def test_each_wrong_field_of_a_receipt(tmp_path: Path, what: str, changes: dict[str, Any]) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.bill = lambda index, receipt: rebilled(receipt, **changes) if index == 1 else receipt
        error = await failing(swarm, VerificationError, 1)
        assert what in error.message
        if what != "does not match":
            assert swarm.ledger.receipts(swarm.channel(1)) == []  # not signed
            assert 1 not in swarm.rogues.acks
        assert len(swarm.ledger.receipts(swarm.channel(0))) == 1  # the other is paid for what it did


async def test_a_receipt_for_another_worker(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        other = swarm.rogues.identities[0]
        swarm.rogues.bill = lambda index, receipt: replace(receipt, worker=other.peer_id) if index else receipt
        error = await failing(swarm, VerificationError, 0)  # it is the other that would be billed
        assert "wrong worker" in error.message


async def test_a_receipt_that_another_signed(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.sign = lambda _index, receipt: receipt.sign(swarm.rogues.identities[0])
        await failing(swarm, VerificationError, 1)


async def test_roots_that_do_not_meet_name_the_later_stage(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 3) as swarm:
        swarm.rogues.bill = lambda index, receipt: replace(receipt, output_root=b"x" * 32) if index == 1 else receipt
        error = await failing(swarm, VerificationError, 2)
        assert swarm.rogues.identities[1].peer_id.short in error.message  # and whom it contradicts


@pytest.mark.parametrize("index", [0, 1])
async def test_no_receipt_at_all(tmp_path: Path, index: int) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.bill = lambda at, receipt: None if at == index else receipt
        error = await failing(swarm, VerificationError, index)
        assert "no receipt" in error.message
        assert len(swarm.ledger.receipts(swarm.channel(1 - index))) == 1


async def test_a_second_receipt_is_refused(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 1) as swarm:
        rogues = swarm.rogues

        def twice(index: int, receipt: Receipt) -> Receipt:
            offer = ReceiptOffer(receipt.pack(), receipt.sign(rogues.identities[index]))
            rogues.streams[index].peer._send(rogues.streams[index].id, offer, b"", fin=False, urgent=True)
            return receipt

        rogues.bill = twice
        _, call = await run(swarm)  # the first one stands
        assert call.stages[0].receipt is not None
        assert len(swarm.ledger.receipts(swarm.channel(0))) == 1


# ---- silence ---------------------------------------------------------------------------------------------------------


async def test_silence_at_the_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "OPEN_TIMEOUT", 2.0)
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.silent = {(1, "open")}
        await failing(swarm, UnreachableError, 1)
        assert swarm.rogues.closed == [(0, 0)]


@pytest.mark.parametrize("stages", [1, 2])
async def test_silence_instead_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: int) -> None:
    monkeypatch.setattr(call_module, "TOKEN_TIMEOUT", 0.2)
    async with open_rogues(tmp_path, stages) as swarm:
        swarm.rogues.silent = {(0, "begin")}
        await failing(swarm, UnreachableError, 0 if stages == 1 else None)
        assert sorted(swarm.rogues.closed) == [(index, 0) for index in range(stages)]


async def test_silence_at_the_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "CLOSE_TIMEOUT", 3.0)
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.silent = {(1, "close")}
        await failing(swarm, UnreachableError, 1)
        assert len(swarm.ledger.receipts(swarm.channel(0))) == 1


async def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        first, second = swarm.legs
        gone = replace(second, candidate=replace(second.candidate, port=1))
        swarm.legs = (first, gone)
        await failing(swarm, UnreachableError, 1)


async def test_a_worker_with_another_key(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        first, second = swarm.legs
        swarm.legs = (first, replace(second, candidate=replace(second.candidate, port=first.candidate.port)))
        error = await failing(swarm, VerificationError, 0)
        assert "another key" in error.message


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [BusyError("full", retry_after=1.0), PaymentError("no"), ProtocolError("no"), UnreachableError("no")],
    ids=lambda error: type(error).__name__,
)
async def test_a_stage_that_is_refused_closes_the_others_at_once(tmp_path: Path, error: SwarmError) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        opened = trio.Event()

        def answer(index: int, _: object) -> SwarmError | None:
            if index == 0:
                opened.set()
            return error if index == 1 else None

        swarm.rogues.answer = answer
        await failing(swarm, type(error), 1)
        assert all(tokens == 0 for _, tokens in swarm.rogues.closed)
        assert swarm.ledger.calls() == []


async def test_a_failure_names_its_culprit_and_everybody_is_paid_for_what_was_done(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 3) as swarm:
        culprit = swarm.rogues.identities[2].peer_id
        told: list[int] = []

        def at_begin(index: int) -> SwarmError | None:
            if index == 1 and not told:
                told.append(index)
                return UnreachableError("the next stage is gone", peer_id=culprit)
            return None

        swarm.rogues.at_begin = at_begin
        call = swarm.call(tokens=WINDOW_TOKENS * 3)  # it stops for credit on the way
        error = await failing(swarm, UnreachableError, 2, call)
        assert error.call_id == call.call_id
        for index in range(3):
            (stored,) = swarm.ledger.receipts(swarm.channel(index))
            assert 1 <= stored.receipt.output_tokens <= WINDOW_TOKENS + 1
            assert swarm.rogues.acks[index] == stored.client_signature


async def test_a_failed_stage_bills_at_most_a_window_more_than_came(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.say = lambda t: [(1, t)] if t.position == 3 else []
        told: list[int] = []

        def at_begin(index: int) -> SwarmError | None:
            if index == 0 and not told:
                told.append(index)
                return ProtocolError("nonsense")
            return None

        swarm.rogues.at_begin = at_begin
        swarm.rogues.bill = lambda index, receipt: (
            rebilled(receipt, output_tokens=WINDOW_TOKENS + 20, cumulative=receipt.cumulative + 1_000)
            if index == 0
            else receipt
        )
        await failing(swarm, VerificationError, 0, swarm.call(tokens=WINDOW_TOKENS * 3))
        assert swarm.ledger.receipts(swarm.channel(0)) == []


# ---- the client's own ways out ---------------------------------------------------------------------------------------


async def test_leaving_in_the_middle_pays_for_what_was_accepted(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        async with open_call(swarm.call(tokens=500)) as call:
            await anext(call)
        assert swarm.nothing_is_promised()
        for index in range(2):
            (stored,) = swarm.ledger.receipts(swarm.channel(index))
            assert 1 <= stored.receipt.output_tokens <= len(call.received)


async def test_a_call_that_is_cancelled_while_it_finishes_keeps_no_money(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        swarm.rogues.silent = {(1, "close")}
        with trio.CancelScope() as scope:
            async with open_call(swarm.call()) as call:
                async for _ in call:
                    pass
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call.finish)
                    while not swarm.rogues.closed:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert scope.cancelled_caught
        assert swarm.nothing_is_promised()


async def test_a_lost_receipt_does_not_stop_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "CLOSE_TIMEOUT", 0.3)
    async with open_rogues(tmp_path, 1) as swarm:
        swarm.rogues.silent = {(0, "close")}
        await failing(swarm, UnreachableError, 0, swarm.call(tokens=60))
        (account,) = swarm.rogues.accounts.values()
        assert account.credit == 0  # the worker has counted it all
        swarm.rogues.silent = set()
        monkeypatch.setattr(call_module, "CLOSE_TIMEOUT", 10.0)
        tokens, _ = await run(swarm, swarm.call(tokens=200))
        assert len(tokens) == 200
        (budget,) = swarm.wallet._budgets.values()
        assert (budget.doubtful, budget.conceded) == (0, 0)


async def test_max_spend_is_met_before_it_is_passed(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        call = swarm.call(tokens=100, max_spend=1_000)
        tokens, _ = await run(swarm, call)
        assert len(tokens) == call.request.max_tokens < 100
        assert sum(cost.whole for cost in call._costs) <= 1_000
        with pytest.raises(PaymentError, match="max_spend 1"):
            swarm.call(max_spend=1)


async def test_free_workers_need_no_money(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2, price=FREE) as swarm:
        tokens, call = await run(swarm, swarm.call(tokens=WINDOW_TOKENS * 2))
        assert len(tokens) == WINDOW_TOKENS * 2
        assert swarm.wallet.transactions == []
        assert len(swarm.ledger.calls()) == 1
        assert call.stages[0].receipt is not None


async def test_an_error_in_the_callers_block_comes_out_as_itself(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 1) as swarm:
        with pytest.raises(ZeroDivisionError):
            async with open_call(swarm.call()):
                raise ZeroDivisionError
        assert swarm.nothing_is_promised()


async def test_a_stage_that_hangs_up_is_named(tmp_path: Path) -> None:
    async with open_rogues(tmp_path, 2) as swarm:
        rogues = swarm.rogues

        def say(tokens: Tokens) -> Sequence[tuple[int, Message]]:
            rogues.streams[0].reset("enough")
            return []

        rogues.say = say
        await failing(swarm, ClosedError, 0)
