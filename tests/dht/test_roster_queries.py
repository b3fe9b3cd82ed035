from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import RejectedQuery
from dht.keys import NodeId, Target
from dht.krpc import QueryPacket, ReplyPacket, parse
from dht.replies import Reply
from dht.roster import Filter, Shard, roster_target
from dht.roster_queries import CapGet, CapPut, RosterReply
from swarm.codec import encode
from tests.dht.adverts import MODEL, put_of, signed

TARGET = Target(b"t" * 20)
FILTERS = st.builds(
    Filter,
    span=st.none() | st.tuples(st.integers(0, 9), st.integers(10, 0xFFFF)),
    whole=st.booleans(),
    most_price=st.none() | st.integers(0, 2**64 - 1),
    region=st.sampled_from(["", "de", "x"]),
    how_many=st.integers(0, 16),
)


def sent(query: CapGet | CapPut) -> object:
    packet = parse(QueryPacket(transaction=b"tttt", sender=NodeId(b"n" * 20), query=query).pack())
    assert isinstance(packet, QueryPacket)
    return packet.query


@given(FILTERS)
def test_questions_arrive_as_they_were_asked(wanted: Filter) -> None:
    query = CapGet(target=TARGET, wanted=wanted)
    assert sent(query) == query


def test_a_question_and_an_entry_fit_small_datagrams() -> None:
    put = put_of(1, depth=3)
    assert sent(put) == put
    packet = QueryPacket(transaction=b"tttt", sender=NodeId(b"n" * 20), query=put)
    assert len(packet.pack()) < 330


def arguments(base: dict[bytes, Any], **changes: Any) -> bytes:
    filled = base | {b"id": b"n" * 20} | {key.encode(): value for key, value in changes.items()}
    return encode({key: value for key, value in filled.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"h": None}, {"h": -1}, {"h": b"8"}, {"s": [1]}, {"s": [4, 4]}, {"s": [b"a", b"b"]}, {"s": 3},
        {"s": [0, 70000]}, {"p": -1}, {"p": b""}, {"g": b"d"}, {"g": b"\0d"}, {"g": b"deu"}, {"g": 1},
        {"target": b"short"}, {"target": None},
    ],
)  # fmt: skip
def test_malformed_questions_earn_an_error(changes: dict[str, Any]) -> None:
    body = arguments(CapGet(target=TARGET, wanted=Filter()).arguments(), **changes)
    with pytest.raises(RejectedQuery):
        parse(b"d1:a" + body + b"1:q7:cap_get1:t1:t1:y1:qe")


@pytest.mark.parametrize(
    "changes",
    [
        {"e": None}, {"e": b"x" * 161}, {"m": b"short"}, {"x": b"\0"}, {"x": b"\1\0\2"}, {"token": b"x" * 65},
        {"token": None}, {"target": roster_target(MODEL, Shard(1, 0))},
    ],
)  # fmt: skip
def test_malformed_entries_earn_an_error(changes: dict[str, Any]) -> None:
    body = arguments(put_of(1).arguments(), **changes)
    with pytest.raises(RejectedQuery):
        parse(b"d1:a" + body + b"1:q7:cap_put1:t1:t1:y1:qe")


def test_answers_arrive_as_they_were_given() -> None:
    roster = RosterReply(entries=(signed(1).raw, signed(2).raw), count=300, depth=4)
    packet = ReplyPacket(transaction=b"t", sender=NodeId(b"n" * 20), reply=Reply(roster=roster, token=b"k"))
    assert parse(packet.pack()) == packet
    assert roster.without_last().entries == roster.entries[:1]


def test_bad_entries_in_an_answer_do_not_spoil_the_others() -> None:
    read = RosterReply.read({b"cap": [b"x" * 161, 3, b"e", *[b"f"] * 40], b"n": 7, b"d": 0})
    assert read is not None
    assert read.entries == (b"e", *[b"f"] * 29)
    assert RosterReply.read({}) is None
