from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import messages
from swarm.errors import ProtocolError
from swarm.ids import CallId, ContentHash, ManifestId, PeerId, SessionId
from swarm.messages import (
    MAX_HEADER,
    AnyMessage,
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Failure,
    GetObject,
    GetQuote,
    Hello,
    Message,
    NeedCredit,
    ObjectPart,
    OpenLink,
    OpenSession,
    Proof,
    QuoteReply,
    ReceiptAck,
    ReceiptOffer,
    Sampling,
    SessionClosed,
    SessionOpened,
    StageRef,
    Step,
    Tokens,
    decode,
    encode,
)

PEER, SIGNATURE, SESSION = PeerId(b"P" * 32), b"S" * 64, SessionId(b"s" * 16)
SAMPLING = Sampling(0.5, 0.75, 40, 0.25, 7, 1.0, -1.0, 1.5, {3: -2.0}, 2)
OPENING = OpenSession(
    SESSION,
    CallId(b"c" * 16),
    ManifestId(b"m" * 32),
    (StageRef(PEER, "10.0.0.1", 4001, 0, 8),),
    0,
    1,
    12,
    34,
    b"r" * 32,
    b"quote",
    SIGNATURE,
    b"v" * 188,
    SIGNATURE,
    SAMPLING,
    (2,),
    "standard",
    "open",
)
P, S, Q = "c420" + "50" * 32, "c440" + "53" * 64, "c410" + "73" * 16
# One of each message with its bytes: the wire cannot change unnoticed.
GOLDEN: list[tuple[AnyMessage, str]] = [
    (Hello(b"n" * 32, agent="me"), f"94 01 c420{'6e' * 32} 01 a26d65"),
    (Proof(PEER, SIGNATURE, agent="me"), f"95 02 {P} {S} 01 a26d65"),
    (Failure("busy", "full", 1.5, PEER), f"95 03 a462757379 a466756c6c cb3ff8000000000000 {P}"),
    (GetObject(ContentHash(b"h" * 32)), f"92 0a c420{'68' * 32}"),
    (ObjectPart(300), "92 0b cd012c"),
    (GetQuote(ManifestId(b"m" * 32)), f"92 0c c420{'6d' * 32}"),
    (QuoteReply(b"record", SIGNATURE), f"93 0d c4067265636f7264 {S}"),
    (
        OPENING,
        f"dc0012 14 {Q} c410{'63' * 16} c420{'6d' * 32}"
        f"91 95 {P} a831302e302e302e31 cd0fa1 00 08"
        f"00 01 0c 22 c420{'72' * 32} c40571756f7465 {S} c4bc{'76' * 188} {S}"
        "9a cb3fe0000000000000 cb3fe8000000000000 28 cb3fd0000000000000 07"
        "cb3ff0000000000000 cbbff0000000000000 cb3ff8000000000000 81 03 cbc000000000000000 02"
        "91 02 a87374616e64617264 a46f70656e",
    ),
    (SessionOpened(4096), "92 15 cd1000"),
    (Begin(1, 2, 3), "94 16 01 02 03"),
    (Credit(b"v" * 188, SIGNATURE), f"93 17 c4bc{'76' * 188} {S}"),
    (CreditAck("12"), "92 18 a23132"),
    (NeedCredit("12"), "92 19 a23132"),
    (
        Tokens(1, 2, (3, 70000), "stop", ((-0.5, ((3, -0.5),)),)),
        "96 1a 01 02 92 03 ce00011170 a473746f7091 92 cbbfe0000000000000 91 92 03 cbbfe0000000000000",
    ),
    (CloseSession(9), "92 1b 09"),
    (ReceiptOffer(b"receipt", SIGNATURE), f"93 1c c40772656365697074 {S}"),
    (ReceiptAck(SIGNATURE), f"92 1d {S}"),
    (SessionClosed(), "91 1e"),
    (OpenLink(SESSION, 5), f"93 28 {Q} 05"),
    (Step(1, 200, 3, 1, 2), "96 29 01 ccc8 03 01 02"),
]
BY_NAME = {type(message).__name__: message for message, _ in GOLDEN}


def one_line(error: ProtocolError) -> None:
    assert "\n" not in error.message


