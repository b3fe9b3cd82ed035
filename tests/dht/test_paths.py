from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, distance
from dht.lookup import WIDTH, Lookup, State
from dht.paths import Paths

OWN = NodeId(b"\xff" * 20)
TARGET = bytes(20)


def node(number: int) -> Contact:
    return Contact(NodeId(number.to_bytes(20, "big")), Endpoint(f"10.0.{number >> 8}.{number & 255}", 1))


def nodes(*numbers: int) -> list[Contact]:
    return [node(number) for number in numbers]


def paths(*seeds: list[Contact], points: tuple[bytes, ...] = ()) -> Paths:
    disjoint = [Lookup(TARGET, OWN, dealt) for dealt in seeds]
    everyone = [contact for dealt in seeds for contact in dealt]
    return Paths(TARGET, disjoint, [Lookup(point, OWN, everyone) for point in points])


def ask(both: Paths) -> list[Contact]:
    return [contact for contact, _ in both.next_contacts()]


def test_no_endpoint_is_asked_twice() -> None:
    both = paths(nodes(1, 2, 3), nodes(2, 3, 4))
    assert sorted(contact.node_id for contact in ask(both)) == [one.node_id for one in nodes(1, 2, 3, 4)]
    assert both.asked == 4


def test_a_liar_misleads_its_own_path_only() -> None:
    liar, honest = node(500), node(600)
    both = paths([liar], [honest])
    assert ask(both) == [liar, honest]
    both.answered(liar, nodes(*range(1, 9)))  # silent all, and nearer than anybody
    both.answered(honest, nodes(100, 101, 102))
    asked = ask(both)
    assert set(nodes(100, 101, 102)) <= set(asked)  # at once, although the liar's names are nearer


def test_what_another_path_heard_counts_but_not_its_hearsay() -> None:
    shared = node(50)
    both = paths([shared], [node(60)])
    assert ask(both) == [shared, node(60)]
    both.answered(node(60), [shared])
    assert ask(both) == []
    both.answered(shared, nodes(7))
    assert ask(both) == nodes(7)  # for the path that asked; the other one only notes that it answered
    both.failed(node(7).endpoint)
    assert both.finished
    assert both.nearest() == [shared, node(60)]


def test_points_learn_from_everybody_and_fill_the_region() -> None:
    point = (1000).to_bytes(20, "big")
    both = paths(nodes(1), points=(point,))
    assert both.next_contacts() == [(node(1), TARGET)]
    both.answered(node(1), nodes(2, 1000, 1001))
    towards = dict(both.next_contacts())
    assert towards[node(1000)] in (TARGET, point)
    for contact in towards:
        both.answered(contact, [])
    assert both.finished
    assert both.within(500) == nodes(1, 2)
    assert both.within(1 << 160) == nodes(1, 2, 1000, 1001)


def test_a_taken_over_candidate_stands_where_its_owner_has_it() -> None:
    lookup = Lookup(TARGET, OWN, nodes(1, 2))
    lookup.take_over(node(1).endpoint, State.FAILED)
    lookup.take_over(node(9).endpoint, State.FAILED)  # of nobody: nothing happens
    assert lookup.next_contacts() == nodes(2)
    assert lookup.state_of(node(9).endpoint) is None


@given(seed=st.integers(0, 2**32), size=st.integers(1, 50), dead=st.floats(0, 0.5), region=st.booleans())
def test_they_end_and_find_the_nearest_that_live(seed: int, size: int, dead: float, region: bool) -> None:
    rng = random.Random(seed)
    network = [Contact(NodeId(rng.randbytes(20)), node(n).endpoint) for n in range(size)]
    alive = {contact for contact in network if rng.random() >= dead}
    points = tuple(rng.randbytes(20) for _ in range(3)) if region else ()
    both = paths(network[::2], network[1::2], points=points)
    pending: list[Contact] = []
    for _ in range(20 * size + 20):
        pending += ask(both)
        if both.finished or not pending:
            break
        contact = pending.pop(rng.randrange(len(pending)))
        if contact in alive:
            both.answered(contact, network)
        else:
            both.timed_out(contact.endpoint, 1)
            both.timed_out(contact.endpoint, 2)
            both.failed(contact.endpoint)
    assert both.finished
    expected = sorted(alive, key=lambda contact: distance(contact.node_id, TARGET))
    assert both.nearest() == expected[:WIDTH]
    assert both.answered_count <= len(alive)
