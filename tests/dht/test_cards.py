from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.cards import CARD_SALT, MAX_SPANS, UINT32_MAX, Card, Reachability, SpanOffer
from dht.contacts import Endpoint
from dht.items import MAX_SALT, MAX_VALUE
from swarm.codec import decode, encode
from swarm.errors import ProtocolError, UsageError
from swarm.ids import ManifestId
from swarm.receipts import Price

PRICE = Price(per_1k_input=1, per_1k_output=2)
HERE = Endpoint("20.1.2.3", 7000)
UINT32 = st.integers(0, UINT32_MAX)
SPANS = st.builds(
    SpanOffer, manifest_id=st.binary(min_size=32, max_size=32).map(ManifestId), start=st.integers(0, 9),
    stop=st.integers(10, 0xFFFF), variant=st.sampled_from(["", "bf16", "q4"]),
    price=st.builds(Price, per_1k_input=UINT32, per_1k_output=UINT32), decode_rate=UINT32, free_positions=UINT32,
    queue=st.integers(0, 255),
)  # fmt: skip
CARDS = st.builds(
    Card, endpoints=st.just((HERE, Endpoint("2001:db8::1", 1))), reachability=st.sampled_from(Reachability),
    region=st.sampled_from(["", "de"]), spans=st.lists(SPANS, max_size=MAX_SPANS).map(tuple),
)  # fmt: skip


def span(number: int = 1, **changes: Any) -> SpanOffer:
    fields: dict[str, Any] = {"manifest_id": ManifestId(bytes([number]) * 32), "start": 0, "stop": 4, "price": PRICE}
    return SpanOffer(**(fields | changes))


@given(CARDS)
def test_what_is_packed_is_read_again(card: Card) -> None:
    raw = encode(card.value())
    assert len(raw) <= MAX_VALUE
    assert Card.read(decode(raw, limit=MAX_VALUE)) == card


def test_sizes() -> None:
    sizes = [
        len(encode(Card(endpoints=(HERE,), region="de", spans=tuple(map(span, range(count)))).value()))
        for count in (1, 4, 8, 16)
    ]
    assert sizes == [91, 263, 491, 947]
    three = (HERE, Endpoint("2001:db8::1", 1), Endpoint("20.9.9.9", 2))
    assert len(encode(Card(endpoints=three, spans=tuple(map(span, range(16)))).value())) <= MAX_VALUE
    assert len(CARD_SALT) <= MAX_SALT


def test_a_price_beyond_the_field_is_said_as_its_most() -> None:
    dear = span(price=Price(per_1k_input=2**40, per_1k_output=1))
    read = SpanOffer.unpack(dear.pack())
    assert read.price == Price(per_1k_input=UINT32_MAX, per_1k_output=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Card(endpoints=(), spans=()),
        lambda: Card(endpoints=(HERE,) * 4, spans=()),
        lambda: Card(endpoints=(HERE,), spans=tuple(map(span, range(17)))),
        lambda: Card(endpoints=(HERE,), spans=(), region="deu"),
        lambda: span(start=4),
        lambda: span(queue=256),
        lambda: span(decode_rate=2**32),
        lambda: span(variant="too long"),
    ],
)
def test_impossible_cards_are_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


VALUE = Card(endpoints=(HERE,), spans=(span(),)).value()


@pytest.mark.parametrize(
    "value",
    [
        b"text", [], {}, VALUE | {b"e": []}, VALUE | {b"e": [b"short"]}, VALUE | {b"e": 1}, VALUE | {b"r": b"x"},
        VALUE | {b"g": b"d"}, VALUE | {b"s": b"x"}, VALUE | {b"s": bytes(57)}, VALUE | {b"more": 1},
    ],
)  # fmt: skip
def test_another_value_is_no_card(value: Any) -> None:
    with pytest.raises(ProtocolError):
        Card.read(value)
