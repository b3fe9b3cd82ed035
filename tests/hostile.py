"""A client written by hand on `swarm.peer`, which says whatever a test wants it to, against a swarm of real workers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import trio

from client.call import CallRequest, open_call
from swarm.errors import SwarmError
from swarm.events import Received
from swarm.failures import error_of
from swarm.identity import Identity
from swarm.ids import Address, CallId, PeerId, SessionId
from swarm.links import Links, open_links
from swarm.messages import (
    Begin,
    CloseSession,
    Failure,
    Message,
    OpenLink,
    OpenSession,
    SessionOpened,
    StageRef,
    pack_ids,
)
from swarm.peer import Handler, Peer, Stream
from swarm.receipts import Channel, Price, SignedVoucher, Voucher
from swarm.records import SignedQuote
from swarm.testing import FakeSettlement
from tests.swarms import PRICE, LocalSwarm, LocalWorker, open_local_swarm
from worker.service import MAX_SESSIONS

LAYERS = 8
WHOLE = (0, LAYERS)
PROMPT = (10, 11, 12)
HONEST = CallRequest(prompt_ids=(20, 21, 22, 23), max_tokens=40)
CAP = 50_000


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else go on until this is so."""
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class Hand:
    """A hostile client with a channel of its own to every worker."""

    swarm: LocalSwarm
    identity: Identity
    spending: Identity
    settlement: FakeSettlement
    links: Links
    quotes: dict[PeerId, SignedQuote] = field(default_factory=dict)

    def worker(self, index: int = 0) -> LocalWorker:
        """One of the workers."""
        return self.swarm.workers[index]

    def quote(self, index: int = 0) -> SignedQuote:
        """What it offered when it was first asked."""
        worker = self.worker(index)
        return self.quotes.setdefault(worker.identity.peer_id, worker.candidate().signed)

    def channel(self, index: int = 0, **changes: Any) -> Channel:
        """The channel to a worker."""
        settlement = self.worker(index).settlement
        channel = Channel(
            chain_id=settlement.chain_id,
            contract=settlement.contract,
            client=self.settlement.account,
            worker=settlement.account,
            epoch=1,
        )
        return replace(channel, **changes)

    def voucher(
        self, cumulative: int, index: int = 0, *, terms: bytes | None = None, nonce: int = 1, **changes: Any
    ) -> SignedVoucher:
        """A promise to a worker, under the terms of its quote."""
        return Voucher(
            channel=self.channel(index, **changes),
            nonce=nonce,
            cumulative=cumulative,
            receipts_root=bytes(32),
            terms_hash=self.quote(index).terms_hash if terms is None else terms,
        ).sign(self.spending)

    def chain(self, *cuts: int) -> tuple[StageRef, ...]:
        """The first workers, the model cut at these layers."""
        bounds = [0, *cuts, LAYERS]
        return tuple(
            StageRef(worker.identity.peer_id, "127.0.0.1", worker.port, start, stop)
            for worker, start, stop in zip(self.swarm.workers, bounds, bounds[1:], strict=False)
        )

    def opening(
        self, index: int = 0, *cuts: int, voucher: SignedVoucher | int | None = 5_000, **changes: Any
    ) -> OpenSession:
        """An opening that the worker would take."""
        signed = self.voucher(voucher, index) if isinstance(voucher, int) else voucher
        fields: dict[str, Any] = {
            "session_id": SessionId(os.urandom(16)),
            "call_id": CallId(os.urandom(16)),
            "manifest_id": self.swarm.published.signed.manifest_id,
            "chain": self.chain(*cuts),
            "index": index,
            "chain_epoch": 0,
            "prompt_tokens": len(PROMPT),
            "max_tokens": 20,
            "request_hash": b"r" * 32,
            "quote": self.quote(index).record,
            "quote_signature": self.quote(index).signature,
            "voucher": signed.voucher.pack() if signed is not None else b"",
            "voucher_signature": signed.signature if signed is not None else b"",
        }
        return OpenSession(**fields | changes)

    async def peer(self, index: int = 0) -> Peer:
        """The connection to a worker."""
        worker = self.worker(index)
        return await self.links.connect("127.0.0.1", worker.port, worker.identity.peer_id)

    async def send(self, message: Message, raw: bytes | None = None, index: int = 0) -> Stream:
        """Open a stream to a worker with this message. An opening of a last stage gets the prompt."""
        if raw is None:
            last = isinstance(message, OpenSession) and message.index == len(message.chain) - 1
            raw = pack_ids(PROMPT) if last else b""
        stream = (await self.peer(index)).open_stream()
        await stream.send(message, raw)
        return stream

    async def open(self, opening: OpenSession | None = None, index: int = 0) -> Stream:
        """A session's control stream, taken by the worker."""
        stream = await self.send(opening or self.opening(), index=index)
        await stream.expect(SessionOpened)
        return stream


