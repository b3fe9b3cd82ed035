"""A stage on the wire: neighbours that break the rules, calls that end while they are computed, money that wakes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from swarm.errors import ClosedError, ProtocolError, SwarmError, UnavailableError, UnreachableError
from swarm.events import Received
from swarm.failures import error_of
from swarm.identity import Identity
from swarm.ids import PeerId, SessionId
from swarm.links import Links, open_links
from swarm.messages import (
    STEP_HIDDEN,
    STEP_SAMPLE,
    STEP_TOKENS,
    Begin,
    CloseSession,
    Failure,
    OpenLink,
    OpenSession,
    ReceiptAck,
    ReceiptOffer,
    SessionClosed,
    StageRef,
    Step,
    Tokens,
    pack_ids,
)
from swarm.peer import Peer, Stream
from swarm.receipts import Receipt
from tests.hostile import LAYERS, PROMPT, WHOLE, Hand, attacked, changed, open_hand, read_until, refusal, until
from tests.swarms import FREE, open_local_swarm
from worker import ring

BEGIN = Begin(0, 0)


class Mole:
    """A neighbour in the chain that is no worker: it sends what a test says, and keeps what it is sent."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.links: Links | None = None
        self.steps: list[Received] = []
        self.refuses = False

    async def handle(self, peer: Peer, stream: Stream, request: Received) -> None:
        """Take a link."""
        assert isinstance(request.message, OpenLink), peer.peer_id
        if self.refuses:
            raise UnavailableError("no such session here")
        while (received := await stream.receive()) is not None:
            self.steps.append(received)

    async def link(self, hand: Hand, session: SessionId) -> Stream:
        """A link to the worker for this session."""
        assert self.links is not None
        worker = hand.worker()
        peer = await self.links.connect("127.0.0.1", worker.port, worker.identity.peer_id)
        stream = peer.open_stream()
        await stream.send(OpenLink(session, 0))
        return stream


@asynccontextmanager
async def open_mole() -> AsyncIterator[Mole]:
    """A mole with connections of its own."""
    mole = Mole()
    async with open_links(mole.identity, mole.handle) as links:
        mole.links = links
        yield mole


def after(mole: Mole, hand: Hand, **changes: Any) -> OpenSession:
    """The opening of the worker's stage behind the mole's."""
    worker = hand.worker()
    chain = (
        StageRef(mole.identity.peer_id, "127.0.0.1", 1, 0, 4),
        StageRef(worker.identity.peer_id, "127.0.0.1", worker.port, 4, LAYERS),
    )
    return changed(hand.opening(), index=1, chain=chain, **changes)


def before(mole: Mole, hand: Hand) -> OpenSession:
    """The opening of the worker's stage in front of the mole's, which is the last."""
    worker = hand.worker()
    chain = (
        StageRef(worker.identity.peer_id, "127.0.0.1", worker.port, 0, 4),
        StageRef(mole.identity.peer_id, "127.0.0.1", 1, 4, LAYERS),
    )
    return hand.opening(chain=chain)


async def outcome(hand: Hand, stream: Stream) -> SwarmError:
    """What a session failed with, its receipt signed if there is one."""
    while True:
        received = await stream.receive()
        assert received is not None
        match received.message:
            case Failure() as failure:
                return error_of(failure, stream.peer.peer_id)
            case ReceiptOffer(record, _):
                await stream.send(ReceiptAck(Receipt.unpack(record).sign(hand.identity)))
            case _:
                pass


def row_bytes(hand: Hand) -> int:
    """The size of one position's activations."""
    return hand.swarm.published.signed.manifest.row_bytes


NAN = b"\0\0\xc0\x7f"  # in fp32, little-endian


