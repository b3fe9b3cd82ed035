from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, distance, shared_prefix
from dht.routing import BAD_AFTER, BUCKET_SIZE, CACHE_SIZE, FORGET_AFTER, GOOD_FOR, RoutingTable
from tests.dht.strategies import V4_CONTACTS

OWN = NodeId(bytes(20))


def far(number: int) -> Contact:
    """A contact of the one bucket that shares no bit with us."""
    return Contact(NodeId(b"\x80" + bytes(17) + number.to_bytes(2, "big")), Endpoint(f"10.0.0.{number + 1}", 1000))


def full_table() -> RoutingTable:
    table = RoutingTable(OWN, 0.0)
    for number in range(BUCKET_SIZE):
        assert table.replied(far(number), float(number)) is None
    return table


def fail(table: RoutingTable, contact: Contact, times: int = BAD_AFTER) -> None:
    for _ in range(times):
        table.failed(contact.endpoint)


def test_only_who_answered_gets_in() -> None:
    table = RoutingTable(OWN, 0.0)
    assert table.noticed(far(0), 0.0) == far(0)
    assert len(table) == 0
    table.replied(far(0), 0.1)
    assert list(table) == [far(0)]
    assert table.noticed(far(0), 0.2) is None


def test_we_are_not_our_own_contact() -> None:
    table = RoutingTable(OWN, 0.0)
    us = Contact(OWN, Endpoint("10.0.0.1", 1))
    assert table.replied(us, 0.0) is None
    assert table.noticed(us, 0.0) is None
    assert len(table) == 0


def test_a_full_bucket_of_good_contacts_keeps_them_and_caches_the_newcomer() -> None:
    table = full_table()
    assert table.replied(far(20), 10.0) is None
    assert far(20) not in list(table)
    assert table.noticed(far(20), 11.0) is None  # it waits in the cache already
    assert table.noticed(far(21), 11.0) == far(21)


def test_a_full_bucket_asks_for_a_ping_of_a_contact_long_unheard() -> None:
    table = full_table()
    late = GOOD_FOR + 0.5  # only the first was heard that long ago
    assert table.replied(far(20), late) == far(0)
    table.replied(far(0), late)  # it lives, so it stays
    assert table.replied(far(21), late) is None
    assert far(0) in list(table)


def test_a_cached_contact_takes_the_place_of_a_bad_one() -> None:
    table = full_table()
    table.replied(far(20), 10.0)
    fail(table, far(3))
    assert far(3) not in list(table)
    assert far(20) in list(table)


def test_a_bad_contact_gives_way_to_a_newcomer() -> None:
    table = full_table()
    fail(table, far(3))
    assert table.replied(far(20), 10.0) is None
    assert far(20) in list(table)
    assert far(3) not in list(table)


def test_a_bad_contact_is_named_only_where_there_is_no_other_and_goes_in_the_end() -> None:
    table = RoutingTable(OWN, 0.0)
    table.replied(far(0), 0.0)
    assert not table.is_cut_off
    fail(table, far(0))
    assert table.is_cut_off
    assert table.closest(OWN) == [far(0)]
    table.replied(far(1), 0.0)
    assert table.closest(OWN) == [far(1)]
    fail(table, far(0), FORGET_AFTER - BAD_AFTER)
    assert list(table) == [far(1)]
    table.failed(Endpoint("10.9.9.9", 1))  # of no contact: nothing happens


def test_an_answer_forgives_failures() -> None:
    table = full_table()
    fail(table, far(3), BAD_AFTER - 1)
    table.replied(far(3), 1.0)
    fail(table, far(3), BAD_AFTER - 1)
    table.replied(far(20), 2.0)
    assert far(3) in list(table)


def test_a_restarted_node_replaces_its_former_id() -> None:
    table = full_table()
    reborn = Contact(NodeId(b"\x40" + bytes(19)), far(3).endpoint)
    table.replied(reborn, 10.0)
    assert reborn in list(table)
    assert far(3) not in list(table)


def test_a_known_id_cannot_be_taken_over_while_its_owner_answers() -> None:
    table = full_table()
    thief = Contact(far(3).node_id, Endpoint("10.6.6.6", 6))
    assert table.replied(thief, 10.0) is None
    assert far(3) in list(table)
    assert table.noticed(thief, GOOD_FOR + 100) == far(3)  # ask the owner, not the thief
    assert table.replied(thief, GOOD_FOR + 100) == far(3)
    fail(table, far(3))
    table.replied(thief, GOOD_FOR + 101)
    assert thief in list(table)


