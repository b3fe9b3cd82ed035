"""A worker's service against clients that break the rules: each hurts its own session and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarm.errors import (
    BusyError,
    PaymentError,
    ProtocolError,
    SwarmError,
    UnavailableError,
    UnknownModelError,
    UsageError,
    VerificationError,
)
from swarm.failures import error_of
from swarm.ids import Address, ContentHash, ManifestId, PeerId
from swarm.messages import (
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Failure,
    GetObject,
    GetQuote,
    NeedCredit,
    OpenSession,
    QuoteReply,
    ReceiptAck,
    ReceiptOffer,
    Sampling,
    SessionClosed,
    StageRef,
    Tokens,
    pack_ids,
)
from swarm.objects import fetch_object
from swarm.receipts import WINDOW_TOKENS, Receipt
from swarm.records import Quote, SignedQuote
from tests.hostile import CAP, LAYERS, PROMPT, WHOLE, Hand, attacked, changed, open_hand, read_until, refusal, until
from tests.swarms import FREE, PRICE, open_local_swarm
from worker import ring, service
from worker.service import Service

BEGIN = Begin(0, 0)


def cost(tokens: int, layers: int = LAYERS) -> int:
    """What a call of the hand's costs at one stage."""
    return PRICE.amount(layers=layers, input_tokens=len(PROMPT), output_tokens=tokens)


# ---- openings that are refused ---------------------------------------------------------------------------------------


def forged(hand: Hand) -> OpenSession:
    return changed(hand.opening(), voucher_signature=hand.opening(voucher=4_999).voucher_signature)


def with_voucher(cumulative: int = 5_000, **changes: Any) -> Callable[[Hand], OpenSession]:
    return lambda hand: hand.opening(voucher=hand.voucher(cumulative, **changes))


def resigned(**changes: Any) -> Callable[[Hand], OpenSession]:
    """A quote that the worker did sign, and that does not hold here."""

    def make(hand: Hand) -> OpenSession:
        signed = replace(hand.quote().quote, **changes).sign(hand.worker().identity)
        return changed(hand.opening(), quote=signed.record, quote_signature=signed.signature)

    return make


def altered(hand: Hand) -> OpenSession:
    cheaper: Quote = replace(hand.quote().quote, price=FREE)
    return changed(hand.opening(), quote=cheaper.pack())


def of_another_worker(hand: Hand) -> OpenSession:
    other = hand.quote(1)
    return changed(hand.opening(), quote=other.record, quote_signature=other.signature)


def with_chain(*spans: tuple[int, int], index: int = 0, same: bool = False) -> Callable[[Hand], OpenSession]:
    """A chain of these spans over the workers in turn, or over strangers."""

    def make(hand: Hand) -> OpenSession:
        mine = hand.worker()
        others = [PeerId(bytes([n]) * 32) for n in range(len(spans))]
        chain = tuple(
            StageRef(mine.identity.peer_id if at == 0 or same else others[at], "127.0.0.1", mine.port, *span)
            for at, span in enumerate(spans)
        )
        return changed(hand.opening(), chain=chain, index=index)

    return make


def changing(**changes: Any) -> Callable[[Hand], OpenSession]:
    return lambda hand: changed(hand.opening(), **changes)


