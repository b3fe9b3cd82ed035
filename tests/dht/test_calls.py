from __future__ import annotations

from collections import deque

import pytest

from dht import calls as module
from dht.calls import FIRST_TIMEOUT, MAX_TIMEOUT, MIN_TIMEOUT, SILENT_FOR, Calls, RoundTrips, percentile_95
from dht.contacts import Endpoint
from dht.queries import Ping

HERE = Endpoint("10.0.0.1", 1)
THERE = Endpoint("10.0.0.2", 1)


def test_percentile() -> None:
    assert percentile_95(deque([3.0])) == 3.0
    assert percentile_95(deque(float(n) for n in range(1, 101))) == 95.0
    assert percentile_95(deque(float(n) for n in range(1, 17))) == 16.0


def test_timeouts_follow_the_peer_then_everybody_then_the_default() -> None:
    trips = RoundTrips()
    assert trips.timeout(HERE) == FIRST_TIMEOUT
    trips.add(THERE, 0.2)
    assert trips.timeout(THERE) == trips.timeout(HERE) == 0.4
    trips.add(HERE, 0.001)
    assert trips.timeout(HERE) == MIN_TIMEOUT
    trips.add(HERE, 60.0)
    assert trips.timeout(HERE) == MAX_TIMEOUT


def test_round_trips_are_remembered_of_the_latest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS_MEASURED", 1)
    trips = RoundTrips()
    trips.add(HERE, 0.5)
    for _ in range(module.SAMPLES_OVERALL):
        trips.add(THERE, 0.1)
    assert trips.timeout(HERE) == 0.2  # forgotten, so it is taken for like the others


def test_waits_widen_and_any_answer_ends_the_call() -> None:
    calls = Calls()
    call = calls.open(HERE, Ping(), None)
    calls.sent(call, b"1", 0.0)
    assert calls.next_deadline() == 0.5
    assert calls.due(0.4) == []
    assert calls.due(0.5) == [call]
    calls.sent(call, b"2", 0.5)
    assert calls.next_deadline() == 1.25
    assert len(calls) == 1
    assert calls.knows(b"1")
    assert calls.answered(b"1", THERE, 0.6) is None  # not from where it was sent
    assert calls.answered(b"1", HERE, 0.6) is call
    assert calls.answered(b"2", HERE, 0.7) is None  # answered already
    assert calls.next_deadline() is None
    assert len(calls) == 0


def test_the_round_trip_is_that_of_the_transmission_that_was_answered() -> None:
    calls = Calls()
    call = calls.open(HERE, Ping(), None)
    calls.sent(call, b"1", 0.0)
    calls.sent(call, b"2", 0.5)
    calls.answered(b"2", HERE, 0.6)
    assert calls.round_trips.timeout(HERE) == pytest.approx(0.2)


def test_a_closed_call_is_never_due() -> None:
    calls = Calls()
    call = calls.open(HERE, Ping(), None)
    calls.sent(call, b"1", 0.0)
    calls.close(call)
    assert calls.due(10.0) == []
    assert calls.next_deadline() is None


def test_suspects_are_forgotten_after_a_while_or_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    calls.suspect(HERE, 0.0)
    calls.suspect(THERE, 1.0)
    assert calls.silent(2.0) == {HERE, THERE}
    calls.heard(THERE)
    assert calls.silent(2.0) == {HERE}
    assert calls.silent(SILENT_FOR) == frozenset()
    monkeypatch.setattr(module, "MAX_SILENT", 1)
    calls.suspect(HERE, 0.0)
    calls.suspect(THERE, 0.0)
    assert calls.silent(1.0) == {THERE}
