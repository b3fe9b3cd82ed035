from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht import store as module
from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import ImmutableItem, MutableItem, sign_item
from dht.keys import Target
from dht.store import ITEM_TTL, PEER_TTL, ItemStore, PeerStore
from swarm.codec import encode
from swarm.identity import Identity

KEY = Identity(b"\x03" * 32)
FRIEND = Endpoint("61.2.3.4", 6881)
SIGNED = [sign_item(KEY, value, seq=seq) for seq in (1, 2, 3) for value in (b"x", b"y")]
ONE, TWO = Target(b"1" * 20), Target(b"2" * 20)


def peer(number: int) -> Endpoint:
    return Endpoint("10.0.0.1", number)


def plain(text: bytes) -> ImmutableItem:
    return ImmutableItem(encoded=encode(text))


def test_peers_expire_unless_announced_again() -> None:
    store = PeerStore()
    store.add(ONE, peer(1), 0.0)
    store.add(ONE, peer(2), 10.0)
    store.add(ONE, peer(1), 20.0)
    assert store.get(ONE, 30.0) == [peer(1), peer(2)]
    assert store.get(ONE, PEER_TTL + 10.0) == [peer(1)]
    store.expire(PEER_TTL + 10.0)
    assert len(store) == 1
    store.expire(PEER_TTL + 20.0)
    assert len(store) == 0
    assert store.get(TWO, 0.0) == []


def test_peer_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 2)
    monkeypatch.setattr(module, "MAX_TARGETS", 1)
    store = PeerStore()
    for number in (1, 2, 3):
        store.add(ONE, peer(number), float(number))
    assert store.get(ONE, 5.0) == [peer(3), peer(2)]
    store.add(TWO, peer(4), 4.0)
    assert store.get(ONE, 5.0) == []
    assert len(store) == 1


def test_items_expire_unless_put_again() -> None:
    store = ItemStore()
    store.put(plain(b"a"), 0.0)
    store.put(plain(b"b"), 0.0)
    store.put(plain(b"a"), 10.0)
    assert store.get(plain(b"b").target, ITEM_TTL) is None
    assert store.get(plain(b"a").target, ITEM_TTL) == plain(b"a")
    store.expire(ITEM_TTL)
    assert len(store) == 1


def test_the_item_used_longest_ago_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 2)
    store = ItemStore()
    store.put(plain(b"a"), 0.0)
    store.put(plain(b"b"), 1.0)
    store.get(plain(b"a").target, 2.0)
    store.put(plain(b"c"), 3.0)
    assert store.get(plain(b"b").target, 4.0) is None
    assert store.get(plain(b"a").target, 4.0) == plain(b"a")


@pytest.mark.parametrize(
    ("seq", "value", "cas", "code"),
    [
        (4, b"old", None, 302),
        (5, b"other", None, 302),
        (6, b"new", 4, 301),
        (6, b"new", 6, 301),
        (5, b"five", None, None),
        (5, b"five", 5, None),
        (6, b"new", 5, None),
        (9, b"new", None, None),
    ],
)
def test_which_mutable_items_replace_which(seq: int, value: bytes, cas: int | None, code: int | None) -> None:
    store = ItemStore()
    store.put(sign_item(KEY, b"five", seq=5), 0.0, cas=3)  # nothing is there yet, so any cas will do
    item = sign_item(KEY, value, seq=seq)
    if code is None:
        store.put(item, 1.0, cas=cas)
        assert store.get(item.target, 2.0) == item
    else:
        with pytest.raises(RejectedQuery) as caught:
            store.put(item, 1.0, cas=cas)
        assert caught.value.krpc_code == code
        assert store.get(item.target, 2.0) == sign_item(KEY, b"five", seq=5)


class PeerStoreMachine(RuleBasedStateMachine):
    """The store against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.store = PeerStore()
        self.model: dict[tuple[Target, Endpoint], float] = {}
        self.now = 0.0

    @rule(under=st.sampled_from([ONE, TWO]), number=st.integers(1, 5))
    def add(self, under: Target, number: int) -> None:
        self.store.add(under, peer(number), self.now)
        self.model[under, peer(number)] = self.now + PEER_TTL

    @rule(seconds=st.floats(0.1, PEER_TTL))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.store.expire(self.now)
        self.model = {key: expiry for key, expiry in self.model.items() if expiry > self.now}
        assert len(self.store) == len(self.model)

    @invariant()
    def agrees(self) -> None:
        for target in (ONE, TWO):
            expected = {p for (t, p), expiry in self.model.items() if t == target and expiry > self.now}
            assert set(self.store.get(target, self.now)) == expected


TestPeerStore = PeerStoreMachine.TestCase
TestPeerStore.settings = settings(max_examples=40, stateful_step_count=30)


class ItemStoreMachine(RuleBasedStateMachine):
    """The store of items against a plain dictionary: which replace which, and when they go."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ItemStore()
        self.model: dict[Target, tuple[ImmutableItem | MutableItem, float]] = {}
        self.now = 0.0

    def current(self, target: Target) -> ImmutableItem | MutableItem | None:
        item, expiry = self.model.get(target, (None, 0.0))
        return item if expiry > self.now else None

    @rule(item=st.sampled_from([plain(b"a"), plain(b"b"), *SIGNED]), cas=st.none() | st.integers(0, 3))
    def put(self, item: ImmutableItem | MutableItem, cas: int | None) -> None:
        current = self.current(item.target)
        refused = None
        if isinstance(item, MutableItem) and isinstance(current, MutableItem):
            if cas is not None and cas != current.seq:
                refused = 301
            elif item.seq < current.seq or (item.seq == current.seq and item.value != current.value):
                refused = 302
        if refused is not None:
            with pytest.raises(RejectedQuery) as caught:
                self.store.put(item, self.now, cas=cas, storer=FRIEND)
            assert caught.value.krpc_code == refused
            return
        self.store.put(item, self.now, cas=cas, storer=FRIEND)
        self.model[item.target] = (item, self.now + ITEM_TTL)

    @rule(seconds=st.floats(0.1, ITEM_TTL))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.store.expire(self.now)
        self.model = {target: kept for target, kept in self.model.items() if kept[1] > self.now}
        assert len(self.store) == len(self.model)

    @invariant()
    def agrees(self) -> None:
        for target in [*self.model, plain(b"c").target]:
            assert self.store.get(target, self.now) == self.current(target)
        assert sum(self.store._held.values()) == len(self.store)


TestItemStore = ItemStoreMachine.TestCase
TestItemStore.settings = settings(max_examples=40, stateful_step_count=30)