async def refusal(stream: Stream) -> SwarmError:
    """Read a stream until the failure that ends it."""
    with trio.fail_after(20):
        while (received := await stream.receive()) is not None:
            if isinstance(received.message, Failure):
                return error_of(received.message, stream.peer.peer_id)
    raise AssertionError("the stream ended without a failure")


async def read_until(stream: Stream, kind: type[Message]) -> list[Received]:
    """Everything up to the first message of this kind, with it."""
    seen: list[Received] = []
    with trio.fail_after(20):
        while not seen or not isinstance(seen[-1].message, kind):
            received = await stream.receive()
            assert received is not None
            assert not isinstance(received.message, Failure) or kind is Failure, received.message
            seen.append(received)
    return seen


def nothing_is_left(swarm: LocalSwarm, free: list[int]) -> bool:
    """Whether no session holds anything at any worker."""
    quotes = [worker.candidate().signed.quote for worker in swarm.workers]
    return (
        [quote.free_positions for quote in quotes] == free
        and all(quote.free_slots == MAX_SESSIONS for quote in quotes)
        and not any(account.accrued for worker in swarm.workers for account in worker.service._accounts.values())
    )


@asynccontextmanager
async def open_hand(swarm: LocalSwarm, handler: Handler | None = None) -> AsyncIterator[Hand]:
    """A client with a deposit, and an allocation to every worker."""
    settlement = replace(swarm.settlement, account=Address(os.urandom(20)))
    hand_spending = Identity.generate()
    settlement.chain.mint(settlement.account, 10 * CAP)
    settlement.deposit(10 * CAP)
    settlement.register_spending_key(hand_spending.peer_id)
    settlement.allocate({worker.settlement.account: CAP for worker in swarm.workers})
    identity = Identity.generate()
    async with open_links(identity, handler) as links:
        yield Hand(swarm, identity, hand_spending, settlement, links)


@asynccontextmanager
async def attacked(
    path: Path, *, spans: tuple[tuple[int, int], ...] = (WHOLE, WHOLE), price: Price = PRICE
) -> AsyncIterator[Hand]:
    """A hostile client beside an honest call, which ends whole whatever happens; and in the end nothing is left."""
    async with open_local_swarm(path, spans, price=price) as swarm, open_hand(swarm) as hand:
        free = [worker.engine.capacity().kv_positions_free for worker in swarm.workers]
        async with open_call(swarm.call(HONEST, swarm.legs(4))) as call:
            await anext(call)
            yield hand
            async for _ in call:
                pass
            summary = await call.finish()
        assert summary.output_tokens == HONEST.max_tokens
        assert len(summary.receipts) == 2
        await until(lambda: nothing_is_left(swarm, free))


def changed(message: OpenSession, **changes: Any) -> OpenSession:
    """The message with other fields."""
    return msgspec.structs.replace(message, **changes)


__all__ = [
    "CAP",
    "HONEST",
    "LAYERS",
    "PROMPT",
    "WHOLE",
    "Begin",
    "CloseSession",
    "Hand",
    "OpenLink",
    "attacked",
    "changed",
    "open_hand",
    "nothing_is_left",
    "read_until",
    "refusal",
    "until",
]
