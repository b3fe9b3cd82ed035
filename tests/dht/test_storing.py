from __future__ import annotations

import pytest

from dht.errors import ConflictError
from dht.items import Item, sign_item
from dht.queries import AnnouncePeer, Put
from dht.search import ItemSearch, PeerSearch
from dht.storing import Store, announce, put
from swarm.errors import UsageError
from tests.dht.answers import EMPTY, ITEM, KEY, TARGET, answer, holding, node, refuse, start


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
