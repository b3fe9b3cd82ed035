"""One call: a session across a chain, its tokens, its vouchers and its receipts.

The client opens every stage at once, tells the first to begin, and is then beside the loop: tokens come from the last
stage, and a voucher goes to each stage whenever half a window is used up. At the end it says how many tokens it
accepted, checks each stage's receipt against what it knows, and signs it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

import msgspec
import trio

from client.bill import affordable_tokens, check_receipt, compare_roots, stage_costs
from client.budget import StageCost
from client.route import Leg
from client.wallet import Wallet
from swarm.errors import ClosedError, PaymentError, ProtocolError, SwarmError, UnreachableError
from swarm.identity import Identity
from swarm.ids import CallId, ManifestId, PeerId, SessionId
from swarm.links import Links
from swarm.messages import (
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Failure,
    NeedCredit,
    OpenSession,
    ReceiptAck,
    ReceiptOffer,
    Sampling,
    SessionClosed,
    SessionOpened,
    StageRef,
    Tokens,
    pack_ids,
)
from swarm.nurseries import open_nursery
from swarm.peer import Stream, error_of
from swarm.receipts import WINDOW_TOKENS, Receipt, SignedReceipt

OPEN_TIMEOUT = 15.0  # seconds for all stages to be reserved
CLOSE_TIMEOUT = 10.0  # seconds for the receipts; work that is done is billed with or without them


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """What to generate. ``max_spend`` is in base units and stops the call before the payment, not after."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    max_spend: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One stage of a call as the client saw it."""

    peer_id: PeerId
    host: str
    port: int
    start: int
    stop: int
    earned: int = 0
    """Base units, from the receipt; 0 until there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """A finished call."""

    call_id: CallId
    prompt_tokens: int
    output_tokens: int
    cost: int
    receipts: tuple[SignedReceipt, ...]
    stages: tuple[StageSummary, ...]
    seconds: float
    """From the start to the last receipt."""
    first_token_seconds: float | None
    seconds_to_last_token: float


@dataclass(slots=True)
class CallStage:
    """One stage while the call is open."""

    leg: Leg
    cost: StageCost
    stream: Stream
    closed: trio.Event
    receipt: SignedReceipt | None = None


class Call:
    """A call in progress: an iterator of `Tokens`, then `finish`. Made by `open_call`."""

    def __init__(
        self,
        request: CallRequest,
        legs: Sequence[Leg],
        *,
        manifest_id: ManifestId,
        identity: Identity,
        links: Links,
        wallet: Wallet,
    ) -> None:
        """Raises `PaymentError` when not even one token can be had for ``request.max_spend``."""
        self.call_id = CallId(os.urandom(CallId.size))
        self.session_id = SessionId(os.urandom(SessionId.size))
        self.legs = tuple(legs)
        costs = stage_costs(legs, prompt_tokens=len(request.prompt_ids), max_tokens=request.max_tokens)
        affordable = affordable_tokens(costs, request.max_tokens, request.max_spend)
        if not affordable:
            least = sum(cost.after(1) for cost in costs)
            raise PaymentError(f"even one token costs {least}, more than max_spend {request.max_spend}")
        self.request = replace(request, max_tokens=affordable)
        self._costs = stage_costs(legs, prompt_tokens=len(request.prompt_ids), max_tokens=affordable)
        self.error: SwarmError | None = None
        self.received: list[int] = []
        self.finish_reason = ""
        self._manifest_id = manifest_id
        self._identity = identity
        self._links = links
        self._wallet = wallet
        self.stages: list[CallStage] = []
        self._inbox, self._outbox = trio.open_memory_channel[Tokens](affordable)
        self._paid_until = WINDOW_TOKENS
        self._accepted: int | None = None
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._last_token = self._started
        self._renew = trio.Event()

    @property
    def chain(self) -> tuple[StageSummary, ...]:
        """The stages, first to last."""
        return tuple(
            StageSummary(
                peer_id=leg.candidate.signed.quote.worker,
                host=leg.candidate.host,
                port=leg.candidate.port,
                start=leg.start,
                stop=leg.stop,
            )
            for leg in self.legs
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens:
        try:
            return await self._outbox.receive()
        except trio.EndOfChannel:
            if self.error is not None:
                raise self.error from None
            raise StopAsyncIteration from None

    # ---- opening --------------------------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery) -> None:
        """Reserve every stage and begin. The stages' listeners run in ``nursery``."""
        costs = self._costs
        await self._wallet.prepare(self.legs, costs)
        opened: dict[int, CallStage] = {}
        failures: list[SwarmError] = []
        with trio.move_on_after(OPEN_TIMEOUT):
            async with open_nursery() as opening:

                async def one(index: int, leg: Leg, cost: StageCost) -> None:
                    try:
                        opened[index] = await self._open_stage(index, leg, cost)
                    except SwarmError as error:
                        failures.append(error)
                        opening.cancel_scope.cancel()

                for index, (leg, cost) in enumerate(zip(self.legs, costs, strict=True)):
                    opening.start_soon(one, index, leg, cost)
        self.stages = [opened[index] for index in sorted(opened)]
        if failures:
            raise failures[0]
        late = [leg.candidate.signed.quote.worker for index, leg in enumerate(self.legs) if index not in opened]
        if late:
            raise UnreachableError(
                f"peer {late[0].short} did not open its stage in {OPEN_TIMEOUT:.0f} s; call again to take another",
                peer_id=late[0],
                call_id=self.call_id,
            )
        for stage in self.stages:
            nursery.start_soon(self._listen, stage)
        nursery.start_soon(self._pay)
        await self.stages[0].stream.send(Begin(0, 0), pack_ids(self.request.prompt_ids), urgent=False)

    async def _open_stage(self, index: int, leg: Leg, cost: StageCost) -> CallStage:
        signed, quote = leg.candidate.signed, leg.candidate.signed.quote
        peer = await self._links.connect(leg.candidate.host, leg.candidate.port, quote.worker)
        stream = peer.open_stream()
        voucher = record = signature = None
        if cost.after(cost.max_tokens):
            voucher = await self._wallet.voucher(quote, self.call_id, cost.ceiling(0), signed.terms_hash)
        if voucher is not None:
            record, signature = voucher.voucher.pack(), voucher.signature
        message = OpenSession(
            session_id=self.session_id,
            call_id=self.call_id,
            manifest_id=self._manifest_id,
            chain=tuple(
                StageRef(leg.candidate.signed.quote.worker, leg.candidate.host, leg.candidate.port, leg.start, leg.stop)
                for leg in self.legs
            ),
            index=index,
            chain_epoch=0,
            prompt_tokens=len(self.request.prompt_ids),
            max_tokens=self.request.max_tokens,
            request_hash=self.request_hash(),
            quote=signed.record,
            quote_signature=signed.signature,
            voucher=record or b"",
            voucher_signature=signature or b"",
            sampling=self.request.sampling,
            stop_ids=self.request.stop_ids,
        )
        is_last = index == len(self.legs) - 1
        try:
            await stream.send(message, pack_ids(self.request.prompt_ids) if is_last else b"")
            await stream.expect(SessionOpened)
        except BaseException:
            stream.reset("the session was not opened")
            raise
        return CallStage(leg, cost, stream, trio.Event())

    def request_hash(self) -> bytes:
        """What was asked, 32 bytes: SHA-256 of the model, the prompt and the settings as they travel."""
        settings = msgspec.msgpack.encode((self.request.max_tokens, self.request.stop_ids, self.request.sampling))
        return hashlib.sha256(self._manifest_id + pack_ids(self.request.prompt_ids) + settings).digest()

    # ---- while it runs --------------------------------------------------------------------------------------------

    async def _listen(self, stage: CallStage) -> None:
        """One stage's control stream, until its receipt is exchanged."""
        sender = stage.leg.candidate.signed.quote.worker
        try:
            while not stage.closed.is_set():
                received = await stage.stream.receive()
                if received is None:
                    raise ClosedError(f"peer {sender.short} ended the session", peer_id=sender)
                match received.message:
                    case Tokens() as tokens:
                        self._take(stage, tokens)
                    case NeedCredit():
                        self._renew.set()
                    case CreditAck():
                        pass
                    case ReceiptOffer(record, signature):
                        await self._sign(stage, record, signature)
                    case SessionClosed():
                        return
                    case Failure() as failure:
                        raise error_of(failure, sender)
                    case other:
                        raise ProtocolError(f"peer {sender.short} sent {type(other).__name__}", peer_id=sender)
        except SwarmError as error:
            self._fail(error)
        finally:
            stage.closed.set()

    def _take(self, stage: CallStage, tokens: Tokens) -> None:
        sender = stage.leg.candidate.signed.quote.worker
        expected = len(self.request.prompt_ids) + len(self.received)
        if stage is not self.stages[-1] or tokens.position != expected or self.finish_reason:
            raise ProtocolError(f"peer {sender.short} sent tokens out of turn", peer_id=sender)
        if not tokens.ids or len(self.received) + len(tokens.ids) > self.request.max_tokens:
            raise ProtocolError(f"peer {sender.short} sent {len(tokens.ids)} tokens at once", peer_id=sender)
        self._last_token = time.monotonic()
        if self._first_token is None:
            self._first_token = self._last_token
        self.received.extend(tokens.ids)
        self.finish_reason = tokens.finish
        if self._accepted is None:
            self._inbox.send_nowait(tokens)
        if tokens.finish:
            self._inbox.close()
        elif len(self.received) > self._paid_until - WINDOW_TOKENS // 2:
            self._renew.set()

    async def _pay(self) -> None:
        """Renew the vouchers at half a window, before the ring would wait for money."""
        while True:
            await self._renew.wait()
            self._renew = trio.Event()
            self._paid_until = len(self.received) + WINDOW_TOKENS
            try:
                for stage in self.stages:
                    await self._renew_stage(stage)
            except SwarmError as error:
                self._fail(error)

    async def _renew_stage(self, stage: CallStage) -> None:
        if stage.closed.is_set() or not stage.cost.after(stage.cost.max_tokens):
            return
        signed = stage.leg.candidate.signed
        ceiling = stage.cost.ceiling(len(self.received))
        voucher = await self._wallet.voucher(signed.quote, self.call_id, ceiling, signed.terms_hash)
        if voucher is not None:
            await stage.stream.send(Credit(voucher.voucher.pack(), voucher.signature))

    def _fail(self, error: SwarmError) -> None:
        if self.error is None and not self.finish_reason and self._accepted is None:
            error.call_id = self.call_id
            self.error = error
            self._inbox.close()

    # ---- closing --------------------------------------------------------------------------------------------------

    async def finish(self, tokens: int | None = None) -> CallSummary:
        """Close the call: ``tokens`` were accepted (all that were received when None). Collects the receipts.

        Raises `VerificationError` when the stages' receipts contradict each other or the tokens that came.
        """
        await self._close(len(self.received) if tokens is None else min(tokens, len(self.received)))
        if self.error is not None:
            raise self.error
        receipts = tuple(stage.receipt for stage in self.stages if stage.receipt is not None)
        if self.finish_reason and len(receipts) == len(self.stages):  # a call cut short leaves stages apart
            compare_roots(self.request.prompt_ids, self.received, [signed.receipt for signed in receipts])
        earned = {receipt.receipt.worker: receipt.receipt.amount for receipt in receipts}
        accepted = self._accepted or 0
        return CallSummary(
            call_id=self.call_id,
            prompt_tokens=len(self.request.prompt_ids),
            output_tokens=accepted,
            cost=sum(earned.values()),
            receipts=receipts,
            stages=tuple(
                StageSummary(
                    peer_id=s.peer_id,
                    host=s.host,
                    port=s.port,
                    start=s.start,
                    stop=s.stop,
                    earned=earned.get(s.peer_id, 0),
                )
                for s in self.chain
            ),
            seconds=time.monotonic() - self._started,
            first_token_seconds=self._first_token - self._started if self._first_token is not None else None,
            seconds_to_last_token=self._last_token - self._started,
        )

    async def cancel(self) -> None:
        """Stop the work and the bill, if the call is not finished: what was received counts as accepted."""
        await self._close(len(self.received))

    async def _close(self, tokens: int) -> None:
        """Tell every stage that it is over, wait for the receipts, and free what was not used."""
        if self._accepted is not None:
            return
        self._accepted = tokens
        with trio.move_on_after(CLOSE_TIMEOUT):
            async with open_nursery() as nursery:
                for stage in self.stages:
                    nursery.start_soon(self._close_stage, stage, tokens)
        receipts = {stage.leg: stage.receipt for stage in self.stages}
        for stage in self.stages:
            stage.stream.reset()
        for leg in self.legs:  # a stage that was never opened has promised money too
            await self._wallet.settle_call(leg.candidate.signed.quote, self.call_id, receipts.get(leg))

    async def _close_stage(self, stage: CallStage, tokens: int) -> None:
        if stage.closed.is_set():
            return
        try:
            await stage.stream.send(CloseSession(tokens))
        except (ClosedError, UnreachableError):
            return
        await stage.closed.wait()

    async def _sign(self, stage: CallStage, record: bytes, signature: bytes) -> None:
        """Check a stage's receipt against what is known here, and sign it."""
        sender = stage.leg.candidate.signed.quote.worker
        receipt = Receipt.unpack(record)
        receipt.verify(sender, signature)
        check_receipt(
            receipt,
            expected={
                "manifest_id": self._manifest_id,
                "client": self._identity.peer_id,
                "worker": sender,
                "session_id": self.session_id,
                "call_id": self.call_id,
                "start": stage.leg.start,
                "stop": stage.leg.stop,
                "request_hash": self.request_hash(),
                "price": stage.cost.price,
                "rebuilt_tokens": 0,
            },
            prompt_tokens=len(self.request.prompt_ids),
            accepted=self._accepted or 0,
            received=len(self.received),
        )
        self._wallet.check(receipt, stage.leg.candidate.signed.quote)
        client_signature = receipt.sign(self._identity)
        stage.receipt = SignedReceipt(receipt=receipt, worker_signature=signature, client_signature=client_signature)
        await stage.stream.send(ReceiptAck(client_signature))


@asynccontextmanager
async def open_call(call: Call) -> AsyncIterator[Call]:
    """Open the call's session; leaving the block without `Call.finish` stops the work, and the bill with it."""
    async with open_nursery() as nursery:
        try:
            await call.open(nursery)
            yield call
        finally:
            with trio.CancelScope(shield=True):
                await call.cancel()
            nursery.cancel_scope.cancel()
