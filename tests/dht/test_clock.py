from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.clock import SteadyClock


@given(times=st.lists(st.floats(-1e6, 1e6)))
def test_it_never_goes_back_and_finds_the_owners_time_again(times: list[float]) -> None:
    clock = SteadyClock(0.0)
    latest = 0.0
    for time in times:
        steady = clock.read(time)
        assert steady >= latest
        assert abs(clock.owners(steady) - time) < 1e-6
        latest = steady


def test_after_a_step_back_time_goes_on() -> None:
    clock = SteadyClock(100.0)
    assert clock.read(110.0) == 110.0
    assert clock.read(10.0) == 110.0
    assert clock.read(15.0) == 115.0
    assert clock.owners(120.0) == 20.0
    assert clock.read(1000.0) == 1100.0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e4))
def test_a_deadline_has_come_when_the_owner_thinks_so(before: float, back_to: float, wait: float) -> None:
    clock = SteadyClock(before)
    deadline = clock.read(back_to) + wait
    assert clock.read(clock.owners(deadline)) >= deadline
