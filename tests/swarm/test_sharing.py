from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarm.pieces import FetchPlan
from swarm.sharing import Neighbour, crowd_of, owner_of, shared_priorities

ME = b"me"
WANTED = frozenset(range(10))


def neighbour(name: bytes, *pieces: int, fetching: bool = True) -> Neighbour:
    return Neighbour(peer_id=name, pieces=frozenset(pieces), fetching=fetching)


def test_the_crowd_is_who_fetches_the_same() -> None:
    around = [
        neighbour(b"new"),
        neighbour(b"same", 3, 40),
        neighbour(b"other layers", 40, 41),
        neighbour(b"seed", fetching=False),
    ]
    assert crowd_of(ME, around, WANTED) == (b"me", b"new", b"same")


@given(st.sets(st.binary(min_size=1, max_size=20), min_size=1, max_size=12), st.integers(0, 2**20))
def test_all_see_the_same_owner_and_one_who_leaves_changes_only_its_own(peers: set[bytes], piece: int) -> None:
    crowd = sorted(peers)
    owner = owner_of(piece, crowd)
    assert owner in peers
    assert owner_of(piece, crowd[::-1]) == owner
    for gone in peers - {owner}:
        assert owner_of(piece, sorted(peers - {gone})) == owner


def test_pieces_are_divided_about_evenly() -> None:
    crowd = [b"peer %d" % number for number in range(8)]
    counts = Counter(owner_of(piece, crowd) for piece in range(8000))
    assert len(counts) == 8
    assert all(850 < count < 1150 for count in counts.values())


def test_own_pieces_come_first_tier_by_tier_and_others_once_somebody_has_them() -> None:
    tiers = [{0, 1, 2}, {3, 4}, {5}, {6}]
    assert shared_priorities(8, tiers, {0, 3, 5}, frozenset({1, 6})) == [7, 1, 0, 3, 0, 2, 1, 0]
    assert shared_priorities(8, tiers, frozenset(), frozenset()) == [1] * 7 + [0], "nobody waits for an owner for ever"


def test_the_workers_of_a_crowd_divide_a_plan_without_a_gap() -> None:
    peers = [b"a", b"b", b"c"]
    asked: Counter[int] = Counter()
    for me in peers:
        plan = FetchPlan(12, [{0, 1, 2, 3}, {4, 5, 6, 7, 8}])
        assert plan.crowded_priorities(me, []) is None
        priorities = plan.crowded_priorities(me, [neighbour(other) for other in peers if other != me])
        assert priorities is not None
        asked.update(piece for piece, priority in enumerate(priorities) if priority)
        assert max(priorities) == 7
    assert asked == Counter(range(9)), "each piece is asked of the seed by one of them"
