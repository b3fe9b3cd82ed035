"""What a stage's receipt must say, and how receipts fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from client.bill import Due, affordable_tokens, billable, check_receipt, compare_roots, known_fields, stage_costs
from client.budget import StageCost
from swarm.errors import VerificationError
from swarm.ids import Address, CallId, ManifestId, PeerId, SessionId
from swarm.merkle import ChainedRoot
from swarm.messages import PREFILL_CHUNK, OpenSession, StageRef, pack_ids
from swarm.receipts import WINDOW_TOKENS, Price
from swarm.records import CLOCK_TOLERANCE
from tests.client.quotes import MANIFEST, NOW, PRICE, identity, leg
from tests.client.receipts import CALL, CLIENT, receipt

COST = StageCost(price=PRICE, layers=4, prompt_tokens=10, max_tokens=100)
OPENING = OpenSession(
    session_id=SessionId(b"s" * 16),
    call_id=CALL,
    manifest_id=MANIFEST,
    chain=(StageRef(identity(1).peer_id, "127.0.0.1", 1, 0, 4), StageRef(identity(2).peer_id, "127.0.0.1", 2, 4, 8)),
    index=0,
    chain_epoch=0,
    prompt_tokens=10,
    max_tokens=100,
    request_hash=b"r" * 32,
    quote=b"",
    quote_signature=bytes(64),
)
DUE = Due(
    fields=known_fields(OPENING, client=CLIENT.peer_id, price=PRICE),
    cost=COST,
    tokens=50,
    began_ms=NOW * 1000,
    now_ms=NOW * 1000 + 5_000,
)
GOOD: dict[str, Any] = {"layers": 4, "input_tokens": 10, "output_tokens": 50}
TOLERANCE = CLOCK_TOLERANCE * 1000


def test_a_receipt_that_says_what_it_should() -> None:
    check_receipt(receipt(**GOOD), DUE)
    check_receipt(receipt(**GOOD | {"output_tokens": 3}), DUE)  # the worker's loss
    check_receipt(receipt(**GOOD | {"input_tokens": 4, "output_tokens": 0}), DUE)  # stopped in the prompt


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("manifest_id", {"manifest_id": ManifestId(b"x" * 32)}),
        ("client", {"client": PeerId(b"x" * 32)}),
        ("worker", {"worker": 2}),
        ("session_id", {"session_id": SessionId(b"x" * 16)}),
        ("call_id", {"call": CallId(b"x" * 16)}),
        ("chain_epoch", {"chain_epoch": 1}),
        ("start", {"start": 1}),
        ("stop", {"layers": 5}),
        ("request_hash", {"request_hash": b"x" * 32}),
        ("fingerprint_root", {"fingerprint_root": b"x" * 32}),
        ("price", {"price": Price(per_1k_input=1_000, per_1k_output=3_001)}),
        ("rebuilt_tokens", {"rebuilt_tokens": 1}),
        ("input_tokens", {"input_tokens": 0}),
        ("input_tokens", {"input_tokens": 11}),
        ("input_tokens", {"input_tokens": 9}),  # tokens before the prompt was through
        ("output_tokens", {"output_tokens": 51}),
        ("output_tokens", {"output_tokens": 101}),
        ("started_ms", {"started_ms": NOW * 1000 - TOLERANCE - 1}),
        ("started_ms", {"started_ms": NOW * 1000 + 1}),  # after it finished
        ("finished_ms", {"finished_ms": NOW * 1000 + 5_000 + TOLERANCE + 1}),
    ],
)
def test_each_wrong_field_is_named_with_its_worker(name: str, changes: dict[str, Any]) -> None:
    wrong = receipt(**GOOD | changes)
    with pytest.raises(VerificationError, match=f"wrong {name};") as caught:
        check_receipt(wrong, DUE)
    assert caught.value.peer_id == wrong.worker


def test_a_price_below_a_unit_a_token_is_compared_as_money() -> None:
    cheap = Price(per_1k_input=1, per_1k_output=1)
    due = replace(DUE, fields={**DUE.fields, "price": cheap}, cost=replace(COST, price=cheap), tokens=1)
    check_receipt(receipt(**GOOD | {"price": cheap, "output_tokens": 100}), due)


@pytest.mark.parametrize(
    ("accepted", "received", "most"),
    [(50, 50, 50), (0, 0, 1), (10, 50, 10), (10, 100, 101 - WINDOW_TOKENS), (1, 64, 1), (1, 65, 2)],
)
def test_what_may_be_billed(accepted: int, received: int, most: int) -> None:
    assert billable(accepted=accepted, received=received) == most


def test_costs_of_a_chain_and_what_a_budget_buys() -> None:
    costs = stage_costs([leg(1, 0, 3), leg(2, 3, 8)], prompt_tokens=10, max_tokens=100)
    assert [cost.layers for cost in costs] == [3, 5]
    whole = sum(cost.whole for cost in costs)
    assert affordable_tokens(costs, 100, None) == 100
    assert affordable_tokens(costs, 100, whole) == 100
    assert affordable_tokens(costs, 100, whole - 1) == 99
    assert affordable_tokens(costs, 100, sum(cost.after(1) for cost in costs)) == 1
    assert affordable_tokens(costs, 100, sum(cost.after(1) for cost in costs) - 1) == 0


def roots(prompt: list[int], tokens: list[int]) -> list[Any]:
    """Receipts of two honest stages of a whole call."""
    given, between, drawn = ChainedRoot(), ChainedRoot(), ChainedRoot()
    for start in range(0, len(prompt), PREFILL_CHUNK):
        part = prompt[start : start + PREFILL_CHUNK]
        given.append(pack_ids(part), tokens=len(part))
        between.append(bytes(len(part)), tokens=len(part))
    for token in tokens[:-1]:
        given.append(pack_ids([token]), tokens=1)
        between.append(b"h", tokens=1)
    for token in tokens:
        drawn.append(pack_ids([token]), tokens=1)
    return [
        receipt(worker=1, input_root=given.value(), output_root=between.value()),
        receipt(worker=2, input_root=between.value(), output_root=drawn.value()),
    ]


@pytest.mark.parametrize("prompt", [1, 512, 513, 1100])
@pytest.mark.parametrize("tokens", [1, 2, 33, 70])
def test_roots_of_a_whole_call_meet(prompt: int, tokens: int) -> None:
    ids, drawn = list(range(prompt)), list(range(tokens))
    compare_roots(ids, drawn, roots(ids, drawn))


@pytest.mark.parametrize(
    ("stage", "field", "culprit"),
    [(0, "input_root", 1), (0, "output_root", 2), (1, "input_root", 2), (1, "output_root", 2)],
)
def test_roots_that_do_not_meet_name_the_stage(stage: int, field: str, culprit: int) -> None:
    found = roots([1, 2, 3], [4, 5])
    found[stage] = replace(found[stage], **{field: b"x" * 32})
    with pytest.raises(VerificationError, match="does not match") as caught:
        compare_roots([1, 2, 3], [4, 5], found)
    assert caught.value.peer_id == identity(culprit).peer_id


def test_other_tokens_than_were_sent_do_not_match() -> None:
    with pytest.raises(VerificationError):
        compare_roots([1, 2, 3], [4, 6], roots([1, 2, 3], [4, 5]))
    with pytest.raises(VerificationError):
        compare_roots([1, 2, 4], [4, 5], roots([1, 2, 3], [4, 5]))


def test_an_account_is_not_among_what_the_bill_checks() -> None:
    # The wallet knows the channel: tests/client/test_wallet.py.
    check_receipt(receipt(**GOOD | {"worker_account": Address(b"x" * 20)}), DUE)
