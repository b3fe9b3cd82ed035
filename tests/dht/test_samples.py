from __future__ import annotations

import random

from dht.contacts import Endpoint
from dht.keys import Target
from dht.samples import INTERVAL, MAX_SAMPLES, Sampler
from dht.store import PeerStore


def fill(store: PeerStore, start: int, count: int) -> None:
    for number in range(start, start + count):
        store.add(Target(number.to_bytes(20, "big")), Endpoint("10.0.0.1", 1), 0.0)


def test_all_are_shown_while_they_are_few() -> None:
    store = PeerStore()
    sampler = Sampler(store, random.Random(1))
    assert sampler.draw(0.0).info_hashes == ()
    fill(store, 0, 3)
    drawn = sampler.draw(1.0)
    assert sorted(drawn.info_hashes) == store.info_hashes
    assert (drawn.total, drawn.interval) == (3, INTERVAL)


def test_the_same_few_of_many_are_shown_for_an_interval() -> None:
    store = PeerStore()
    sampler = Sampler(store, random.Random(1))
    fill(store, 0, 500)
    first = sampler.draw(0.0)
    assert (len(first.info_hashes), first.total) == (MAX_SAMPLES, 500)
    assert set(first.info_hashes) <= set(store.info_hashes)
    fill(store, 500, 10)
    assert sampler.draw(INTERVAL - 1.0).info_hashes == first.info_hashes
    assert sampler.draw(INTERVAL).info_hashes != first.info_hashes
