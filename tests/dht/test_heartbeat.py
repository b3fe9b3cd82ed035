from __future__ import annotations

import random

from dht.heartbeat import BEAT, FEW_ENTRIES, JITTER, Advert, Heartbeat
from dht.roster import ENTRY_TTL, MAX_DEPTH, Shard, SignedEntry
from dht.roster_queries import CapPut
from dht.roster_store import HOT_ENTRIES
from dht.routing import BUCKET_SIZE
from tests.dht.adverts import CHEAP, MODEL, worker

KEY = worker(1)
ADVERT = Advert(manifest_id=MODEL, port=7000, start=0, stop=4, price=CHEAP, free_slots=2)
PLACE = ("20.1.1.1", 6881, 1_000.5)


def make_heartbeat(seed: int = 1) -> Heartbeat:
    return Heartbeat(KEY, MODEL, random.Random(seed))


def read(put: CapPut) -> SignedEntry:
    return SignedEntry.read(put.entry, MODEL)


def test_each_entry_is_newer_than_the_last_and_lives_for_three_beats() -> None:
    heartbeat = make_heartbeat()
    first, second = (read(heartbeat.own(ADVERT, *PLACE)).entry for _ in range(2))
    assert first.seq == 1_000_500
    assert second.seq == first.seq + 1
    assert first.expiry == 1_000 + ENTRY_TTL
    later = read(heartbeat.own(ADVERT, "20.1.1.1", 6881, 500.0)).entry
    assert later.seq > second.seq  # the clock went back, the seq did not
    assert (first.host, first.port, first.dht_port, first.free_slots) == ("20.1.1.1", 7000, 6881, 2)


def test_beats_are_spread() -> None:
    heartbeat = make_heartbeat()
    pauses = [heartbeat.pause() for _ in range(500)]
    assert BEAT * (1 - JITTER) <= min(pauses) < BEAT * 0.82
    assert BEAT * 1.18 < max(pauses) <= BEAT * (1 + JITTER)


def test_a_crowded_shard_is_left_for_a_deeper_one_and_an_empty_one_for_that_above() -> None:
    heartbeat = make_heartbeat()
    assert not heartbeat.heard(HOT_ENTRIES, 0)
    assert heartbeat.heard(HOT_ENTRIES + 1, 0)
    assert heartbeat.depth == 1
    assert heartbeat.own(ADVERT, *PLACE).shard == Shard.of(KEY.peer_id, 1)
    assert not heartbeat.heard(FEW_ENTRIES, 1)
    assert heartbeat.depth == 1
    assert not heartbeat.heard(FEW_ENTRIES - 1, 1)
    assert heartbeat.depth == 0
    assert not heartbeat.heard(0, 0)
    assert heartbeat.depth == 0


def test_a_newcomer_goes_where_the_others_are() -> None:
    heartbeat = make_heartbeat()
    assert heartbeat.heard(150, 6)
    assert heartbeat.depth == 6
    assert not heartbeat.heard(150, 9)
    for _ in range(99):
        heartbeat.heard(1000, 0)
    assert heartbeat.depth == MAX_DEPTH


def test_the_top_of_a_split_roster_gets_a_sample() -> None:
    heartbeat = make_heartbeat()
    assert heartbeat.sample(ADVERT, *PLACE) is None  # it is its own shard
    heartbeat.heard(150, 6)
    drawn = [heartbeat.sample(ADVERT, *PLACE) for _ in range(5000)]
    writes = [put for put in drawn if put is not None]
    assert 160 < len(writes) < 260  # 8/3 in 64
    assert {put.shard for put in writes} == {Shard()}
    assert {read(put).entry.depth for put in writes} == {6}
    heartbeat = make_heartbeat()
    heartbeat.heard(150, 1)
    assert all(heartbeat.sample(ADVERT, *PLACE) for _ in range(100))


def test_a_withdrawal_reaches_its_shard_and_the_top() -> None:
    heartbeat = make_heartbeat()
    heartbeat.heard(150, 2)
    before = read(heartbeat.own(ADVERT, *PLACE)).entry
    puts = heartbeat.withdrawal(ADVERT, *PLACE)
    assert [put.shard.depth for put in puts] == [0, 2]
    assert all(read(put).entry.expiry == 0 and read(put).entry.seq > before.seq for put in puts)


def test_the_network_settles_at_shards_of_the_right_size() -> None:
    """Ten thousand writers, each hearing how many stand where it writes: depths settle, and the top is a sample."""
    count = 10_000
    writers = [Heartbeat(KEY, MODEL, random.Random(number)) for number in range(count)]
    for _ in range(3):
        for writer in writers:
            while True:
                here = count >> writer.depth  # keys are spread evenly
                if not writer.heard(min(here, 400), writer.depth):
                    break
    assert {writer.depth for writer in writers} == {6}
    one_beat = [writer.sample(ADVERT, *PLACE) for writer in writers]
    standing_at_each = sum(put is not None for put in one_beat) * (ENTRY_TTL / BEAT) / BUCKET_SIZE
    assert 100 < standing_at_each < HOT_ENTRIES
