from __future__ import annotations

import pytest

from dht.contacts import Contact, Endpoint
from dht.errors import ConflictError
from dht.items import Item, sign_item
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.operations import ItemSearch, PeerSearch, PingOperation, Search, Start, Store, announce, put
from dht.outcomes import ItemFound, PeersFound
from dht.queries import AnnouncePeer, Get, GetPeers, Ping, Put
from dht.replies import Reply
from swarm.errors import UsageError
from swarm.identity import Identity

KEY = Identity(b"\x06" * 32)
OWN = NodeId(b"\xff" * 20)
TARGET = Target(bytes(20))
ITEM = sign_item(KEY, b"five", seq=5)


def node(number: int) -> Contact:
    return Contact(NodeId(number.to_bytes(20, "big")), Endpoint("10.0.0.1", number))


def start(*numbers: int, routers: tuple[int, ...] = ()) -> Start:
    return Start(
        own_id=OWN,
        seeds=tuple(node(number) for number in numbers),
        routers=tuple(node(number).endpoint for number in routers),
    )


def answer(operation: Search | Store, number: int, reply: Reply = Reply()) -> None:  # noqa: B008  (it is frozen)
    contact = node(number)
    operation.replied(contact.endpoint, ReplyPacket(transaction=b"t", sender=contact.node_id, reply=reply))


def refuse(operation: Search | Store, number: int, code: int | None = None) -> None:
    error = None if code is None else ErrorPacket(transaction=b"t", error_code=code)
    operation.failed(node(number).endpoint, error)


def holding(item: Item) -> Reply:
    reply = item.reply()
    return Reply(
        token=b"token", value=reply.value, public_key=reply.public_key, seq=reply.seq, signature=reply.signature
    )


EMPTY = Reply(token=b"token")


def test_ping() -> None:
    operation = PingOperation(node(1).endpoint)
    (request,) = operation.requests()
    assert (request.endpoint, request.query) == (node(1).endpoint, Ping())
    assert operation.requests() == []
    operation.timed_out(node(1).endpoint, 1)
    assert not operation.finished
    operation.failed(node(1).endpoint, None)
    assert operation.finished
    assert operation.outcome is not None
    assert (operation.outcome.asked, operation.outcome.answered) == (1, 0)


class TestSearch:
    def test_a_bootstrap_node_is_asked_once_though_others_name_it(self) -> None:
        search = Search(TARGET, start(1, routers=(1, 2)))
        assert [request.endpoint for request in search.requests()] == [node(1).endpoint, node(2).endpoint]
        answer(search, 1, Reply(nodes=(node(2),)))
        answer(search, 2)
        assert search.finished
        assert search.outcome is not None
        assert search.outcome.nearest == (node(1), node(2))

    def test_a_dead_bootstrap_node_is_not_waited_for_once_another_answers(self) -> None:
        search = Search(TARGET, start(routers=(1, 2)))
        search.requests()
        search.timed_out(node(1).endpoint, 1)
        assert not search.finished
        answer(search, 2)
        assert search.finished

    def test_it_waits_for_the_only_bootstrap_node_to_the_end(self) -> None:
        search = Search(TARGET, start(routers=(1,)))
        search.requests()
        search.timed_out(node(1).endpoint, 2)
        assert not search.finished
        refuse(search, 1)
        assert search.outcome is not None
        assert (search.outcome.asked, search.outcome.answered) == (1, 0)

    def test_peers_of_all_answers_and_of_our_own_store_are_joined(self) -> None:
        own, first, second = (Endpoint("10.0.0.9", port) for port in (1, 2, 3))
        search = PeerSearch(TARGET, start(1, 2), [own])
        assert [request.query for request in search.requests()] == [GetPeers(info_hash=TARGET)] * 2
        answer(search, 1, Reply(peers=(first, second)))
        assert search.outcome is None
        answer(search, 2, Reply(peers=(second, own)))
        assert isinstance(search.outcome, PeersFound)
        assert search.outcome.peers == (own, first, second)


