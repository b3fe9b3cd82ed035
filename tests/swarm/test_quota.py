from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import quota
from swarm.errors import UsageError
from swarm.quota import FreeQuota, Grant, QuotaConfig, Refill, prefix_of

CONFIG = QuotaConfig(
    identity=Refill(capacity=10, seconds=100),
    prefix=Refill(capacity=30, seconds=100),
    whole=Refill(capacity=50, seconds=50),
)


def test_an_identity_has_its_bucket_which_time_fills() -> None:
    free = FreeQuota(CONFIG, 0)
    assert free.take(b"a", "192.0.2.1", 4, 0) == Grant(tokens=4, retry_after=0)
    assert free.take(b"a", "192.0.2.1", 100, 0).tokens == 6
    assert free.take(b"a", "192.0.2.1", 1, 0) == Grant(tokens=0, retry_after=10)
    assert free.take(b"a", "192.0.2.1", 1, 4).retry_after == pytest.approx(6)
    assert free.take(b"a", "192.0.2.1", 9, 35).tokens == 3
    assert free.take(b"a", "192.0.2.1", 99, 10_000).tokens == 10


def test_more_keys_do_not_get_more_than_their_network_has() -> None:
    free = FreeQuota(CONFIG, 0)
    assert sum(free.take(bytes([n]), f"192.0.2.{n}", 10, 0).tokens for n in range(10)) == 30
    assert free.take(b"other", "198.51.100.1", 10, 0).tokens == 10


def test_all_networks_together_have_the_whole() -> None:
    free = FreeQuota(CONFIG, 0)
    assert sum(free.take(bytes([n]), f"192.0.{n}.1", 10, 0).tokens for n in range(10)) == 50
    assert free.take(b"new", "2001:db8::1", 10, 0) == Grant(tokens=0, retry_after=1)


def test_what_was_not_used_comes_back_and_no_more_than_that_fits() -> None:
    free = FreeQuota(CONFIG, 0)
    free.take(b"a", "192.0.2.1", 10, 0)
    free.give_back(b"a", "192.0.2.1", 7, 0)
    assert free.take(b"a", "192.0.2.1", 10, 0).tokens == 7
    free.give_back(b"a", "192.0.2.1", 99, 0)
    assert free.take(b"a", "192.0.2.1", 99, 0).tokens == 10


def test_prefixes() -> None:
    assert prefix_of("192.0.2.77") == "192.0.2.0/24"
    assert prefix_of("::ffff:192.0.2.77") == "192.0.2.0/24"
    assert prefix_of("2001:db8:1:2:3::4") == "2001:db8:1:2::/64"
    with pytest.raises(UsageError, match="not a numeric address"):
        prefix_of("example.org")


def test_nothing_free_is_said_so_and_bad_buckets_are_refused() -> None:
    none = FreeQuota(QuotaConfig(whole=Refill(capacity=0, seconds=1)), 0)
    assert none.take(b"a", "192.0.2.1", 1, 0) == Grant(tokens=0, retry_after=float("inf"))
    for capacity, seconds in ((-1, 1.0), (1, 0.0)):
        with pytest.raises(UsageError):
            Refill(capacity=capacity, seconds=seconds)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_BUCKETS", 3)
    free = FreeQuota(QuotaConfig(), 0)
    for number in range(10):
        free.take(bytes([number]), f"192.0.{number}.1", 1, 0)
    assert (len(free._identities), len(free._prefixes)) == (3, 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 40), st.floats(0, 30)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_nobody_gets_more_than_a_bucket_and_its_refill(steps: list[tuple[int, int, int, float]]) -> None:
    free, now = FreeQuota(CONFIG, 0), 0.0
    taken: dict[tuple[str, int], int] = {}
    refills = {"who": CONFIG.identity, "net": CONFIG.prefix, "all": CONFIG.whole}
    for who, network, tokens, passed in steps:
        now += passed
        granted = free.take(bytes([who]), f"192.0.{network}.{who}", tokens, now).tokens
        for key in (("who", who), ("net", network), ("all", 0)):
            taken[key] = taken.get(key, 0) + granted
        for (kind, _), amount in taken.items():
            refill = refills[kind]
            assert amount <= refill.capacity * (1 + now / refill.seconds) + 1e-6
