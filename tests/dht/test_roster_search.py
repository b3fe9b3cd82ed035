from __future__ import annotations

from dht.contacts import Contact, Endpoint
from dht.errors import ConflictError
from dht.items import STALE_SEQ
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.replies import Reply
from dht.roster import Filter, roster_target
from dht.roster_queries import CapGet, CapPut, RosterReply
from dht.roster_search import RosterPut, RosterSearch
from dht.search import AGREEING, Start
from tests.dht.adverts import MODEL, host_of, put_of, signed, worker

TARGET = roster_target(MODEL)


def contact_of(number: int) -> Contact:
    return Contact(NodeId(TARGET[:19] + bytes([number])), Endpoint(f"10.0.0.{number}", 1))


def make_search(wanted: Filter, *, nodes: int = 5, known: RosterReply | None = None) -> RosterSearch:
    seeds = tuple(contact_of(number) for number in range(1, nodes + 1))
    return RosterSearch(TARGET, Start(own_id=NodeId(b"n" * 20), seeds=seeds), wanted, known)


def answer(
    search: RosterSearch | RosterPut, number: int, *workers: int, token: bytes | None = b"t", **told: int
) -> None:
    roster = RosterReply(entries=tuple(signed(n).raw for n in workers), **told) if token is not None else None
    contact = contact_of(number)
    reply = Reply(roster=roster, token=token)
    packet = ReplyPacket(transaction=b"t", sender=contact.node_id, reply=reply)
    search.replied(contact.endpoint, packet)


def found(search: RosterSearch) -> set[bytes]:
    assert search.outcome is not None
    return {signed.entry.worker for signed in search.outcome.entries}


def test_everybody_is_asked_the_rosters_own_question() -> None:
    search = make_search(Filter(span=(1, 2)))
    queries = {request.query for request in search.requests()}
    assert queries == {CapGet(target=TARGET, wanted=Filter(span=(1, 2)))}


def test_three_storers_with_enough_answer_the_caller_while_the_rest_goes_on() -> None:
    search = make_search(Filter(how_many=2))
    assert len(search.requests()) == 5
    for number in range(1, AGREEING + 1):
        assert search.outcome is None
        answer(search, number, number, number + 1)
    assert not search.finished
    assert search.outcome is not None
    for number in (4, 5):
        answer(search, number)
    assert search.finished


def test_few_workers_are_all_waited_for() -> None:
    search = make_search(Filter(how_many=8), nodes=4)
    search.requests()
    for number in range(1, 5):
        assert search.outcome is None
        answer(search, number, 1, number)
    assert found(search) == {worker(number).peer_id for number in range(1, 5)}


def test_a_storer_that_lies_fills_its_own_share_at_most() -> None:
    search = make_search(Filter(how_many=6), nodes=4)
    search.requests()
    answer(search, 1, *range(90, 99))
    for number in (2, 3, 4):
        answer(search, number, *range(number * 10, number * 10 + 6))
    assert search.outcome is not None
    first = [signed.entry.worker for signed in search.outcome.entries][:8]
    lies = {worker(number).peer_id for number in range(90, 99)}
    assert len(lies.intersection(first)) == 2


def test_what_was_not_wanted_is_no_entry_or_is_older_is_left_out() -> None:
    search = make_search(Filter(span=(0, 4)), nodes=2)
    search.requests()
    for number, raws in [
        (1, (signed(1, seq=5).raw, b"nonsense", signed(2, start=4, stop=8).raw)),
        (2, (signed(1, seq=9).raw,)),
    ]:
        roster = RosterReply(entries=raws)
        contact = contact_of(number)
        packet = ReplyPacket(transaction=b"t", sender=contact.node_id, reply=Reply(roster=roster))
        search.replied(contact.endpoint, packet)
    assert search.outcome is not None
    assert [signed.entry.seq for signed in search.outcome.entries] == [9]


def test_size_and_depth_are_the_medians_of_what_is_said() -> None:
    search = make_search(Filter(how_many=0), nodes=6, known=RosterReply(count=150, depth=3))
    search.requests()
    answer(search, 1, count=160, depth=3)
    answer(search, 2, count=65535, depth=16)
    answer(search, 3, count=170, depth=3)
    for number in (4, 5, 6):
        answer(search, number, count=0)  # they are near and keep none of it
    assert search.outcome is not None
    assert search.outcome.count in (160, 170)
    assert search.outcome.depth == 3


class TestPut:
    def make(self, nodes: int = 4) -> tuple[RosterPut, CapPut]:
        query = put_of(1, host=host_of(1))
        return RosterPut(make_search(Filter(how_many=0), nodes=nodes), query), query

    def test_the_nearest_who_know_rosters_are_offered_it(self) -> None:
        put, query = self.make()
        put.requests()
        answer(put, 1, token=None)  # a foreign node: nodes, no token
        for number in (2, 3, 4):
            answer(put, number, token=b"%d" % number, count=7, depth=2)
        offers = {request.endpoint: request.query for request in put.requests()}
        assert set(offers) == {contact_of(number).endpoint for number in (2, 3, 4)}
        offer = offers[contact_of(3).endpoint]
        assert isinstance(offer, CapPut)
        assert (offer.entry, offer.token) == (query.entry, b"3")
        for number in (2, 3, 4):
            put.replied(
                contact_of(number).endpoint, ReplyPacket(transaction=b"", sender=NodeId(b"x" * 20), reply=Reply())
            )
        assert put.outcome is not None
        assert (put.outcome.stored, put.outcome.count, put.outcome.depth) == (3, 7, 2)
        assert dict(put.outcome.storers)[contact_of(4).endpoint] == b"4"

    def test_a_sample_goes_to_one_storer_by_its_draw(self) -> None:
        chosen = set()
        for draw in (0.0, 0.4, 0.99):
            put = RosterPut(make_search(Filter(how_many=0), nodes=3), put_of(1), draw)
            put.requests()
            for number in (1, 2, 3):
                answer(put, number)
            (offer,) = put.requests()
            chosen.add(offer.endpoint)
        assert chosen == {contact_of(number).endpoint for number in (1, 2, 3)}

    def test_a_stale_seq_is_a_conflict(self) -> None:
        put, _ = self.make(nodes=1)
        put.requests()
        answer(put, 1)
        put.requests()
        put.failed(contact_of(1).endpoint, ErrorPacket(transaction=b"", error_code=STALE_SEQ))
        assert put.outcome is not None
        assert isinstance(put.outcome.error, ConflictError)


def test_the_target_is_the_shards() -> None:
    query = put_of(1, depth=4)
    assert query.target == roster_target(MODEL, query.shard)
    assert isinstance(query.target, Target)
