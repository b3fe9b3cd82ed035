from __future__ import annotations

import pytest
from hypothesis import given

from dht.errors import RejectedQuery
from dht.items import (
    ImmutableItem,
    MutableItem,
    encode_value,
    item_from_put,
    item_from_reply,
    mutable_target,
    sign_item,
    signed_bytes,
)
from dht.keys import Target
from dht.queries import Put
from dht.replies import Reply
from swarm.codec import Value, encode
from swarm.errors import UsageError
from swarm.identity import Identity
from swarm.ids import PeerId
from tests.dht.strategies import VALUES

KEY = Identity(b"\x05" * 32)

# BEP 44's vectors 1 and 2: salt, what is signed, target, signature.
VECTOR_KEY = PeerId.parse("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548")
VECTORS = [
    (
        b"",
        b"3:seqi1e1:v12:Hello World!",
        "4a533d47ec9c7d95b1ad75f576cffc641853b750",
        "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff"
        "1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01",
    ),
    (
        b"foobar",
        b"4:salt6:foobar3:seqi1e1:v12:Hello World!",
        "411eba73b6f087ca51a3795d9c8c938d365e32c1",
        "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d"
        "df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08",
    ),
]


@pytest.mark.parametrize(("salt", "signed", "target", "signature"), VECTORS)
def test_bep_44_mutable_vectors(salt: bytes, signed: bytes, target: str, signature: str) -> None:
    encoded = encode(b"Hello World!")
    assert signed_bytes(salt, 1, encoded) == signed
    item = MutableItem(public_key=VECTOR_KEY, seq=1, encoded=encoded, signature=bytes.fromhex(signature), salt=salt)
    assert item.target.hex() == target
    assert item.is_authentic()
    assert item_from_put(item.put(b"token")) == item


def test_bep_44_immutable_vector() -> None:
    item = ImmutableItem(encoded=encode(b"Hello World!"))
    assert item.target.hex() == "e5f96f6f38320f0f33959cb4d3d656452117aadb"


@given(value=VALUES)
def test_signed_items_are_authentic_and_survive_put_and_reply(value: Value) -> None:
    item = sign_item(KEY, value, salt=b"salt", seq=7)
    assert item.value == value
    assert item.is_authentic()
    assert item_from_put(item.put(b"t")) == item
    assert item_from_reply(item.reply(), item.target, b"salt") == item
    plain = ImmutableItem(encoded=encode(value))
    assert item_from_put(plain.put(b"t")) == plain
    assert item_from_reply(plain.reply(), plain.target) == plain


def put_of(item: MutableItem, **changes: object) -> Put:
    fields = {
        "token": b"t", "value": item.value, "public_key": item.public_key, "salt": item.salt, "seq": item.seq,
        "signature": item.signature,
    }  # fmt: skip
    return Put(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"value": b"x" * 997}, 205),
        ({"value": b"other"}, 206),
        ({"seq": 8}, 206),
        ({"salt": b"other"}, 206),
        ({"signature": bytes(64)}, 206),
        ({"public_key": bytes(32)}, 206),
        ({"salt": b"s" * 65}, 207),
        ({"signature": None}, 203),
    ],
)
def test_puts_that_break_the_rules(changes: dict[str, object], code: int) -> None:
    item = sign_item(KEY, b"value", salt=b"salt", seq=7)
    with pytest.raises(RejectedQuery) as caught:
        item_from_put(put_of(item, **changes))
    assert caught.value.krpc_code == code


def test_the_largest_value_and_salt_fit() -> None:
    item = sign_item(KEY, b"x" * 996, salt=b"s" * 64, seq=2**63 - 1)
    assert len(item.encoded) == 1000
    assert item_from_put(item.put(b"t")) == item


def test_local_values_that_cannot_be_carried_are_refused() -> None:
    deep: Value = []
    for _ in range(31):
        deep = [deep]
    for value in (b"x" * 997, deep, "text"):
        with pytest.raises(UsageError):
            encode_value(value)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="salt"):
        sign_item(KEY, b"v", salt=b"s" * 65, seq=1)
    with pytest.raises(UsageError, match="sequence"):
        sign_item(KEY, b"v", seq=-1)


def test_replies_that_do_not_belong_there_carry_nothing() -> None:
    item = sign_item(KEY, b"value", salt=b"salt", seq=7)
    elsewhere = Target(bytes(20))
    assert item_from_reply(Reply(), item.target) is None
    assert item_from_reply(item.reply(), elsewhere, b"salt") is None
    assert item_from_reply(item.reply(), item.target, b"other") is None
    assert item_from_reply(Reply(value=b"v"), elsewhere) is None
    assert item_from_reply(Reply(value=b"x" * 1100), Target.of_content(encode(b"x" * 1100))) is None
    assert mutable_target(KEY.peer_id, b"salt") == item.target
