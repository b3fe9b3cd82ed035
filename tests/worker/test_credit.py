"""The worker's side of prepayment."""

from __future__ import annotations

import pytest

from swarm.errors import PaymentError
from swarm.ids import SessionId
from swarm.receipts import UINT128_MAX
from tests.worker.sessions import account_of
from worker.credit import Account

A, B = SessionId(b"a" * 16), SessionId(b"b" * 16)


def test_credit_is_what_is_promised_less_what_is_earned_and_accrued() -> None:
    account = account_of(promised=100)
    account.earned = 20
    account.open(A)
    account.open(B)
    assert account.spend(A, 30)
    assert account.spend(B, 10)
    assert account.credit == 40


def test_spending_stops_exactly_at_the_promise() -> None:
    account = account_of(promised=100)
    account.open(A)
    assert account.spend(A, 100)
    assert not account.spend(A, 101)
    assert account.accrued[A] == 100
    assert account.required(A, 101) == 101
    assert account.required(A, 100) == 0
    account.promise(101)
    assert account.spend(A, 101)


def test_a_cost_that_was_spent_is_not_spent_again() -> None:
    account = account_of(promised=50)
    account.open(A)
    assert account.spend(A, 50)
    assert account.spend(A, 10)  # a rewind
    assert account.accrued[A] == 50


def test_the_cap_bounds_a_promise_and_what_it_is_worth() -> None:
    account = account_of(promised=10, cap=10)
    with pytest.raises(PaymentError, match="holds 10"):
        account.promise(11)
    assert account.promised == 10
    account.cap = 5  # the chain says so
    assert account.credit == 5


def test_the_highest_promise_counts_in_whatever_order() -> None:
    account = account_of(promised=70)
    account.promise(40)
    assert account.promised == 70


def test_closing_earns_the_amount_and_frees_the_rest() -> None:
    account = account_of(promised=100)
    account.open(A)
    account.open(B)
    account.spend(A, 60)
    assert not account.spend(B, 50)
    assert account.close(A, 45) == 45
    assert account.spend(B, 50)
    assert account.close(B, 50) == 95
    assert not account.accrued


def test_a_call_never_costs_more_than_it_accrued() -> None:
    account = account_of(promised=100)
    account.open(A)
    account.spend(A, 10)
    with pytest.raises(ValueError, match="cannot cost 11"):
        account.close(A, 11)
    assert account.accrued == {A: 10}


def test_a_session_is_opened_once() -> None:
    account = account_of(promised=100)
    account.open(A)
    account.spend(A, 10)
    with pytest.raises(PaymentError, match="already"):
        account.open(A)
    assert account.accrued == {A: 10}


def test_serving_for_nothing_has_credit_without_end() -> None:
    account = Account(None)
    account.open(A)
    assert account.credit == UINT128_MAX
    assert account.spend(A, 0)
    assert account.required(A, 0) == 0
    assert account.close(A, 0) == 0
