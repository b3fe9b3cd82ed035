from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, Target, distance
from dht.region import MEMBERS, SAMPLED, SPACE, estimate_size, region_of
from tests.dht.strategies import TARGETS


def network(size: int, rng: random.Random) -> list[Contact]:
    return [Contact(NodeId(rng.randbytes(20)), Endpoint("10.0.0.1", 1 + n)) for n in range(size)]


@pytest.mark.parametrize("size", [30, 300, 3000])
def test_the_size_of_a_network_is_estimated_within_a_factor_of_two_mostly(size: int) -> None:
    rng = random.Random(size)
    everybody = network(size, rng)
    guesses = sorted(estimate_size(NodeId(rng.randbytes(20)), everybody) / size for _ in range(40))
    assert guesses[2] > 0.5
    assert guesses[-3] < 2.0


def test_small_networks_are_all_region() -> None:
    assert estimate_size(NodeId(bytes(20)), []) == 1.0
    region = region_of(Target(b"t" * 20), 5.0)
    assert region.radius == SPACE
    assert len(set(region.points)) == 3


@given(target=TARGETS, size=st.floats(1, 1e9), draw=st.none() | st.floats(0, 0.999))
def test_points_lie_in_the_region_one_in_each_quarter(target: Target, size: float, draw: float | None) -> None:
    region = region_of(target, size, draw=draw)
    assert len(set(region.points)) == (3 if draw is None else SAMPLED)
    for point in region.points:
        assert 0 < distance(point, target) < 2 * region.radius


def test_a_region_has_about_as_many_nodes_as_it_is_to_have() -> None:
    rng = random.Random(1)
    everybody = network(2000, rng)
    counts = []
    for _ in range(50):
        target = Target(rng.randbytes(20))
        radius = region_of(target, 2000.0).radius
        counts.append(sum(distance(contact.node_id, target) < radius for contact in everybody))
    assert sum(counts) / len(counts) == pytest.approx(MEMBERS, rel=0.25)
