from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, distance
from dht.lookup import ALPHA, MAX_CANDIDATES, MAX_CLAIMS, MAX_NODES_PER_ANSWER, WIDTH, Lookup

OWN = NodeId(b"\xff" * 20)
TARGET = bytes(20)


def node(number: int) -> Contact:
    """The ``number``-th nearest contact to the target."""
    return Contact(
        NodeId(number.to_bytes(20, "big")), Endpoint(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)
    )


def nodes(*numbers: int) -> list[Contact]:
    return [node(number) for number in numbers]


def test_nothing_to_ask_is_finished() -> None:
    lookup = Lookup(TARGET, OWN, [])
    assert lookup.next_contacts() == []
    assert lookup.finished
    assert (lookup.asked, lookup.answered_count, lookup.nearest()) == (0, 0, [])


def test_alpha_of_the_nearest_are_asked_at_a_time() -> None:
    lookup = Lookup(TARGET, OWN, nodes(*range(20, 0, -1)))
    assert lookup.next_contacts() == nodes(*range(1, ALPHA + 1))
    assert lookup.next_contacts() == []
    lookup.answered(node(1), nodes(0))
    assert lookup.next_contacts() == nodes(0)
    assert not lookup.finished


def test_it_ends_when_the_nearest_have_answered() -> None:
    lookup = Lookup(TARGET, OWN, nodes(*range(30)))
    while asked := lookup.next_contacts():
        for contact in asked:
            lookup.answered(contact, [])
    assert lookup.finished
    assert lookup.nearest() == nodes(*range(WIDTH))
    assert lookup.asked <= WIDTH + ALPHA


def test_a_slow_one_gives_up_its_slot_but_is_waited_for_until_it_is_overdue() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1, 2, 3, 4, 5, 6))
    lookup.next_contacts()
    lookup.timed_out(node(1).endpoint, 1)
    assert lookup.next_contacts() == nodes(6)
    for number in range(2, 7):
        lookup.answered(node(number), [])
    assert not lookup.finished
    lookup.timed_out(node(1).endpoint, 2)
    assert lookup.finished
    lookup.answered(node(1), [])
    assert lookup.nearest()[0] == node(1)


def test_a_silent_one_is_asked_but_not_waited_for() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1, 2, 3, 4, 5, 6), frozenset([node(1).endpoint]))
    assert lookup.next_contacts() == nodes(1, 2, 3, 4, 5, 6)
    for number in range(2, 7):
        lookup.answered(node(number), [])
    assert lookup.finished


def test_with_nobody_else_the_overdue_are_waited_for() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1), frozenset([node(1).endpoint]))
    lookup.next_contacts()
    assert not lookup.finished
    lookup.failed(node(1).endpoint)
    assert lookup.finished
    assert lookup.nearest() == []


def test_a_failed_one_is_replaced_by_the_next() -> None:
    lookup = Lookup(TARGET, OWN, nodes(*range(WIDTH + 1)))
    lookup.next_contacts()
    lookup.failed(node(0).endpoint)
    while asked := lookup.next_contacts():
        for contact in asked:
            lookup.answered(contact, [])
    for number in range(1, ALPHA):
        lookup.answered(node(number), [])
    assert lookup.finished
    assert lookup.nearest() == nodes(*range(1, WIDTH + 1))


def test_neither_we_nor_an_endpoint_twice_nor_an_id_often() -> None:
    first = node(1)
    same_endpoint = Contact(NodeId(b"\1" * 20), first.endpoint)
    claims = [Contact(first.node_id, Endpoint("10.8.8.8", port)) for port in range(1, 6)]
    lookup = Lookup(TARGET, OWN, [first, same_endpoint, *claims, Contact(OWN, Endpoint("10.7.7.7", 7))])
    assert lookup.next_contacts() == [first, *claims[: MAX_CLAIMS - 1]]


def test_an_answer_under_another_id_stands_where_that_id_belongs() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1, 3))
    lookup.next_contacts()
    lookup.answered(node(3), [])
    claimed = Contact(node(9).node_id, node(1).endpoint)
    lookup.answered(claimed, nodes(1))  # nor can it name its old id again: that endpoint was asked
    assert lookup.nearest() == [node(3), claimed]
    assert lookup.next_contacts() == []
    assert lookup.finished


