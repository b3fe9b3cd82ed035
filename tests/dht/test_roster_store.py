from __future__ import annotations

import random
from collections import Counter

import pytest

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import STALE_SEQ
from dht.roster import ENTRY_TTL, Filter, Shard, SignedEntry, roster_target
from dht.roster_queries import CapGet, CapPut, RosterReply
from dht.roster_store import (
    HOT_ENTRIES,
    HOT_READS,
    MAX_PER_ANSWER,
    MAX_PER_NETWORK,
    MAX_PER_ROSTER,
    PROVING_TIME,
    RosterStore,
)
from tests.dht.adverts import MODEL, host_of, put_of, signed, worker

EVERYBODY = Filter(how_many=16)


def make_store(seed: int = 1) -> RosterStore:
    return RosterStore(random.Random(seed))


def keep(store: RosterStore, number: int, now: float = 0.0, **changes: object) -> None:
    store.put(put_of(number, **changes), now)  # type: ignore[arg-type]
    for endpoint in store.take_pings():
        store.answered(endpoint)


def read(store: RosterStore, now: float = 0.0, wanted: Filter = EVERYBODY) -> RosterReply:
    return store.get(CapGet(target=roster_target(MODEL), wanted=wanted), now)


def workers(reply: RosterReply) -> set[bytes]:
    return {SignedEntry.read(raw, MODEL).entry.worker for raw in reply.entries}


def test_an_entry_counts_once_its_endpoint_has_answered() -> None:
    store = make_store()
    store.put(put_of(1), 0.0)
    assert read(store).count == 0
    assert store.take_pings() == [Endpoint(host_of(1), 6881)]
    assert store.take_pings() == []
    store.answered(Endpoint("1.2.3.4", 6881))
    assert read(store).count == 0
    store.answered(Endpoint(host_of(1), 6881))
    assert workers(read(store)) == {worker(1).peer_id}
    store.put(put_of(1, seq=2), 1.0)
    assert store.take_pings() == []
    assert read(store).count == 1
    store.put(put_of(1, seq=3, dht_port=7), 2.0)
    assert store.take_pings() == [Endpoint(host_of(1), 7)]
    assert read(store).count == 0


def test_an_endpoint_that_never_answers_is_forgotten() -> None:
    store = make_store()
    store.put(put_of(1), 0.0)
    store.expire(PROVING_TIME)
    assert len(store) == 1
    store.expire(PROVING_TIME + 1)
    assert len(store) == 0


def test_the_larger_seq_wins_and_old_words_live_no_longer() -> None:
    store = make_store()
    keep(store, 1, seq=5)
    with pytest.raises(RejectedQuery) as caught:
        keep(store, 1, seq=4)
    assert caught.value.krpc_code == STALE_SEQ
    with pytest.raises(RejectedQuery):
        keep(store, 1, seq=5, port=9)
    keep(store, 1, now=100.0, seq=5)
    assert read(store, ENTRY_TTL - 1).count == 1
    assert read(store, ENTRY_TTL).count == 0
    keep(store, 1, now=100.0, seq=6)
    assert read(store, ENTRY_TTL + 99).count == 1
    store.expire(ENTRY_TTL + 100)
    assert len(store) == 0


def test_expiry_zero_withdraws_and_cannot_be_undone_by_old_words() -> None:
    store = make_store()
    keep(store, 1, seq=1)
    keep(store, 1, seq=2, expiry=0)
    assert read(store).count == 0
    with pytest.raises(RejectedQuery):
        keep(store, 1, seq=1)
    keep(store, 1, seq=3)
    assert read(store).count == 1


def test_what_nobody_signed_is_not_kept() -> None:
    put = put_of(1)
    forged = CapPut(manifest_id=MODEL, shard=put.shard, entry=put.entry[:-1] + b"\0", token=b"")
    store = make_store()
    with pytest.raises(RejectedQuery, match="did not sign"):
        store.put(forged, 0.0)
    with pytest.raises(RejectedQuery, match="not a roster entry"):
        store.put(CapPut(manifest_id=MODEL, shard=put.shard, entry=b"short", token=b""), 0.0)
    assert len(store) == 0
    assert store.take_pings() == []


def test_nobody_writes_into_anothers_shard() -> None:
    own = Shard.of(worker(1).peer_id, 3)
    wrong = CapPut(manifest_id=MODEL, shard=Shard(3, own.prefix ^ 4), entry=signed(1).raw, token=b"")
    with pytest.raises(RejectedQuery, match="shard"):
        make_store().put(wrong, 0.0)


def test_a_network_has_its_share_and_local_ones_no_limit() -> None:
    store = make_store()
    for number in range(MAX_PER_NETWORK):
        keep(store, number, host=f"30.1.1.{number + 1}")
    with pytest.raises(RejectedQuery, match="network"):
        keep(store, 99, host="30.1.1.99")
    keep(store, 98, host="30.1.2.1")
    assert len(read(store).entries) == MAX_PER_ANSWER + 1
    for number in range(100, 100 + 2 * MAX_PER_NETWORK):
        keep(store, number, host="127.0.0.1")
    assert len(read(store).entries) == 16


def test_a_full_roster_gives_up_a_random_entry() -> None:
    store = make_store()
    for number in range(MAX_PER_ROSTER + 50):
        keep(store, number)
    assert len(store) == MAX_PER_ROSTER
    kept = workers(read(store))
    assert len(kept) == 16
    early = sum(any(worker(number).peer_id in workers(read(store)) for _ in range(60)) for number in range(20))
    assert early > 5  # the flood did not push the early ones out


def test_counts_depth_and_crowding_are_told() -> None:
    store = make_store()
    assert read(store) == RosterReply()
    for number in range(9):
        keep(store, number, depth=0)
    assert (read(store).count, read(store).depth) == (9, 0)
    for _ in range(HOT_READS + 1):
        reply = read(store, 10.0, Filter(how_many=0))
    assert reply.count == HOT_ENTRIES + 1
    assert read(store, 10.0 + ENTRY_TTL - 1).count == HOT_ENTRIES + 1


def test_the_depth_told_is_the_writers_median() -> None:
    store = make_store()
    for number, depth in enumerate([0, 2, 2, 2, 9]):
        put = CapPut(manifest_id=MODEL, shard=Shard(), entry=signed(number, depth=depth).raw, token=b"")
        store.put(put, 0.0, own=True)
    assert read(store).depth == 2


def test_the_sample_is_random_weighted_and_filtered() -> None:
    store = make_store()
    for number in range(40):
        keep(store, number, free_slots=0 if number < 20 else 60_000, stop=4 if number % 2 else 8)
    drawn = Counter(peer for _ in range(300) for peer in workers(read(store, wanted=Filter(how_many=4))))
    idle, busy = (sum(drawn[worker(n).peer_id] for n in part) for part in (range(20, 40), range(20)))
    assert 4 < idle / busy < 12  # eight times the weight, however many slots are claimed
    assert all(drawn[worker(n).peer_id] for n in range(20, 40))
    deep = workers(read(store, wanted=Filter(span=(5, 8), whole=True, how_many=16)))
    assert deep <= {worker(n).peer_id for n in range(0, 40, 2)}
    assert len(deep) == 16
