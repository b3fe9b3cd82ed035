"""One stage of one session on the wire: drives a `StageSession` between the client, the neighbours and the device.

Whoever brings in a step runs the pump that computes and sends; if it is running already, it takes the new work along.
So a step costs no change of tasks between its arrival and its leaving. What the client brings in (the prompt, a
voucher) is pumped by a task of its own, so that a call can be closed while it is being computed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from swarm.errors import ClosedError, ProtocolError, SwarmError, UnavailableError, UnreachableError
from swarm.failures import error_of
from swarm.links import Links
from swarm.messages import (
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Failure,
    NeedCredit,
    OpenLink,
    ReceiptAck,
    ReceiptOffer,
    SessionClosed,
    SessionOpened,
    StageRef,
    Step,
)
from swarm.nurseries import open_nursery
from swarm.peer import Peer, Stream
from swarm.receipts import Receipt
from worker.session import Action, Drawn, Emit, Forward, Return, StageSession, Work
from worker.stage import Stage, StageInput

RECEIPT_TIMEOUT = 10.0  # seconds a client has to sign the receipt before the worker goes on without
IDLE_TIMEOUT = 300.0  # seconds without a step or a word from the client before its memory is given to others

AcceptVoucher = Callable[[bytes, bytes], Awaitable[int]]
"""Check, store and count a voucher (its record and signature); returns the highest cumulative held."""
StoreReceipt = Callable[[Receipt, bytes | None], Awaitable[bytes]]
"""Sign and store a receipt, with the client's signature when there is one; returns the worker's signature."""


class RingStage:
    """A session's stage, from its opening to its receipt."""

    def __init__(self, core: StageSession, stage: Stage, control: Stream, links: Links) -> None:
        self.core = core
        self._stage = stage
        self._control = control
        self._links = links
        self._out: Stream | None = None
        self._nursery: trio.Nursery | None = None
        self._attached = False
        self._pumping = False
        self._woken = trio.Event()
        self._failed: SwarmError | None = None
        self._over = trio.CancelScope()

    @property
    def _next(self) -> StageRef:
        chain = self.core.opening.chain
        return chain[(self.core.opening.index + 1) % len(chain)]

    async def _connect(self) -> None:
        """Have the connection to the next stage ready. The last of two stages answers on the link of the first."""
        chain = self.core.opening.chain
        if len(chain) > 1 and not (len(chain) == 2 and self.core.is_last):
            await self._links.connect(self._next.host, self._next.port, self._next.peer_id)

    # ---- the client's side ----------------------------------------------------------------------------------------

    async def serve(self, accept: AcceptVoucher, store: StoreReceipt) -> None:
        """Serve the opened session until the call is closed. Whatever ends it, there is a receipt of what was done.

        The client is asked to sign it after a failure too, before it is told of that: what was done is paid for, and
        both sides count the same.
        """
        tokens: int | None = None
        error: SwarmError | None = None
        receipt: Receipt | None = None
        signature = b""
        try:
            tokens = await self._until_closed(accept)
        except SwarmError as raised:
            error = raised
        finally:
            self._stage.close()
            if self._out is not None:
                self._out.finish()
            receipt = self.core.close(tokens, now_ms=time.time_ns() // 1_000_000)
            if receipt is not None:
                with trio.CancelScope(shield=True):
                    signature = await store(receipt, None)
        if receipt is not None:
            try:
                await self._exchange(receipt, signature, store)
            except SwarmError as raised:
                error = error or raised
        if error is not None:
            raise error
        await self._control.send(SessionClosed(), fin=True)

    async def _until_closed(self, accept: AcceptVoucher) -> int | None:
        """How many tokens the client accepted. Raises what ended the session otherwise."""
        tokens: int | None = None
        with self._over:
            async with open_nursery() as nursery:
                await self._connect()
                await self._control.send(SessionOpened(self.core.max_positions))
                self._nursery = nursery
                nursery.start_soon(self._pump_when_woken)
                tokens = await self._converse(accept)
                nursery.cancel_scope.cancel()
        if self._failed is not None:
            raise self._failed
        return tokens

    async def _converse(self, accept: AcceptVoucher) -> int:
        while True:
            length, received = self.core.length, None
            with trio.move_on_after(IDLE_TIMEOUT) as scope:
                received = await self._control.receive()
            if scope.cancelled_caught:
                if self.core.length == length and not self.core.computing:
                    raise UnavailableError(f"nothing happened in this session for {IDLE_TIMEOUT:.0f} s; call again")
                continue
            if received is None:
                raise ClosedError("the client ended the session without closing it", peer_id=self.core.client)
            match received.message:
                case Begin() as begin:
                    self.core.begin(begin, received.raw)
                    self.wake()
                case Credit(record, signature):
                    cumulative = await accept(record, signature)
                    await self._control.send(CreditAck(str(cumulative)))
                case CloseSession(tokens):
                    return tokens
                case other:
                    raise ProtocolError(
                        f"the client sent {type(other).__name__} in a session", peer_id=self.core.client
                    )

    async def _exchange(self, receipt: Receipt, signature: bytes, store: StoreReceipt) -> None:
        with trio.move_on_after(RECEIPT_TIMEOUT) as scope:
            await self._control.send(ReceiptOffer(receipt.pack(), signature))
            while True:
                received = await self._control.receive()
                if received is None:
                    raise ClosedError("the client left without signing the receipt", peer_id=self.core.client)
                if isinstance(received.message, ReceiptAck):
                    receipt.verify(self.core.client, received.message.signature)
                    await store(receipt, received.message.signature)
                    return
                if not isinstance(received.message, Credit | CloseSession):  # these may have crossed the offer
                    raise ProtocolError(
                        f"the client sent {type(received.message).__name__} for a signature", peer_id=self.core.client
                    )
        if scope.cancelled_caught:
            raise ProtocolError(
                f"the client did not sign the receipt in {RECEIPT_TIMEOUT:.0f} s; it is kept without",
                peer_id=self.core.client,
            )

    # ---- the ring's side ------------------------------------------------------------------------------------------

    async def attach(self, peer: Peer, stream: Stream) -> None:
        """Take steps from upstream until it ends the stream, which it does when the call was closed there first.

        An error in what it sends is the session's, and names who is at fault. Raises `ProtocolError`, which hurts
        nobody else, for a peer that is not the neighbour or has attached before.
        """
        if peer.peer_id != self.core.upstream or self._attached:
            raise ProtocolError(f"peer {peer.peer_id.short} has no link to give this session", peer_id=peer.peer_id)
        self._attached = True
        try:
            while (received := await stream.receive()) is not None:
                if not isinstance(received.message, Step):
                    raise ProtocolError(f"peer {peer.peer_id.short} sent no step on a link", peer_id=peer.peer_id)
                self.core.receive(received.message, received.raw)
                await self.pump()
        except SwarmError as error:
            self.fail(error)

    def fail(self, error: SwarmError) -> None:
        """End the session with an error; the first one counts, and none does once the call is closed."""
        if self._failed is None and not self.core.closed:
            self._failed = error
            self._over.cancel()

    def wake(self) -> None:
        """There is something to compute, or credit for it."""
        self._woken.set()

    async def _pump_when_woken(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            try:
                await self.pump()
            except SwarmError as error:
                self.fail(error)

    async def pump(self) -> None:
        """Compute and send while there is work that is paid for."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while (work := self.core.next_work()) is not None:
                await self._compute(work)
        finally:
            self._pumping = False
        if needed := self.core.credit_needed():
            await self._control.send(NeedCredit(str(needed)))

    async def _compute(self, work: Work) -> None:
        step = StageInput(
            position=work.position, ids=work.ids, hidden=work.hidden, count=work.count, sample=work.sample
        )
        try:
            output = await self._stage.forward(step)
        except ProtocolError as error:  # ids outside the vocabulary, activations that are no numbers
            error.peer_id = error.peer_id or self.core.source(work)
            raise
        draw = output.draw
        drawn = Drawn(draw.token, draw.logprob, draw.top) if draw is not None else None
        for action in self.core.complete(work, output.hidden, drawn):
            await self._perform(action)

    async def _perform(self, action: Action) -> None:
        match action:
            case Emit(tokens):
                await self._control.send(tokens)
            case Forward(step, raw):
                await self._send_step(step, raw)
            case Return(step, raw):
                if self.core.is_first:  # a chain of one: the token stays here
                    self.core.receive(step, raw)
                else:
                    await self._send_step(step, raw)

    async def _send_step(self, step: Step, raw: bytes) -> None:
        try:
            if self._out is None:
                peer = await self._links.connect(self._next.host, self._next.port, self._next.peer_id)
                self._out = peer.open_stream()
                await self._out.send(OpenLink(self.core.opening.session_id, self.core.epoch))
                if self._nursery is not None:
                    self._nursery.start_soon(self._watch, self._out)
            await self._out.send(step, raw, urgent=step.count == 1)
        except (UnreachableError, ClosedError) as error:
            raise UnreachableError(
                f"the next stage, peer {self._next.peer_id.short}, is gone", peer_id=self._next.peer_id
            ) from error

    async def _watch(self, out: Stream) -> None:
        """Nothing comes back on a link but the end of it: a refusal, or a connection that broke."""
        try:
            received = await out.receive()
            if received is not None and isinstance(received.message, Failure):
                raise error_of(received.message, self._next.peer_id)
        except SwarmError as error:
            self.fail(
                UnreachableError(
                    f"the next stage, peer {self._next.peer_id.short}, takes no steps: {error.message}",
                    peer_id=self._next.peer_id,
                )
            )
