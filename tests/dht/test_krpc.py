from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.keys import NodeId, Target
from dht.krpc import MAX_RECEIVED, ErrorPacket, Packet, QueryPacket, ReplyPacket, parse
from dht.queries import AnnouncePeer, Family, FindNode, GetPeers, Ping, UnknownQuery
from dht.replies import Reply, Samples
from swarm.codec import encode
from swarm.errors import ProtocolError
from tests.dht.strategies import PACKETS

ASKER = NodeId(b"abcdefghij0123456789")
OTHER = b"mnopqrstuvwxyz123456"

BEP_5: list[tuple[bytes, Packet]] = [
    (
        b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe",
        QueryPacket(transaction=b"aa", sender=ASKER, query=Ping()),
    ),
    (
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re",
        ReplyPacket(transaction=b"aa", sender=NodeId(OTHER), reply=Reply()),
    ),
    (
        b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe",
        QueryPacket(transaction=b"aa", sender=ASKER, query=FindNode(target=Target(OTHER))),
    ),
    (
        b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe",
        QueryPacket(transaction=b"aa", sender=ASKER, query=GetPeers(info_hash=Target(OTHER))),
    ),
    (
        b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re",
        ReplyPacket(
            transaction=b"aa",
            sender=ASKER,
            reply=Reply(
                token=b"aoeusnth", peers=(Endpoint("97.120.106.101", 11893), Endpoint("105.100.104.116", 28269))
            ),
        ),
    ),
    (
        b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti6881e"
        b"5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe",
        QueryPacket(
            transaction=b"aa",
            sender=ASKER,
            query=AnnouncePeer(info_hash=Target(OTHER), port=6881, token=b"aoeusnth", implied_port=True),
        ),
    ),
    (
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re",
        ReplyPacket(transaction=b"aa", sender=NodeId(OTHER), reply=Reply()),
    ),
    (
        b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee",
        ErrorPacket(transaction=b"aa", error_code=201, message="A Generic Error Ocurred"),
    ),
]


@pytest.mark.parametrize(("raw", "packet"), BEP_5)
def test_bep_5_packets(raw: bytes, packet: Packet) -> None:
    assert parse(raw) == packet
    assert packet.pack() == raw


@given(PACKETS)
def test_round_trip(packet: Packet) -> None:
    raw = packet.pack()
    if len(raw) <= MAX_RECEIVED:
        assert parse(raw) == packet


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(raw)


@given(packet=PACKETS, data=st.data())
def test_flipped_bytes_parse_or_are_refused(packet: Packet, data: st.DataObject) -> None:
    raw = bytearray(packet.pack()[:MAX_RECEIVED])
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = parse(bytes(raw))
    except ProtocolError:
        return
    assert again.transaction


@pytest.mark.parametrize(
    "raw",
    [
        b"le",
        b"d1:t2:aa1:y1:xe",
        b"d1:t2:aae",
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t0:1:y1:re",  # no transaction
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t33:" + b"t" * 33 + b"1:y1:re",
        b"d1:rd2:id20:mnopqrstuvwxyz1234565:nodes3:abce1:t2:aa1:y1:re",
        b"d1:rd2:id19:mnopqrstuvwxyz12345e1:t2:aa1:y1:re",
        b"d1:y1:r1:t2:aa1:rd2:id20:mnopqrstuvwxyz123456ee",  # keys out of order
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:reX",
        b"d1:t2:aa1:v2048:" + b"x" * 2048 + b"1:y1:re",
    ],
)
def test_what_deserves_no_answer(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(raw)
    assert not isinstance(caught.value, RejectedQuery)


ID = b"abcdefghij0123456789"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (b"ping", {}),
        (b"ping", {b"id": b"short"}),
        (b"find_node", {b"id": ID}),
        (b"find_node", {b"id": ID, b"target": b"short"}),
        (b"get_peers", {b"id": ID, b"info_hash": 7}),
        (b"announce_peer", {b"id": ID, b"info_hash": ID, b"port": 0, b"token": b"t"}),
        (b"announce_peer", {b"id": ID, b"info_hash": ID, b"port": 65536, b"token": b"t"}),
        (b"announce_peer", {b"id": ID, b"info_hash": ID, b"port": 1}),
        (b"get", {b"id": ID, b"target": ID, b"seq": -1}),
        (b"put", {b"id": ID, b"token": b"t"}),
        (b"put", {b"id": ID, b"token": b"t", b"v": 1, b"k": b"k" * 32, b"seq": 1}),
        (b"put", {b"id": ID, b"token": b"t", b"v": 1, b"k": b"k" * 31, b"seq": 1, b"sig": b"s" * 64}),
        (b"put", {b"id": ID, b"token": b"t", b"v": 1, b"k": b"k" * 32, b"seq": 2**63, b"sig": b"s" * 64}),
        (b"x" * 33, {b"id": ID}),
    ],
)
def test_broken_queries_carry_their_transaction(method: bytes, arguments: dict[bytes, object]) -> None:
    with pytest.raises(RejectedQuery) as caught:
        parse(encode({b"a": arguments, b"q": method, b"t": b"tx", b"y": b"q"}))
    assert caught.value.krpc_code == 203
    assert caught.value.transaction == b"tx"