def test_a_bootstrap_node_becomes_a_candidate_by_answering() -> None:
    lookup = Lookup(TARGET, OWN, [])
    lookup.answered(node(5), nodes(1, 2))
    assert lookup.next_contacts() == nodes(1, 2)
    lookup.answered(node(1), [])
    lookup.answered(node(2), [])
    assert lookup.nearest() == nodes(1, 2, 5)


def test_lying_answers_are_bounded() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1000))
    lookup.next_contacts()
    lookup.answered(node(1000), nodes(*range(2000, 2100)))
    assert len(lookup._candidates) == 1 + MAX_NODES_PER_ANSWER
    lookup.learn(nodes(*range(3000, 3600)))
    assert len(lookup._candidates) == MAX_CANDIDATES
    lookup.failed(node(1000).endpoint)
    lookup.failed(Endpoint("10.9.9.9", 9))  # of nobody: nothing happens


@given(seed=st.integers(0, 2**32), size=st.integers(1, 60), dead=st.floats(0, 0.6))
def test_every_lookup_ends_and_finds_the_nearest_that_live(seed: int, size: int, dead: float) -> None:
    rng = random.Random(seed)
    network = [Contact(NodeId(rng.randbytes(20)), node(n).endpoint) for n in range(size)]
    alive = {contact for contact in network if rng.random() >= dead}
    target = rng.randbytes(20)
    lookup = Lookup(target, OWN, network)  # everybody knows everybody
    pending: list[Contact] = []
    for _ in range(10 * size + 10):
        pending += lookup.next_contacts()
        if lookup.finished or not pending:
            break
        contact = pending.pop(rng.randrange(len(pending)))
        if contact in alive:
            lookup.answered(contact, network)
        else:
            lookup.timed_out(contact.endpoint, 1)
            lookup.timed_out(contact.endpoint, 2)
            lookup.failed(contact.endpoint)
    assert lookup.finished
    expected = sorted(alive, key=lambda contact: distance(contact.node_id, target))
    assert lookup.nearest() == expected[:WIDTH]


class LookupMachine(RuleBasedStateMachine):
    """Whatever answers, lies, is late or silent: nobody is asked twice, and the end is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = Lookup(TARGET, OWN, nodes(*range(200, 210)))
        self.asked: list[Contact] = []
        self.waiting: dict[Contact, int] = {}

    @rule()
    def ask(self) -> None:
        chosen = self.lookup.next_contacts()
        assert len(chosen) <= ALPHA
        self.asked += chosen
        self.waiting |= dict.fromkeys(chosen, 0)

    @rule(pick=st.integers(0, 100), named=st.lists(st.integers(0, 300), max_size=30), claimed=st.integers(0, 300))
    def answer(self, pick: int, named: list[int], claimed: int) -> None:
        if self.waiting:
            contact = sorted(self.waiting, key=lambda c: c.node_id)[pick % len(self.waiting)]
            del self.waiting[contact]
            honest = Contact(node(claimed).node_id, contact.endpoint) if pick % 7 == 0 else contact
            self.lookup.answered(honest, nodes(*named))

    @rule(pick=st.integers(0, 100))
    def wait(self, pick: int) -> None:
        if self.waiting:
            contact = sorted(self.waiting, key=lambda c: c.node_id)[pick % len(self.waiting)]
            self.waiting[contact] += 1
            if self.waiting[contact] < 3:
                self.lookup.timed_out(contact.endpoint, self.waiting[contact])
            else:
                del self.waiting[contact]
                self.lookup.failed(contact.endpoint)

    @invariant()
    def holds(self) -> None:
        endpoints = [contact.endpoint for contact in self.asked]
        assert len(endpoints) == len(set(endpoints))
        near = self.lookup.nearest()
        assert len(near) <= WIDTH
        assert near == sorted(near, key=lambda contact: distance(contact.node_id, TARGET))
        assert {contact.endpoint for contact in near} <= set(endpoints)
        assert len(self.lookup._candidates) <= MAX_CANDIDATES

    def teardown(self) -> None:
        for _ in range(400):
            self.ask()
            if self.lookup.finished:
                return
            for contact in list(self.waiting):
                self.lookup.timed_out(contact.endpoint, 2)
                self.lookup.failed(contact.endpoint)
                del self.waiting[contact]
        raise AssertionError("the lookup does not end")


TestLookup = LookupMachine.TestCase
TestLookup.settings = settings(max_examples=40, stateful_step_count=40)
