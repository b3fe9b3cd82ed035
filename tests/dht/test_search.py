from __future__ import annotations

from dht.contacts import Endpoint
from dht.items import Item, sign_item
from dht.keys import Target
from dht.outcomes import ItemFound, PeersFound
from dht.queries import FindNode, Get, GetPeers
from dht.region import Region
from dht.replies import Reply
from dht.search import ItemSearch, PeerSearch, Search
from tests.dht.answers import EMPTY, ITEM, KEY, TARGET, answer, holding, node, refuse, start


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


class TestRegion:
    def test_members_met_on_the_way_to_a_point_are_asked_in_the_end(self) -> None:
        point = Target((1000).to_bytes(20, "big"))
        search = ItemSearch(ITEM.target, start(1, region=Region(radius=1 << 160, points=(point,))))
        (request,) = search.requests()
        assert request.query == Get(target=ITEM.target)
        answer(search, 1, Reply(token=b"token", nodes=tuple(node(number) for number in range(2, 30))))
        asked = {}
        late = []
        while not search.finished:
            requests = search.requests()
            for request in requests:
                number = request.endpoint.port
                again = number in asked
                asked[number] = request.query
                if again:
                    late.append(number)
                    answer(search, number, holding(ITEM) if number == late[0] else EMPTY)
                else:
                    answer(search, number, EMPTY if isinstance(request.query, Get) else Reply())
        assert any(isinstance(query, FindNode) for query in asked.values()) or late
        assert all(asked[number] == Get(target=ITEM.target) for number in late)
        assert len(search.storers()) > 8
        assert {contact.endpoint for contact in search.storers()} == set(search.tokens)

    def test_late_ones_that_stay_silent_hold_nobody_up(self) -> None:
        point = Target(b"\xf0" * 20)
        search = ItemSearch(ITEM.target, start(1, region=Region(radius=1 << 160, points=(point,))))
        numbers = set()
        for _ in range(20):
            for request in search.requests():
                number = request.endpoint.port
                if isinstance(request.query, FindNode):
                    answer(search, number)
                elif number in numbers or number > 100:
                    search.timed_out(request.endpoint, 1)
                    search.timed_out(request.endpoint, 2)
                else:
                    answer(search, number, Reply(token=b"t", nodes=tuple(node(n) for n in range(2, 24))))
                numbers.add(number)
        assert search.finished