def edited(message: Message, **changes: Any) -> bytes:
    """The bytes of a message with fields that its sender did not check."""
    return encode(msgspec.structs.replace(message, **changes))


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=list(BY_NAME))
def test_every_message_has_its_bytes(message: AnyMessage, data: str) -> None:
    assert encode(message).hex() == data.replace(" ", "")
    assert decode(bytes.fromhex(data)) == message


def test_the_golden_list_is_complete() -> None:
    assert set(BY_NAME) == {kind.__name__ for kind in get_args(AnyMessage)}
    assert len(BY_NAME) == len(GOLDEN)
    assert messages.VERSION == 1


def test_ids_come_back_as_ids() -> None:
    opening = decode(encode(OPENING))
    assert isinstance(opening, OpenSession)
    assert [type(opening.session_id), type(opening.call_id), type(opening.manifest_id)] == [
        SessionId,
        CallId,
        ManifestId,
    ]
    assert type(opening.chain[0].peer_id) is PeerId


@pytest.mark.parametrize("message", [message for message, _ in GOLDEN], ids=list(BY_NAME))
def test_fields_that_a_newer_version_appends_are_passed_over(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    assert decode(msgspec.msgpack.encode([*fields, {"new": [1, None]}, b"more"])) == message


def test_fields_that_an_older_version_lacks_have_their_defaults() -> None:
    assert decode(bytes.fromhex("9401") + b"\xc4\x20" + b"n" * 32 + b"\x01\xa0") == Hello(b"n" * 32)
    assert decode(bytes.fromhex("9429010203")) == Step(1, 2, 3)
    fields = msgspec.msgpack.decode(encode(OPENING))
    short = decode(msgspec.msgpack.encode(fields[:12]))
    assert isinstance(short, OpenSession)
    assert (short.voucher, short.sampling, short.stop_ids, short.audit) == (b"", Sampling(), (), "open")


@pytest.mark.parametrize(
    "data",
    [
        edited(OPENING, session_id=b"s" * 15),
        edited(OPENING, session_id=b"s" * 17),
        edited(OPENING, call_id=b""),
        edited(OPENING, manifest_id=b"m" * 31),
        edited(OPENING, manifest_id="m" * 32),
        edited(OPENING, chain=()),
        edited(OPENING, chain=OPENING.chain * 257),
        edited(OPENING, chain=(StageRef(PEER, "h" * 256, 1, 0, 1),)),
        edited(OPENING, chain=(StageRef(PEER, "h", 0, 0, 1),)),
        edited(OPENING, chain=(StageRef(PEER, "h", 65536, 0, 1),)),
        edited(OPENING, chain=(StageRef(PEER, "h", 1, -1, 1),)),
        edited(OPENING, prompt_tokens=0),
        edited(OPENING, max_tokens=2**31),
        edited(OPENING, request_hash=b"r" * 33),
        edited(OPENING, quote=bytes(2049)),
        edited(OPENING, quote_signature=bytes(63)),
        edited(OPENING, voucher=bytes(189)),
        edited(OPENING, stop_ids=(1,) * 65),
        edited(OPENING, stop_ids=(-1,)),
        edited(OPENING, stop_ids=(2**32,)),
        edited(OPENING, sampling=Sampling(temperature=math.nan)),
        edited(OPENING, sampling=Sampling(temperature=-0.1)),
        edited(OPENING, sampling=Sampling(top_p=0.0)),
        edited(OPENING, sampling=Sampling(top_p=math.nan)),
        edited(OPENING, sampling=Sampling(min_p=1.1)),
        edited(OPENING, sampling=Sampling(presence_penalty=math.nan)),
        edited(OPENING, sampling=Sampling(frequency_penalty=math.inf)),
        edited(OPENING, sampling=Sampling(repetition_penalty=0.0)),
        edited(OPENING, sampling=Sampling(repetition_penalty=math.inf)),
        edited(OPENING, sampling=Sampling(logit_bias={1: math.nan})),
        edited(OPENING, sampling=Sampling(logit_bias={-1: 1.0})),
        edited(OPENING, sampling=Sampling(logit_bias=dict.fromkeys(range(1025), 1.0))),
        edited(OPENING, sampling=Sampling(logprobs=21)),
        edited(OPENING, service_class="x" * 1025),
        edited(BY_NAME["Failure"], retry_after=math.nan),
        edited(BY_NAME["Failure"], retry_after=-1.0),
        edited(BY_NAME["Failure"], retry_after=math.inf),
        edited(BY_NAME["Failure"], culprit=bytes(33)),
        edited(BY_NAME["Proof"], peer_id=b"P" * 33),
        edited(BY_NAME["Proof"], signature=bytes(65)),
        edited(BY_NAME["Hello"], nonce=bytes(31)),
        edited(BY_NAME["Hello"], version=-1),
        edited(BY_NAME["ObjectPart"], size=messages.MAX_OBJECT + 1),
        edited(BY_NAME["Credit"], voucher=bytes(187)),
        edited(BY_NAME["Tokens"], ids=(-1,)),
        edited(BY_NAME["Tokens"], logprobs=((math.nan, ()),)),
        edited(BY_NAME["Step"], count=0),
        edited(BY_NAME["Step"], count=65537),
        edited(BY_NAME["Step"], kind=2),
        edited(BY_NAME["Step"], flags=256),
        edited(BY_NAME["Step"], position=2**64 - 1),
    ],
)
def test_values_outside_their_limits_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message of the peer protocol"):
        decode(data)


A32, M32, HUGE = "ddffffffff", "dfffffffff", "ffffffff"
BOMBS = {
    "empty": "",
    "not an array": "01",
    "no tag": "90",
    "unknown tag": "9163",
    "negative tag": "91ff",
    "tag of another type": "91a13a",
    "a field too few": "920b",
    "a field of the wrong type": "920bc0",
    "a null id": "920ac0",
    "an array for an id": "920a90",
    "a timestamp for an id": "920ad6ff00000000",
    "an extension for an id": "920ad40100",
    "two messages": "911e911e",
    "cut short": "9229",
    "a reserved byte": "c1",
    "an outer array of 4 G": A32 + "1a",
    "4 G ids of tokens": "941a0000" + A32,
    "4 G entries for an id": "920a" + A32,
    "4 G pairs for an id": "920a" + M32,
    "4 G bytes for an id": "920ac6" + HUGE,
    "4 G characters": "9518db" + HUGE,
    "4 G of an extension": "920ac9" + HUGE + "01",
    "4 G entries appended": "931e" + A32,
    "arrays in arrays": "920a" + "91" * 200_000,
    "maps in maps": "920a" + "81a161" * 200_000,
    "arrays in arrays, appended": "981e" + "91" * 200_000,
    "large arrays in large arrays": "920a" + "dd000f0000" * 900 + "c0" * 0xF0000,
    "bad UTF-8": "9218a2c328",
    "an integer of 64 bits": "921bcfffffffffffffffff",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_in_little_memory(data: str) -> None:
    bomb = bytes.fromhex(data)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="not a message of the peer protocol") as caught:
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    one_line(caught.value)


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match=rf"a message of {MAX_HEADER + 1} bytes is over the limit of {MAX_HEADER}"):
        decode(bytes(MAX_HEADER + 1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError as error:
        one_line(error)
    else:
        assert decode(encode(message)) == message


@given(st.sampled_from([message for message, _ in GOLDEN]), st.data())
def test_mutated_messages_are_a_message_or_a_protocol_error(message: AnyMessage, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        changed = decode(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except ProtocolError:
        return
    assert decode(encode(changed)) == changed


def fields_without_limit(kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    """Strings, byte strings and integers that a message could grow without an own limit."""
    match kind:
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield from fields_without_limit(field.type, f"{path}.{field.name}")
        case msgspec.inspect.VarTupleType():
            yield from fields_without_limit(kind.item_type, f"{path}[]")
        case msgspec.inspect.TupleType():
            for item in kind.item_types:
                yield from fields_without_limit(item, f"{path}[]")
        case msgspec.inspect.DictType():
            yield from () if kind.max_length is not None else (path,)
            yield from fields_without_limit(kind.key_type, f"{path}[]")
            yield from fields_without_limit(kind.value_type, f"{path}[]")
        case msgspec.inspect.StrType() | msgspec.inspect.BytesType():
            yield from () if kind.max_length is not None else (path,)
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            yield from () if kind.le is not None else (path,)
        case msgspec.inspect.CustomType():
            yield from () if issubclass(kind.cls, PeerId.__mro__[1]) else (path,)
        case _:
            yield f"{path}: {kind}"


@pytest.mark.parametrize("kind", get_args(AnyMessage), ids=list(BY_NAME))
def test_every_field_has_a_limit(kind: type[Message]) -> None:
    assert list(fields_without_limit(msgspec.inspect.type_info(kind), kind.__name__)) == []