async def test_steps_that_break_the_rules_name_the_neighbour(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand, open_mole() as mole:
        size = row_bytes(hand)
        good, end = bytes(3 * size), STEP_SAMPLE
        cases: list[tuple[str, Any, bytes, str]] = [
            ("a future epoch", Step(1, 0, 3, STEP_HIDDEN, end), good, "epoch 1"),
            ("a future position", Step(0, 3, 1, STEP_HIDDEN, end), bytes(size), "position 3"),
            ("beyond what is reserved", Step(0, 0, 60, STEP_HIDDEN, end), bytes(60 * size), "reserved"),
            ("ids for activations", Step(0, 0, 3, STEP_TOKENS, end), pack_ids(PROMPT), "the other way round"),
            ("too few bytes", Step(0, 0, 3, STEP_HIDDEN, end), bytes(size), "bytes for 3 positions"),
            ("too many bytes", Step(0, 0, 3, STEP_HIDDEN, end), bytes(4 * size), "bytes for 3 positions"),
            ("no draw", Step(0, 0, 3, STEP_HIDDEN, 0), good, "flags 0"),
            ("an early draw", Step(0, 0, 2, STEP_HIDDEN, end), bytes(2 * size), "flags 2"),
            ("no numbers", Step(0, 0, 3, STEP_HIDDEN, end), NAN * (len(good) // 4), "not finite"),
            ("no step", OpenLink(SessionId(bytes(16)), 0), b"", "no step"),
        ]
        for name, message, raw, what in cases:
            opening = after(mole, hand)
            control = await hand.open(opening)
            link = await mole.link(hand, opening.session_id)
            await link.send(message, raw)
            error = await outcome(hand, control)
            assert type(error) is ProtocolError, f"{name}: {error!r}"
            assert what in error.message, f"{name}: {error.message}"
            assert error.peer_id == mole.identity.peer_id, name


async def test_ids_from_the_last_stage_that_break_the_rules_name_it(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand, open_mole() as mole:
        cases: list[tuple[str, bool, Step, bytes, str]] = [
            ("before it began", False, Step(0, 0, 3, STEP_TOKENS, STEP_SAMPLE), pack_ids(PROMPT), "the client's"),
            ("the prompt again", True, Step(0, 0, 3, STEP_TOKENS, STEP_SAMPLE), pack_ids(PROMPT), "the client's"),
            ("two at once", True, Step(0, 3, 2, STEP_TOKENS, STEP_SAMPLE), pack_ids((1, 2)), "2 positions at once"),
            ("no word", True, Step(0, 3, 1, STEP_TOKENS, STEP_SAMPLE), pack_ids((2**31,)), "vocabulary"),
        ]
        for name, begun, step, raw, what in cases:
            opening = before(mole, hand)
            link = None
            if not begun:
                assert mole.links is not None
                await mole.links.connect("127.0.0.1", hand.worker().port, hand.worker().identity.peer_id)
            else:
                link = await mole.link(hand, SessionId(os.urandom(16)))  # the connection; the link is for nobody
                assert type(await refusal(link)) is UnavailableError
            control = await hand.open(opening)
            if begun:
                mole.steps.clear()
                await control.send(BEGIN, pack_ids(PROMPT))
                await until(lambda: bool(mole.steps))
            link = await mole.link(hand, opening.session_id)
            await link.send(step, raw)
            error = await outcome(hand, control)
            assert type(error) is ProtocolError, f"{name}: {error!r}"
            assert what in error.message, f"{name}: {error.message}"
            assert error.peer_id == mole.identity.peer_id, name


async def test_strangers_links_hurt_nobody(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand, open_mole() as mole, open_mole() as stranger:
        opening = after(mole, hand)
        control = await hand.open(opening)
        error = await refusal(await stranger.link(hand, opening.session_id))
        assert type(error) is ProtocolError
        assert error.peer_id == stranger.identity.peer_id
        link = await mole.link(hand, opening.session_id)
        await link.send(Step(0, 0, 3, STEP_HIDDEN, STEP_SAMPLE), bytes(3 * row_bytes(hand)))
        await read_until(control, Tokens)
        error = await refusal(await mole.link(hand, opening.session_id))  # one is enough
        assert type(error) is ProtocolError
        error = await refusal(await mole.link(hand, SessionId(bytes(16))))
        assert type(error) is UnavailableError
        await control.send(CloseSession(1))
        offer = (await read_until(control, ReceiptOffer))[-1].message
        assert isinstance(offer, ReceiptOffer)
        await control.send(ReceiptAck(Receipt.unpack(offer.record).sign(hand.identity)))
        await control.expect(SessionClosed)


async def test_steps_of_an_older_epoch_are_dropped(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand, open_mole() as mole:
        opening = after(mole, hand, chain_epoch=2)
        control = await hand.open(opening)
        link = await mole.link(hand, opening.session_id)
        good = bytes(3 * row_bytes(hand))
        await link.send(Step(1, 9, 3, STEP_HIDDEN, 0), b"whatever")
        await link.send(Step(2, 0, 3, STEP_HIDDEN, STEP_SAMPLE), good)
        seen = await read_until(control, Tokens)
        assert isinstance(seen[-1].message, Tokens)
        assert seen[-1].message.chain_epoch == 2
        await control.send(CloseSession(0))
        await read_until(control, ReceiptOffer)
        control.reset()


async def test_a_neighbour_that_goes_away_is_named_and_what_was_done_is_receipted(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        async with open_mole() as mole:
            opening = after(mole, hand)
            control = await hand.open(opening)
            link = await mole.link(hand, opening.session_id)
            await link.send(Step(0, 0, 3, STEP_HIDDEN, STEP_SAMPLE), bytes(3 * row_bytes(hand)))
            await read_until(control, Tokens)
        error = await outcome(hand, control)
        assert isinstance(error, UnreachableError | ClosedError)
        assert error.peer_id == mole.identity.peer_id
        (stored,) = hand.worker().ledger.receipts(hand.channel())
        assert stored.receipt.output_tokens == 1
        assert stored.client_signature is not None


async def test_a_next_stage_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand:
        worker, ghost = hand.worker(), PeerId(Identity.generate().peer_id)
        chain = (
            StageRef(worker.identity.peer_id, "127.0.0.1", worker.port, 0, 4),
            StageRef(ghost, "127.0.0.1", 1, 4, LAYERS),
        )
        error = await refusal(await hand.send(hand.opening(chain=chain)))
        assert type(error) is UnreachableError
        assert error.peer_id == ghost


async def test_a_next_stage_that_takes_no_steps_is_named(tmp_path: Path) -> None:
    async with attacked(tmp_path) as hand, open_mole() as mole:
        assert mole.links is not None
        await mole.links.connect("127.0.0.1", hand.worker().port, hand.worker().identity.peer_id)
        mole.refuses = True
        control = await hand.open(before(mole, hand))
        await control.send(BEGIN, pack_ids(PROMPT))
        error = await outcome(hand, control)
        assert type(error) is UnreachableError
        assert error.peer_id == mole.identity.peer_id


async def test_a_call_is_closed_while_it_is_computed(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE], price=FREE) as swarm, open_hand(swarm) as hand:
        control = await hand.open(hand.opening(voucher=None, max_tokens=1_000))
        await control.send(BEGIN, pack_ids(PROMPT))
        await read_until(control, Tokens)
        await control.send(CloseSession(1))
        offer = (await read_until(control, ReceiptOffer))[-1].message
        assert isinstance(offer, ReceiptOffer)
        receipt = Receipt.unpack(offer.record)
        assert 1 <= receipt.output_tokens < 900  # nobody waited for the end
        await control.send(ReceiptAck(receipt.sign(hand.identity)))
        await control.expect(SessionClosed)
        assert hand.worker().candidate().signed.quote.queue == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_a_session_in_which_nothing_happens_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    monkeypatch.setattr(ring, "IDLE_TIMEOUT", 0.2)
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm, open_hand(swarm) as hand:
        control = await hand.open(hand.opening(voucher=200))
        if begun:
            await control.send(BEGIN, pack_ids(PROMPT))  # and then waits for credit
        error = await outcome(hand, control)
        assert type(error) is UnavailableError
        assert "nothing happened" in error.message
        assert not hand.worker().service._sessions