REFUSED: list[tuple[str, Callable[[Hand], OpenSession], type[SwarmError], str, bytes | None]] = [
    ("forged", forged, VerificationError, "", None),
    ("no voucher", changing(voucher=b"", voucher_signature=b""), PaymentError, "paid by voucher", None),
    ("half a voucher", changing(voucher=b"x" * 100), ProtocolError, "188 bytes", None),
    ("half a signature", changing(voucher_signature=b"x" * 63), ProtocolError, "64 bytes", None),
    ("another client", with_voucher(client=Address(b"?" * 20)), PaymentError, "no such channel", None),
    ("another worker", with_voucher(worker=Address(b"?" * 20)), VerificationError, "another chain", None),
    ("another contract", with_voucher(contract=Address(b"?" * 20)), VerificationError, "another chain", None),
    ("another chain", with_voucher(chain_id=2), VerificationError, "another chain", None),
    ("another epoch", with_voucher(epoch=2), PaymentError, "no such channel", None),
    ("above the allocation", with_voucher(cumulative=CAP + 1), PaymentError, f"holds {CAP}", None),
    ("other terms", with_voucher(terms=b"t" * 32), PaymentError, "other terms", None),
    ("another worker's quote", of_another_worker, VerificationError, "ask for a new one", None),
    ("altered quote", altered, VerificationError, "ask for a new one", None),
    ("no quote", changing(quote=b"de"), ProtocolError, "not a quote", None),
    ("old quote", resigned(issued=1_000, valid_until=1_100), VerificationError, "ask for a new one", None),
    (
        "quote from the future",
        resigned(issued=int(time.time()) + 10_000, valid_until=int(time.time()) + 10_100),
        VerificationError,
        "ask for a new one",
        None,
    ),
    ("quote for another model", resigned(manifest_id=ManifestId(b"x" * 32)), VerificationError, "another model", None),
    ("hole", with_chain((0, 3), (4, LAYERS)), ProtocolError, "cover layer 3", b""),
    ("overlap", with_chain((0, 5), (4, LAYERS)), ProtocolError, "cover layer 5", b""),
    ("late start", with_chain((1, LAYERS)), ProtocolError, "cover layer 0", None),
    ("empty stage", with_chain((0, 0), (0, LAYERS)), ProtocolError, "cover layer 0", b""),
    ("backwards", with_chain((0, LAYERS), (LAYERS, 4)), ProtocolError, "cover layer 8", b""),
    ("too short", with_chain((0, 7)), ProtocolError, "7 of 8 layers", None),
    ("too long", with_chain((0, 9)), ProtocolError, "9 of 8 layers", None),
    ("one worker twice", with_chain((0, 4), (4, LAYERS), same=True), ProtocolError, "one stage", b""),
    ("no such stage", with_chain((0, LAYERS), index=1), ProtocolError, "does not have", None),
    ("another's stage", with_chain((0, 4), (4, LAYERS), index=1), ProtocolError, "another worker's", None),
    ("too many positions", changing(max_tokens=5_000), ProtocolError, "context", None),
    ("prompt missing", changing(), ProtocolError, "0 prompt ids", b""),
    ("prompt too long", changing(), ProtocolError, "4 prompt ids", pack_ids([1, 2, 3, 4])),
    ("prompt cut off", changing(), ProtocolError, "no token ids", b"123"),
    ("prompt for the first stage", with_chain((0, 4), (4, LAYERS)), ProtocolError, "3 prompt ids", pack_ids(PROMPT)),
    ("no words", changing(), UsageError, "vocabulary", pack_ids([1, 2, 2**31])),
    ("no word to favour", changing(sampling=Sampling(logit_bias={2**31: 1.0})), UsageError, "vocabulary", None),
]


