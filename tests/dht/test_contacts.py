from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contacts import Contact, Endpoint, pack_contacts, unpack_contacts
from dht.keys import NodeId
from swarm.errors import ProtocolError
from tests.dht.strategies import V4_CONTACTS, V6_CONTACTS


@given(st.one_of(V4_CONTACTS, V6_CONTACTS))
def test_endpoints_survive_their_compact_form(contact: Contact) -> None:
    packed = contact.endpoint.pack()
    assert len(packed) == (18 if contact.endpoint.is_ipv6 else 6)
    assert Endpoint.unpack(packed) == contact.endpoint


@given(v4=st.lists(V4_CONTACTS, max_size=5), v6=st.lists(V6_CONTACTS, max_size=5))
def test_contacts_survive_their_compact_form(v4: list[Contact], v6: list[Contact]) -> None:
    assert list(unpack_contacts(pack_contacts(v4), ipv6=False)) == v4
    assert list(unpack_contacts(pack_contacts(v6), ipv6=True)) == v6


def test_an_endpoint_equals_a_sockets_address() -> None:
    assert Endpoint("127.0.0.1", 6881) == ("127.0.0.1", 6881)
    assert str(Endpoint("127.0.0.1", 6881)) == "127.0.0.1:6881"
    assert str(Endpoint("::1", 6881)) == "[::1]:6881"


@pytest.mark.parametrize("raw", [b"", b"12345", b"1234567", b"1234\0\0"])
def test_malformed_endpoints_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        Endpoint.unpack(raw)


def test_contacts_with_port_0_are_left_out_and_torn_ones_refused() -> None:
    good = Contact(NodeId(b"a" * 20), Endpoint("1.2.3.4", 5))
    dead = b"b" * 20 + b"\1\2\3\4\0\0"
    assert unpack_contacts(dead + good.pack() + dead, ipv6=False) == (good,)
    with pytest.raises(ProtocolError, match="whole number"):
        unpack_contacts(good.pack()[:-1], ipv6=False)
