from __future__ import annotations

import pytest

from dht import allowance as module
from dht.allowance import PROVEN_BURST, PROVEN_FOR, UNPROVEN_BURST, UNPROVEN_RATE, Allowance
from dht.contacts import Endpoint

VICTIM = Endpoint("203.0.114.7", 1)
NEIGHBOUR = Endpoint("203.0.114.200", 9)
OTHER = Endpoint("203.0.115.7", 1)
SIZE = 1024


def drain(allowance: Allowance, endpoint: Endpoint, now: float) -> int:
    count = 0
    while allowance.spend(endpoint, SIZE, now) and count < 10_000:
        count += 1
    return count


def test_an_unproven_network_gets_its_burst_and_then_its_rate() -> None:
    allowance = Allowance()
    assert drain(allowance, VICTIM, 0.0) == UNPROVEN_BURST // SIZE
    assert drain(allowance, NEIGHBOUR, 0.0) == 0  # the same /24
    assert drain(allowance, OTHER, 0.0) == UNPROVEN_BURST // SIZE
    assert drain(allowance, VICTIM, 5.0) == 5 * UNPROVEN_RATE // SIZE
    assert drain(allowance, VICTIM, 3.0) == 0  # a clock that goes back gives nothing


def test_who_proved_itself_gets_much_more_for_a_while() -> None:
    allowance = Allowance()
    drain(allowance, VICTIM, 0.0)
    allowance.prove(VICTIM, 0.0)
    assert drain(allowance, VICTIM, 1.0) == PROVEN_BURST // SIZE
    assert drain(allowance, NEIGHBOUR, 1.0) == UNPROVEN_RATE // SIZE  # its neighbour proved nothing
    assert not allowance.is_proven(VICTIM, PROVEN_FOR)


def test_local_networks_are_not_bounded() -> None:
    assert drain(Allowance(), Endpoint("127.0.0.1", 1), 0.0) == 10_000


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PREFIXES", 2)
    monkeypatch.setattr(module, "MAX_PROVEN", 2)
    allowance = Allowance()
    for third in range(5):
        endpoint = Endpoint(f"203.0.{third}.1", 1)
        allowance.spend(endpoint, 1, 0.0)
        allowance.prove(endpoint, 0.0)
    assert len(allowance._buckets) == len(allowance._proven) == 2