async def test_openings_that_are_refused(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        for name, make, kind, what, raw in REFUSED:
            error = await refusal(await hand.send(make(hand), raw))
            assert type(error) is kind, f"{name}: {error!r}"
            assert what in error.message, f"{name}: {error.message}"
            assert error.peer_id == hand.identity.peer_id, name
        assert hand.worker().ledger.accepted(hand.channel()) in (None, hand.voucher(5_000))
        assert hand.worker().ledger.receipts(hand.channel()) == []


async def test_what_a_worker_does_not_serve_is_no_fault_of_the_clients(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [(0, 6), WHOLE]) as swarm, open_hand(swarm) as hand:
        me = hand.worker().identity.peer_id
        error = await refusal(await hand.send(changed(hand.opening(), manifest_id=ManifestId(b"x" * 32))))
        assert type(error) is UnknownModelError
        error = await refusal(await hand.send(hand.opening(0), pack_ids(PROMPT)))
        assert type(error) is UnavailableError
        assert "0 to 6; ask for a new quote" in error.message
        assert error.peer_id == me
        error = await refusal(await hand.send(GetQuote(ManifestId(b"x" * 32))))
        assert type(error) is UnknownModelError
        error = await refusal(await hand.send(CloseSession(0)))
        assert type(error) is ProtocolError


async def test_a_session_id_is_used_once_also_when_both_come_at_once(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        opening = hand.opening()
        stream = await hand.open(opening)
        error = await refusal(await hand.send(opening))
        assert type(error) is ProtocolError
        assert "already open" in error.message
        await stream.send(CloseSession(0))
        await stream.expect(SessionClosed)
        twice = hand.opening(voucher=6_000)
        streams = [await hand.send(twice), await hand.send(twice)]
        outcomes: list[str] = []
        for each in streams:
            received = await each.receive()
            assert received is not None
            outcomes.append(type(received.message).__name__)
        assert sorted(outcomes) == ["Failure", "SessionOpened"]
        await streams[outcomes.index("SessionOpened")].send(CloseSession(0))


async def test_a_full_worker_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        monkeypatch.setattr(service, "MAX_SESSIONS", 1)
        stream = await hand.open()
        error = await refusal(await hand.send(hand.opening()))
        assert isinstance(error, BusyError)
        assert error.retry_after > 0
        await stream.send(CloseSession(0))
        await stream.expect(SessionClosed)
        await hand.open()


async def test_no_room_for_keys_and_values_frees_what_was_reserved(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE], price=FREE) as swarm, open_hand(swarm) as hand:
        free = hand.quote().quote.free_positions
        streams = []
        while True:
            stream = await hand.send(hand.opening(voucher=None, max_tokens=1_000))
            received = await stream.receive()
            assert received is not None
            if isinstance(received.message, Failure):
                assert received.message.code == "busy"
                break
            streams.append(stream)
        assert streams
        for stream in streams:
            await stream.send(CloseSession(0))
            await stream.expect(SessionClosed)
        assert hand.worker().candidate().signed.quote.free_positions == free


# ---- sessions that go wrong ------------------------------------------------------------------------------------------

Misdeed = Callable[[Hand, OpenSession], list[tuple[Any, bytes]]]


def credit(**changes: Any) -> Misdeed:
    def make(hand: Hand, _: OpenSession) -> list[tuple[Any, bytes]]:
        fields = dict(changes)
        signed = hand.voucher(fields.pop("cumulative", 6_000), nonce=2, **fields)
        return [(Credit(signed.voucher.pack(), signed.signature), b"")]

    return make


def forged_credit(hand: Hand, _: OpenSession) -> list[tuple[Any, bytes]]:
    return [(Credit(hand.voucher(6_000).voucher.pack(), hand.voucher(6_001).signature), b"")]


def saying(*messages: tuple[Any, bytes]) -> Misdeed:
    return lambda _hand, _opening: list(messages)


MISDEEDS: list[tuple[str, Misdeed, type[SwarmError], str]] = [
    ("begins twice", saying((BEGIN, pack_ids(PROMPT)), (BEGIN, pack_ids(PROMPT))), ProtocolError, "already begun"),
    ("begins in the future", saying((Begin(1, 0), pack_ids(PROMPT))), ProtocolError, "position 0 of its epoch"),
    ("begins in the middle", saying((Begin(0, 1), pack_ids(PROMPT))), ProtocolError, "position 0 of its epoch"),
    ("a short prompt", saying((BEGIN, pack_ids(PROMPT[:2]))), ProtocolError, "opened for 3 ids"),
    ("a long prompt", saying((BEGIN, pack_ids((*PROMPT, 1)))), ProtocolError, "opened for 3 ids"),
    ("no words", saying((BEGIN, pack_ids((1, 2, 2**31)))), ProtocolError, "vocabulary"),
    ("out of place", saying((GetQuote(ManifestId(b"x" * 32)), b"")), ProtocolError, "in a session"),
    ("a signature unasked", saying((ReceiptAck(bytes(64)), b"")), ProtocolError, "in a session"),
    ("forged credit", forged_credit, VerificationError, ""),
    ("credit under other terms", credit(terms=b"t" * 32), PaymentError, "other terms"),
    ("credit above the cap", credit(cumulative=CAP + 1), PaymentError, "holds"),
    ("credit elsewhere", credit(client=Address(b"x" * 20)), PaymentError, "another channel"),
    ("credit of another epoch", credit(epoch=2), PaymentError, "another channel"),
    ("credit on another chain", credit(chain_id=2), PaymentError, "another channel"),
]


async def test_sessions_that_go_wrong_end_with_the_client_named(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        for name, misdeed, kind, what in MISDEEDS:
            opening = hand.opening()
            stream = await hand.open(opening)
            for message, raw in misdeed(hand, opening):
                await stream.send(message, raw)
            error: SwarmError | None = None
            while error is None:  # what was computed is offered as a receipt first
                received = await stream.receive()
                assert received is not None, name
                match received.message:
                    case Failure():
                        error = error_of(received.message, stream.peer.peer_id)
                    case ReceiptOffer(record, _):
                        await stream.send(ReceiptAck(Receipt.unpack(record).sign(hand.identity)))
                    case _:
                        pass
            assert type(error) is kind, f"{name}: {error!r}"
            assert what in error.message, f"{name}: {error.message}"
            assert error.peer_id == hand.identity.peer_id, name


async def test_only_the_first_stage_begins(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        opening = hand.opening(1, 4)
        stream = await hand.open(opening, index=1)
        await stream.send(BEGIN, pack_ids(PROMPT))
        error = await refusal(stream)
        assert type(error) is ProtocolError
        assert error.peer_id == hand.identity.peer_id


async def test_a_replayed_voucher_adds_no_credit(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        enough = hand.voucher(cost(5))
        first = await hand.open(hand.opening(voucher=enough))
        await first.send(BEGIN, pack_ids(PROMPT))
        seen = await read_until(first, NeedCredit)
        assert sum(len(each.message.ids) for each in seen if isinstance(each.message, Tokens)) == 5
        assert seen[-1].message == NeedCredit(str(cost(6)))
        second = await hand.open(hand.opening(voucher=enough))
        await second.send(BEGIN, pack_ids(PROMPT))
        assert (await read_until(second, NeedCredit))[0].message == NeedCredit(str(cost(5) + cost(1)))
        for again in (enough, hand.voucher(cost(4))):  # itself and a lower one
            await first.send(Credit(again.voucher.pack(), again.signature))
            assert (await read_until(first, CreditAck))[-1].message == CreditAck(str(cost(5)))
        (account,) = [a for channel, a in hand.worker().service._accounts.items() if channel == hand.channel()]
        assert account.credit == 0
        # A higher one, on either session, is credit for both: nobody waits because another was asked.
        more = hand.voucher(cost(5) + cost(20), nonce=2)
        await first.send(Credit(more.voucher.pack(), more.signature))
        await read_until(second, Tokens)
        for stream in (first, second):
            await stream.send(CloseSession(1_000))
            await read_until(stream, ReceiptOffer)
            stream.reset()


@pytest.mark.parametrize("when", ["opened", "computing", "waiting for credit"])
async def test_a_client_that_vanishes_is_billed_and_forgotten(tmp_path: Path, when: str) -> None:
    async with attacked(tmp_path) as hand:
        async with open_hand(hand.swarm) as ghost:
            stream = await ghost.open(ghost.opening(voucher=cost(5), max_tokens=500))
            if when != "opened":
                await stream.send(BEGIN, pack_ids(PROMPT))
                await read_until(stream, Tokens if when == "computing" else NeedCredit)
        worker, channel = hand.worker(), ghost.channel()
        await until(lambda: not worker.service._accounts[channel].accrued)
        if when == "opened":
            assert worker.ledger.receipts(channel) == []
            return
        await until(lambda: len(worker.ledger.receipts(channel)) == 1)
        (stored,) = worker.ledger.receipts(channel)
        assert stored.client_signature is None
        assert 1 <= stored.receipt.output_tokens <= 5
        assert worker.ledger.earned(channel) == stored.receipt.amount == stored.receipt.due()


@pytest.mark.parametrize("answer", ["nothing", "forged", "another message", "leaves"])
async def test_a_client_that_does_not_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(ring, "RECEIPT_TIMEOUT", 0.1 if answer == "nothing" else 30.0)
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        stream = await hand.open(hand.opening(voucher=cost(5)))
        await stream.send(BEGIN, pack_ids(PROMPT))
        await read_until(stream, NeedCredit)
        await stream.send(CloseSession(5))
        await read_until(stream, ReceiptOffer)
        match answer:
            case "forged":
                await stream.send(ReceiptAck(bytes(64)))
            case "another message":
                await stream.send(BEGIN, pack_ids(PROMPT))
            case "leaves":
                stream.finish()
        if answer != "leaves":
            error = await refusal(stream)
            assert type(error) is (VerificationError if answer == "forged" else ProtocolError)
            assert error.peer_id == hand.identity.peer_id
        ledger = hand.worker().ledger
        await until(lambda: not hand.worker().service._sessions)
        (stored,) = ledger.receipts(hand.channel())
        assert stored.client_signature is None
        assert ledger.earned(hand.channel()) == cost(5)


@pytest.mark.parametrize(("claimed", "billed"), [(100, 100), (90, 90), (0, 100 - WINDOW_TOKENS), (10**6, 100)])
async def test_a_client_that_claims_less_than_it_had(tmp_path: Path, claimed: int, billed: int) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        stream = await hand.open(hand.opening(voucher=cost(100), max_tokens=200))
        await stream.send(BEGIN, pack_ids(PROMPT))
        await read_until(stream, NeedCredit)
        await stream.send(CloseSession(claimed))
        offer = (await read_until(stream, ReceiptOffer))[-1].message
        assert isinstance(offer, ReceiptOffer)
        receipt = Receipt.unpack(offer.record)
        receipt.verify(hand.worker().identity.peer_id, offer.signature)
        assert (receipt.output_tokens, receipt.amount) == (billed, cost(billed))
        await stream.send(ReceiptAck(receipt.sign(hand.identity)))
        await stream.expect(SessionClosed)
        (stored,) = hand.worker().ledger.receipts(hand.channel())
        assert stored.client_signature is not None


# ---- what is no session ----------------------------------------------------------------------------------------------


async def test_quotes_and_objects_are_served_to_anybody(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        peer = await hand.peer()
        reply, _ = await peer.request(GetQuote(swarm.published.signed.manifest_id), QuoteReply)
        signed = SignedQuote.read(reply.record, reply.signature, sender=peer.peer_id, now=time.time())
        assert (signed.quote.start, signed.quote.stop, signed.quote.price) == (*WHOLE, PRICE)
        for wanted, data in swarm.published.objects.items():
            assert await fetch_object(peer, wanted) == data
        with pytest.raises(UnavailableError, match="no object"):
            await fetch_object(peer, ContentHash(b"x" * 32))
        error = await refusal(await hand.send(GetObject(ContentHash(b"x" * 32))))
        assert type(error) is UnavailableError


async def test_a_price_needs_a_chain(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm:
        worker = swarm.workers[0]
        with pytest.raises(PaymentError, match="--chain, or --price 0"):
            Service(
                identity=worker.identity,
                signed=swarm.published.signed,
                objects={},
                engine=worker.engine,
                offer=service.Offer(start=0, stop=8, price=PRICE, decode_rate=1.0, prefill_rate=1.0),
                ledger=worker.ledger,
                settlement=None,
            )


async def test_a_worker_that_is_still_starting_opens_nothing(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        hand.worker().service.links = None
        error = await refusal(await hand.send(hand.opening()))
        assert type(error) is UnavailableError


async def test_a_raised_allocation_is_read_from_the_chain(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        await hand.open(hand.opening(voucher=CAP))
        hand.settlement.allocate({hand.worker().settlement.account: 2 * CAP})
        await hand.open(hand.opening(voucher=CAP + 1))
        hand.settlement.request_close(hand.worker().settlement.account)
        error = await refusal(await hand.send(hand.opening(voucher=2 * CAP + 1)))
        assert type(error) is PaymentError
        assert "being closed" in error.message


async def test_a_worker_counts_on_where_its_ledger_ends(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        stream = await hand.open(hand.opening(voucher=cost(5)))
        await stream.send(BEGIN, pack_ids(PROMPT))
        await read_until(stream, NeedCredit)
        stream.reset()
        await until(lambda: not hand.worker().service._sessions)
        hand.worker().service._accounts.clear()  # as after a restart
        stream = await hand.open(hand.opening(voucher=cost(5)))
        await stream.send(BEGIN, pack_ids(PROMPT))
        need = (await read_until(stream, NeedCredit))[-1].message
        assert need == NeedCredit(str(cost(5) + cost(1)))
