from __future__ import annotations

import random

from dht.heartbeat import BEAT, FEW_ENTRIES, JITTER, Advert, Heartbeat
from dht.roster import ENTRY_TTL, MAX_DEPTH, Shard, SignedEntry
from dht.roster_queries import CapPut
from dht.roster_store import HOT_ENTRIES
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


def test_every_level_above_gets_its_share() -> None:
    heartbeat = make_heartbeat()
    heartbeat.heard(150, 3)
    writes = [put for _ in range(2000) for put in heartbeat.above(ADVERT, *PLACE)]
    per_level = [sum(put.shard.depth == level for put in writes) for level in range(4)]
    assert 200 < per_level[0] < 300
    assert 430 < per_level[1] < 570
    assert 930 < per_level[2] < 1070
    assert per_level[3] == 0
    assert all(read(put).entry.depth == 3 for put in writes[:20])


def test_a_withdrawal_reaches_every_level() -> None:
    heartbeat = make_heartbeat()
    heartbeat.heard(150, 2)
    before = read(heartbeat.own(ADVERT, *PLACE)).entry
    puts = heartbeat.withdrawal(ADVERT, *PLACE)
    assert [put.shard.depth for put in puts] == [0, 1, 2]
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
    at_the_top = sum(writer._rng.random() < 0.5**writer.depth for writer in writers)
    assert 100 < at_the_top < HOT_ENTRIES
