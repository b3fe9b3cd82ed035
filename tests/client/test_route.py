"""Which chain to build, against every chain there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import route
from client.route import LEAST_HOP, Candidate, Leg, plan_chain
from swarm.errors import MissingLayersError, PaymentError
from swarm.receipts import Price
from tests.client.quotes import candidate


def every_chain(candidates: Sequence[Candidate], layers: int, begin: int = 0) -> Iterator[tuple[Leg, ...]]:
    """All ways to cover the layers from ``begin`` on with one stage a worker: the specification."""
    if begin == layers:
        yield ()
        return
    for chosen in candidates:
        span = chosen.signed.quote
        if not span.start <= begin < span.stop:
            continue
        others = [c for c in candidates if c is not chosen]
        for stop in range(begin + 1, min(span.stop, layers) + 1):
            for rest in every_chain(others, layers, stop):
                yield (Leg(candidate=chosen, start=begin, stop=stop), *rest)


def seconds(legs: Sequence[Leg]) -> float:
    """Per token."""
    return sum(leg.candidate.seconds(leg.stop - leg.start) for leg in legs)


def price(legs: Sequence[Leg]) -> int:
    """Per thousand tokens in and out."""
    return sum(leg.candidate.price(leg.stop - leg.start) for leg in legs)


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[Candidate], int]:
    """A few workers with any spans, rates, prices and distances."""
    layers = draw(st.integers(1, 6))
    found = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        start = draw(st.integers(0, layers - 1))
        found.append(
            candidate(
                number,
                start,
                draw(st.integers(start + 1, layers)),
                rtt=draw(st.sampled_from([0.0, 0.002, 0.1])),
                decode_rate=draw(st.sampled_from([0, 1_000, 20_000, 100_000, 100_000_000])),
                price=Price(per_1k_input=draw(st.integers(0, 3)), per_1k_output=draw(st.integers(0, 3))),
            )
        )
    return found, layers


@settings(deadline=None)  # a loaded machine is no failure
@given(swarms())
def test_the_plan_is_the_best_of_all_chains(swarm: tuple[list[Candidate], int]) -> None:
    candidates, layers = swarm
    every = list(every_chain(candidates, layers))
    if not every:
        with pytest.raises(MissingLayersError):
            plan_chain(candidates, layers)
        return
    legs = plan_chain(candidates, layers)
    assert [legs[0].start, *(leg.stop for leg in legs)] == [*(leg.start for leg in legs), layers]
    assert legs[0].start == 0
    assert len({leg.candidate.worker for leg in legs}) == len(legs)
    for leg in legs:
        span = leg.candidate.signed.quote
        assert span.start <= leg.start < leg.stop <= span.stop
    assert seconds(legs) == pytest.approx(min(map(seconds, every)), rel=1e-9)


def test_a_worker_that_a_shortest_path_would_use_twice() -> None:
    slow = candidate(1, 0, 6, decode_rate=1_000, rtt=0.0)
    fast = candidate(2, 2, 4, decode_rate=1_000_000, rtt=0.0)
    other = candidate(3, 4, 6, decode_rate=2_900, rtt=0.0)
    legs = plan_chain([slow, fast, other], 6)
    assert [(leg.candidate, leg.start, leg.stop) for leg in legs] == [(slow, 0, 2), (fast, 2, 4), (other, 4, 6)]
    assert [leg.candidate for leg in plan_chain([slow, fast], 6)] == [slow]


def test_a_search_that_takes_too_long_ends_with_a_chain_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MAX_BRANCHES", -1)
    slow = candidate(1, 0, 6, decode_rate=1_000, rtt=0.0)
    fast = candidate(2, 2, 4, decode_rate=1_000_000, rtt=0.0)
    legs = plan_chain([slow, fast], 6)
    assert [(leg.candidate, leg.start, leg.stop) for leg in legs] == [(slow, 0, 6)]


def test_fewer_stages_win_where_hops_cost() -> None:
    near = [candidate(1, 0, 8), candidate(2, 0, 4, rtt=0.01), candidate(3, 4, 8, rtt=0.01)]
    assert len(plan_chain(near, 8)) == 1


def test_among_equals_the_cheaper() -> None:
    dear = candidate(1, 0, 8, price=Price(per_1k_input=2, per_1k_output=0))
    cheap = candidate(2, 0, 8, price=Price(per_1k_input=1, per_1k_output=0))
    for candidates in ([dear, cheap], [cheap, dear]):
        assert [leg.candidate for leg in plan_chain(candidates, 8)] == [cheap]


def test_missing_layers_are_named() -> None:
    with pytest.raises(MissingLayersError, match="layer 3 of 8") as caught:
        plan_chain([candidate(1, 0, 3), candidate(2, 4, 8)], 8)
    assert caught.value.layers == (3,)
    with pytest.raises(MissingLayersError, match=r"layers 0.*1, 7 of 8") as caught:
        plan_chain([candidate(1, 2, 7)], 8)
    assert caught.value.layers == (0, 1, 7)
    with pytest.raises(MissingLayersError):
        plan_chain([], 2)


def test_a_price_cap_leaves_the_dear_out_and_says_so() -> None:
    cheap = candidate(1, 0, 8, price=Price(per_1k_input=1, per_1k_output=1), decode_rate=1_000)
    dear = candidate(2, 0, 8, price=Price(per_1k_input=5, per_1k_output=5))
    assert [leg.candidate for leg in plan_chain([cheap, dear], 8, most_price=2)] == [cheap]
    assert [leg.candidate for leg in plan_chain([cheap, dear], 8)] == [dear]
    with pytest.raises(PaymentError, match="at most 1 "):
        plan_chain([cheap, dear], 8, most_price=1)
    with pytest.raises(MissingLayersError):  # nobody at any price
        plan_chain([cheap, dear], 9, most_price=1)


def test_a_worker_that_answered_twice_counts_once() -> None:
    twice = [candidate(1, 0, 4), candidate(1, 4, 8)]
    with pytest.raises(MissingLayersError):
        plan_chain(twice[:1], 8)
    legs = plan_chain([candidate(1, 0, 8), candidate(1, 0, 8, rtt=0.5)], 8)
    assert len(legs) == 1


def test_what_a_worker_does_not_say_is_slow_and_a_hop_is_never_free() -> None:
    silent = candidate(1, 0, 8, decode_rate=0, rtt=0.0)
    assert silent.seconds(8) == pytest.approx(1.0 + LEAST_HOP)


def test_a_big_swarm_is_planned() -> None:
    many = [candidate(n, (n * 7) % 57, (n * 7) % 57 + 8, decode_rate=1_000 * n) for n in range(1, 200)]
    legs = plan_chain(many, 64)
    assert legs[-1].stop == 64