def test_a_query_without_arguments_is_rejected() -> None:
    with pytest.raises(RejectedQuery, match="arguments"):
        parse(b"d1:q4:ping1:t2:aa1:y1:qe")


def test_an_unknown_method_keeps_its_target() -> None:
    for key in (b"target", b"info_hash"):
        packet = parse(encode({b"a": {b"id": ID, key: OTHER}, b"q": b"vote", b"t": b"tx", b"y": b"q"}))
        assert isinstance(packet, QueryPacket)
        assert packet.query == UnknownQuery(method=b"vote", target=Target(OTHER))


def test_an_error_that_also_carries_a_reply_is_an_error() -> None:
    raw = encode({b"e": [203, b"no"], b"r": {b"id": ID}, b"t": b"tx", b"y": b"e"})
    assert parse(raw) == ErrorPacket(transaction=b"tx", error_code=203, message="no")


def test_a_malformed_error_is_still_an_error() -> None:
    for body in ([], [b"x", 1], 5):
        packet = parse(encode({b"e": body, b"t": b"tx", b"y": b"e"}))
        assert packet == ErrorPacket(transaction=b"tx", error_code=201)


def test_one_bad_address_does_not_spoil_the_others() -> None:
    body = {b"id": ID, b"values": [b"bad", b"axje.u", 7, b"1234\0\0"]}
    packet = parse(encode({b"ip": b"odd", b"r": body, b"t": b"tx", b"y": b"r"}))
    assert isinstance(packet, ReplyPacket)
    assert packet.reply.peers == (Endpoint("97.120.106.101", 11893),)
    assert packet.external is None


def test_the_forms_of_scrapes_samples_and_wants() -> None:
    scrape = GetPeers(info_hash=Target(b"h" * 20), scrape=True, want=(Family.IPV4, Family.IPV6))
    packet = QueryPacket(transaction=b"aa", sender=NodeId(b"i" * 20), query=scrape)
    form = b"d1:ad2:id20:%s9:info_hash20:%s6:scrapei1e4:wantl2:n42:n6ee1:q9:get_peers1:t2:aa1:y1:qe"
    assert packet.pack() == form % (b"i" * 20, b"h" * 20)
    assert parse(packet.pack()) == packet
    samples = Samples(info_hashes=(Target(b"x" * 20), Target(b"y" * 20)), total=9, interval=60)
    reply = ReplyPacket(transaction=b"aa", sender=NodeId(b"i" * 20), reply=Reply(samples=samples))
    form = b"d1:rd2:id20:%s8:intervali60e3:numi9e7:samples40:%s%se1:t2:aa1:y1:re"
    assert reply.pack() == form % (b"i" * 20, b"x" * 20, b"y" * 20)
    assert parse(reply.pack()) == reply


@pytest.mark.parametrize("body", [b"4:BFsd3:abc", b"7:samples21:" + b"s" * 21, b"7:samplesi1e"])
def test_broken_filters_and_samples_are_refused(body: bytes) -> None:
    head, tail = (body, b"") if body < b"2:id" else (b"", body)
    with pytest.raises(ProtocolError):
        parse(b"d1:rd" + head + b"2:id20:" + b"i" * 20 + tail + b"e1:t2:aa1:y1:re")
