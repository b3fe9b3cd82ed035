"""One call: a session across a chain, its tokens, its vouchers and its receipts.

The client opens every stage at once, tells the first to begin, and is then beside the loop: tokens come from the last
stage, and a voucher goes to each stage whenever half a window is used up. At the end it says how many tokens it
accepted, checks each stage's receipt against what it knows, and signs it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

import trio

from client.bill import Due, affordable_tokens, billable, check_receipt, compare_roots, known_fields, stage_costs
from client.budget import StageCost
from client.request import CallRequest, CallSummary, StageSummary
from client.route import Leg
from client.wallet import Wallet
from swarm.errors import (
    ClosedError,
    PaymentError,
    ProtocolError,
    RemoteError,
    SwarmError,
    UnreachableError,
    VerificationError,
)
from swarm.identity import Identity
from swarm.ids import CallId, ManifestId, PeerId, SessionId
from swarm.links import Links
from swarm.messages import (
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Failure,
    Message,
    NeedCredit,
    OpenSession,
    ReceiptAck,
    ReceiptOffer,
    SessionClosed,
    SessionOpened,
    StageRef,
    Tokens,
    pack_ids,
)
from swarm.nurseries import open_nursery
from swarm.peer import Stream, error_of
from swarm.receipts import WINDOW_TOKENS, Receipt, SignedReceipt, SignedVoucher

__all__ = ["Call", "CallRequest", "CallStage", "CallSummary", "StageSummary", "open_call"]

OPEN_TIMEOUT = 15.0  # seconds for all stages to be reserved
TOKEN_TIMEOUT = 300.0  # seconds for the next token; a long prompt on slow devices takes minutes
CLOSE_TIMEOUT = 10.0  # seconds for the receipts; work that is done is billed with or without them


@dataclass(slots=True)
class CallStage:
    """One stage while the call is open."""

    leg: Leg
    cost: StageCost
    opening: OpenSession
    stream: Stream
    closed: trio.Event
    receipt: SignedReceipt | None = None
    error: SwarmError | None = None
    """What ended its control stream."""
    late: bool = False
    """Whether it had not closed in `CLOSE_TIMEOUT` seconds."""

    @property
    def peer_id(self) -> PeerId:
        """The worker."""
        return self.leg.candidate.signed.quote.worker


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
        self._began_ms = time.time_ns() // 1_000_000
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
            with trio.move_on_after(TOKEN_TIMEOUT):
                return await self._outbox.receive()
        except trio.EndOfChannel:
            if self.error is not None:
                raise self.error from None
            raise StopAsyncIteration from None
        only = self.stages[0].peer_id if len(self.stages) == 1 else None  # else nobody knows who is silent
        self._fail(UnreachableError(f"no token in {TOKEN_TIMEOUT:.0f} s; call again", peer_id=only))
        return await self.__anext__()

    # ---- opening --------------------------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery) -> None:
        """Reserve every stage and begin. The stages' listeners run in ``nursery``."""
        costs = self._costs
        await self._wallet.prepare(self.call_id, self.legs, costs)
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
        for stage in self.stages:  # also after a failure: they hear of the close, and are heard
            nursery.start_soon(self._listen, stage)
        if failures:
            failures[0].call_id = self.call_id
            raise failures[0]
        late = [leg.candidate.signed.quote.worker for index, leg in enumerate(self.legs) if index not in opened]
        if late:
            raise UnreachableError(
                f"peer {late[0].short} did not open its stage in {OPEN_TIMEOUT:.0f} s; call again to take another",
                peer_id=late[0],
                call_id=self.call_id,
            )
        nursery.start_soon(self._pay)
        await self.stages[0].stream.send(Begin(0, 0), pack_ids(self.request.prompt_ids), urgent=False)

    async def _open_stage(self, index: int, leg: Leg, cost: StageCost) -> CallStage:
        signed, quote = leg.candidate.signed, leg.candidate.signed.quote
        peer = await self._links.connect(leg.candidate.host, leg.candidate.port, quote.worker)
        stream = peer.open_stream()
        voucher: SignedVoucher | None = None
        if cost.after(cost.max_tokens):
            voucher = await self._wallet.voucher(quote, self.call_id, cost.ceiling(0), signed.terms_hash)
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
            request_hash=self.request.hash(self._manifest_id),
            quote=signed.record,
            quote_signature=signed.signature,
            voucher=voucher.voucher.pack() if voucher is not None else b"",
            voucher_signature=voucher.signature if voucher is not None else b"",
            sampling=self.request.sampling,
            stop_ids=self.request.stop_ids,
        )
        is_last = index == len(self.legs) - 1
        try:
            await stream.send(message, pack_ids(self.request.prompt_ids) if is_last else b"")
            await stream.expect(SessionOpened)
        except BaseException as error:
            if isinstance(error, PaymentError):
                self._wallet.doubt(quote)
            stream.reset("the session was not opened")
            raise
        if voucher is not None:
            self._wallet.acknowledge(quote, voucher.voucher.cumulative)
        return CallStage(leg, cost, message, stream, trio.Event())

    # ---- while it runs --------------------------------------------------------------------------------------------

    async def _listen(self, stage: CallStage) -> None:
        """One stage's control stream, until its receipt is exchanged."""
        try:
            while not stage.closed.is_set():
                received = await stage.stream.receive()
                if received is None:
                    raise ClosedError(f"peer {stage.peer_id.short} ended the session", peer_id=stage.peer_id)
                if isinstance(received.message, SessionClosed) and self._accepted is not None:
                    return
                await self._hear(stage, received.message)
        except SwarmError as error:
            if isinstance(error, RemoteError):
                error.peer_id = error.peer_id or stage.peer_id
            stage.error = error
            self._fail(error)
        finally:
            stage.closed.set()

    async def _hear(self, stage: CallStage, message: Message) -> None:
        quote, sender = stage.leg.candidate.signed.quote, stage.peer_id
        match message:
            case Tokens() as tokens:
                self._take(stage, tokens)
            case NeedCredit(cumulative):
                self._wallet.concede(quote, _amount(cumulative, sender))
                self._renew.set()
            case CreditAck(cumulative):
                self._wallet.acknowledge(quote, _amount(cumulative, sender))
            case ReceiptOffer(record, signature) if stage.receipt is None:
                await self._sign(stage, record, signature)
            case Failure() as failure:
                raise error_of(failure, sender)
            case other:
                raise ProtocolError(f"peer {sender.short} sent {type(other).__name__} out of turn", peer_id=sender)

    def _take(self, stage: CallStage, tokens: Tokens) -> None:
        if stage is not self.stages[-1] or self.finish_reason:
            raise ProtocolError(f"peer {stage.peer_id.short} sent tokens out of turn", peer_id=stage.peer_id)
        self.request.check_tokens(tokens, len(self.received), stage.peer_id)
        self._last_token = time.monotonic()
        if self._first_token is None:
            self._first_token = self._last_token
        self.received.extend(tokens.ids)
        self.finish_reason = tokens.finish
        if self._accepted is None and self.error is None:
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

        Raises what ended the call if it failed, and `VerificationError` or `UnreachableError` when a stage gives no
        receipt or the wrong one, or when the stages' receipts contradict each other or the tokens that came.
        """
        await self._close(len(self.received) if tokens is None else min(tokens, len(self.received)))
        if self.error is not None:
            raise self.error
        if self.received:
            for stage in self.stages:
                self._require_receipt(stage)
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

    def _require_receipt(self, stage: CallStage) -> None:
        """Raise what keeps a stage's receipt from being here: it has computed every token that came."""
        if stage.receipt is not None:
            return
        if isinstance(stage.error, RemoteError):
            raise stage.error
        name = f"peer {stage.peer_id.short}"
        if stage.error is not None or stage.late:
            raise UnreachableError(f"{name} fell silent before its receipt; call again", peer_id=stage.peer_id)
        raise VerificationError(f"{name} gave no receipt for its work; call again", peer_id=stage.peer_id)

    async def _close(self, tokens: int) -> None:
        """Tell every stage that it is over, wait for the receipts, and free what was not used."""
        if self._accepted is not None:
            return
        self._accepted = tokens
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                async with open_nursery() as nursery:
                    for stage in self.stages:
                        nursery.start_soon(self._close_stage, stage, tokens)
        finally:
            with trio.CancelScope(shield=True):
                await self._settle()

    async def _settle(self) -> None:
        """Let go of the streams, and of the money that was kept for the call."""
        receipts = {stage.leg: stage.receipt for stage in self.stages}
        for stage in self.stages:
            stage.late = not stage.closed.is_set()
            stage.stream.reset()
        errors: list[SwarmError] = []
        for leg in self.legs:  # a stage that was never opened has promised money too
            try:
                await self._wallet.settle_call(leg.candidate.signed.quote, self.call_id, receipts.get(leg))
            except SwarmError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    async def _close_stage(self, stage: CallStage, tokens: int) -> None:
        if stage.closed.is_set():
            return
        try:
            await stage.stream.send(CloseSession(tokens))
        except (ClosedError, UnreachableError):
            return
        await stage.closed.wait()

    async def _sign(self, stage: CallStage, record: bytes, signature: bytes) -> None:
        """Check a stage's receipt against what is known here, and sign it.

        A stage that fails offers one before the call is closed: it may have run ahead of what has arrived.
        """
        sender, closing = stage.peer_id, self._accepted is not None
        receipt = Receipt.unpack(record)
        receipt.verify(sender, signature)
        if closing and stage is not self.stages[-1]:
            with trio.move_on_after(CLOSE_TIMEOUT / 2):  # whatever else the last one has sent counts as received
                await self.stages[-1].closed.wait()
        received = len(self.received)
        due = Due(
            fields=known_fields(stage.opening, client=self._identity.peer_id, price=stage.cost.price),
            cost=stage.cost,
            tokens=billable(accepted=self._accepted or 0, received=received) if closing else received + WINDOW_TOKENS,
            began_ms=self._began_ms,
            now_ms=time.time_ns() // 1_000_000,
        )
        check_receipt(receipt, due)
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


def _amount(digits: str, sender: PeerId) -> int:
    """An amount as a stage tells it. Raises `ProtocolError`."""
    if not (digits.isascii() and digits.isdigit()):
        raise ProtocolError(f"peer {sender.short} sent an amount that is no number", peer_id=sender)
    return int(digits)