class TestItemSearch:
    def make(self, *numbers: int, known: Item | None = None) -> ItemSearch:
        search = ItemSearch(ITEM.target, start(*numbers), known=known)
        assert {request.query for request in search.requests()} <= {Get(target=ITEM.target)}
        return search

    def found(self, search: ItemSearch) -> Item | None:
        assert isinstance(search.outcome, ItemFound)
        return search.outcome.item

    def test_three_agreeing_storers_answer_while_the_rest_is_still_asked(self) -> None:
        search = self.make(1, 2, 3, 4, 5)
        for number in (1, 2):
            answer(search, number, holding(ITEM))
            assert search.outcome is None
        answer(search, 3, holding(ITEM))
        assert self.found(search) == ITEM
        assert not search.finished

    def test_our_own_store_counts_as_one(self) -> None:
        search = self.make(1, 2, 3, known=ITEM)
        answer(search, 1, holding(ITEM))
        assert search.outcome is None
        answer(search, 2, holding(ITEM))
        assert self.found(search) == ITEM

    def test_a_newer_one_begins_the_count_anew(self) -> None:
        newer = sign_item(KEY, b"six", seq=6)
        search = self.make(1, 2, 3, 4, 5)
        answer(search, 1, holding(ITEM))
        answer(search, 2, holding(newer))
        answer(search, 3, holding(ITEM))
        answer(search, 4, holding(ITEM))
        assert search.outcome is None
        answer(search, 5, holding(ITEM))
        assert self.found(search) == newer

    def test_a_forged_one_is_worth_nothing(self) -> None:
        forged = Reply(value=b"evil", public_key=KEY.peer_id, seq=9, signature=bytes(64))
        search = self.make(1, 2)
        answer(search, 1, forged)
        answer(search, 2, holding(ITEM))
        assert self.found(search) == ITEM


class TestStore:
    def make_put(self, *numbers: int, item: Item = ITEM, cas: int | None = None) -> Store:
        store = put(ItemSearch(item.target, start(*numbers)), lambda _: item, cas)
        store.requests()
        return store

    def test_an_announcement_goes_to_those_who_gave_a_token(self) -> None:
        store = announce(PeerSearch(TARGET, start(1, 2)), 7000)
        store.requests()
        answer(store, 1, EMPTY)
        answer(store, 2)  # no token
        (request,) = store.requests()
        assert request.endpoint == node(1).endpoint
        assert request.query == AnnouncePeer(info_hash=TARGET, port=7000, token=b"token")
        assert store.outcome is None
        answer(store, 1)
        assert store.outcome is not None
        assert (store.outcome.stored, store.outcome.error) == (1, None)
        assert store.finished

    def test_the_caller_does_not_wait_for_the_last_transmission(self) -> None:
        store = self.make_put(1, 2)
        for number in (1, 2):
            answer(store, number, EMPTY)
        assert len(store.requests()) == 2
        answer(store, 1)
        store.timed_out(node(2).endpoint, 2)
        assert store.outcome is not None
        assert store.outcome.stored == 1
        assert not store.finished
        refuse(store, 2)
        assert store.finished

    @pytest.mark.parametrize(("seq", "value", "cas"), [(4, b"four", None), (5, b"other", None), (6, b"six", 4)])
    def test_a_conflict_seen_on_the_way_is_not_even_offered(self, seq: int, value: bytes, cas: int | None) -> None:
        store = self.make_put(1, item=sign_item(KEY, value, seq=seq), cas=cas)
        answer(store, 1, holding(ITEM))
        assert store.requests() == []
        assert store.outcome is not None
        assert isinstance(store.outcome.error, ConflictError)
        assert store.outcome.error.current_seq == 5
        assert store.finished

    @pytest.mark.parametrize("code", [301, 302])
    def test_a_conflict_told_by_all_storers_is_one(self, code: int) -> None:
        store = self.make_put(1)
        answer(store, 1, EMPTY)
        store.requests()
        refuse(store, 1, code)
        assert store.outcome is not None
        assert isinstance(store.outcome.error, ConflictError)

    def test_other_refusals_are_no_conflict(self) -> None:
        store = self.make_put(1)
        answer(store, 1, EMPTY)
        store.requests()
        refuse(store, 1, 203)
        assert store.outcome is not None
        assert (store.outcome.stored, store.outcome.error) == (0, None)

    def test_a_cas_is_offered_over_what_each_storer_holds(self) -> None:
        store = self.make_put(1, 2, 3, item=sign_item(KEY, b"six", seq=6), cas=5)
        answer(store, 1, holding(ITEM))
        answer(store, 2, holding(sign_item(KEY, b"four", seq=4)))
        answer(store, 3, EMPTY)
        offered = {request.endpoint.port: request.query for request in store.requests()}
        assert {port: query.cas for port, query in offered.items() if isinstance(query, Put)} == {1: 5, 2: 4, 3: None}

    def test_what_the_maker_raises_is_the_outcome(self) -> None:
        def refuse_to_make(current: Item | None) -> Item:
            raise UsageError(f"not over {current}")

        store = put(ItemSearch(TARGET, start()), refuse_to_make)
        assert store.requests() == []
        assert store.outcome is not None
        assert isinstance(store.outcome.error, UsageError)