def test_a_contact_given_up_that_speaks_is_pinged() -> None:
    table = full_table()
    fail(table, far(3))
    assert table.noticed(far(3), 10.0) == far(3)


def test_stale_buckets_and_their_refresh() -> None:
    table = RoutingTable(OWN, 0.0)
    near = Contact(NodeId(b"\x10" + bytes(19)), Endpoint("10.0.0.9", 9))  # shares three bits
    table.replied(near, 0.0)
    assert table.stale_buckets(GOOD_FOR) == []
    assert table.stale_buckets(GOOD_FOR + 1) == [0, 1, 2, 3]
    for length in range(4):
        target = table.refresh_target(length, b"\xff" * 20, GOOD_FOR + 1)
        assert shared_prefix(OWN, target) == length
    assert table.stale_buckets(GOOD_FOR + 1) == []
    assert table.questionable(GOOD_FOR + 1) == [near]


@given(noise=st.binary(min_size=20, max_size=20), own=st.binary(min_size=20, max_size=20), length=st.integers(0, 159))
def test_refresh_targets_lie_in_their_bucket(noise: bytes, own: bytes, length: int) -> None:
    table = RoutingTable(NodeId(own), 0.0)
    assert shared_prefix(own, table.refresh_target(length, noise, 0.0)) == length


def test_under_another_id_contacts_keep_what_is_known_of_them() -> None:
    table = full_table()
    table.replied(far(20), 10.0)
    fail(table, far(2), BAD_AFTER - 1)
    assert (table.fill, table.replacements) == ((BUCKET_SIZE,), 1)
    table.move_to(NodeId(b"\x80" + bytes(19)), 20.0)
    assert len(table) == sum(table.fill) >= BUCKET_SIZE
    assert set(table) <= {*(far(n) for n in range(BUCKET_SIZE)), far(20)}
    assert far(2) in table.questionable(20.0)


def test_spares_are_pinged_after_a_while_and_forgotten_when_silent() -> None:
    table = full_table()
    table.replied(far(20), 10.0)
    assert table.spares(20.0) == []
    assert table.spares(GOOD_FOR + 20.0) == [far(20)]
    table.replied(far(20), GOOD_FOR + 20.0)
    assert table.spares(GOOD_FOR + 21.0) == []
    table.failed(far(20).endpoint)
    assert table.replacements == 0


@given(
    contacts=st.lists(V4_CONTACTS, max_size=60), target=st.binary(min_size=20, max_size=20), count=st.integers(1, 20)
)
def test_closest_equals_sorting_everything(contacts: list[Contact], target: bytes, count: int) -> None:
    table = RoutingTable(OWN, 0.0)
    for contact in contacts:
        table.replied(contact, 0.0)
    expected = sorted(table, key=lambda contact: distance(contact.node_id, target))[:count]
    assert table.closest(target, count) == expected


class TableMachine(RuleBasedStateMachine):
    """Whatever happens, buckets keep their bounds and every contact has answered from where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable(OWN, 0.0)
        self.now = 0.0
        self.proved: set[Contact] = set()

    contacts = st.builds(
        lambda head, number, host: Contact(
            NodeId(bytes([head]) + bytes(18) + bytes([number])), Endpoint(f"10.0.0.{host}", 1)
        ),
        st.sampled_from([0x80, 0x40, 0x20, 0]),
        st.integers(0, 20),
        st.integers(1, 30),
    )

    @rule(contact=contacts)
    def reply(self, contact: Contact) -> None:
        self.proved.add(contact)
        asked = self.table.replied(contact, self.now)
        assert asked is None or asked in list(self.table)

    @rule(contact=contacts)
    def query(self, contact: Contact) -> None:
        self.table.noticed(contact, self.now)

    @rule(contact=contacts)
    def failure(self, contact: Contact) -> None:
        self.table.failed(contact.endpoint)

    @rule(seconds=st.sampled_from([1.0, GOOD_FOR]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds(self) -> None:
        contacts = list(self.table)
        assert set(contacts) <= self.proved
        assert len({contact.endpoint for contact in contacts}) == len(contacts) == len(self.table)
        assert len({contact.node_id for contact in contacts}) == len(contacts)
        for bucket in self.table._buckets:
            assert len(bucket.entries) <= BUCKET_SIZE
            assert len(bucket.cache) <= CACHE_SIZE


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=25, stateful_step_count=50)
