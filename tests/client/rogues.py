"""Workers written by hand: they keep the rules, through the real stage sessions, except where a test has them not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from client.call import Call, CallRequest
from client.route import Candidate, Leg
from client.wallet import Wallet
from swarm.errors import SwarmError
from swarm.events import Received
from swarm.identity import Identity
from swarm.ids import Address
from swarm.ledger import Ledger, open_ledger
from swarm.links import Links, open_links
from swarm.messages import (
    Begin,
    CloseSession,
    Credit,
    CreditAck,
    Message,
    NeedCredit,
    OpenSession,
    ReceiptAck,
    ReceiptOffer,
    SessionClosed,
    SessionOpened,
    Tokens,
)
from swarm.peer import Peer, Stream, serve_peers
from swarm.receipts import UINT128_MAX, Channel, Price, Receipt, Voucher
from swarm.testing import FakeChain, FakeSettlement
from tests.client.quotes import MANIFEST, PRICE, quote
from tests.worker.sessions import ROW, Ring
from worker.credit import Account
from worker.session import StageSession

LAYERS = 8
ME = Address(b"\xcc" * 20)


@dataclass(slots=True)
class Rogues:
    """The workers of one chain and what each does otherwise. ``index`` is a stage's place in it."""

    identities: list[Identity]
    price: Price = PRICE
    say: Callable[[Tokens], Sequence[tuple[int, Message]]] | None = None
    """What is sent, and by which stage, for tokens that the last one has drawn."""
    bill: Callable[[int, Receipt], Receipt | None] = lambda _index, receipt: receipt
    sign: Callable[[int, Receipt], bytes] | None = None
    answer: Callable[[int, OpenSession], SwarmError | None] = lambda _index, _opening: None
    at_begin: Callable[[int], SwarmError | None] = lambda _index: None
    """A failure of the stage once the call has begun; its receipt is offered first."""
    silent: set[tuple[int, str]] = field(default_factory=set)
    """(stage, "open", "begin" or "close") that are not answered."""
    accounts: dict[Channel, Account] = field(default_factory=dict)
    cores: dict[int, StageSession] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    closed: list[tuple[int, int]] = field(default_factory=list)
    """(stage, tokens) of each close that was heard."""
    acks: dict[int, bytes] = field(default_factory=dict)
    ring: Ring | None = None

    async def handle(self, index: int, peer: Peer, stream: Stream, request: Received) -> None:
        """One session's control stream at one stage."""
        opening = request.message
        assert isinstance(opening, OpenSession)
        if (index, "open") in self.silent:
            await stream.receive()
            return
        if (error := self.answer(index, opening)) is not None:
            raise error
        account = Account(None)
        if opening.voucher:
            voucher = Voucher.unpack(opening.voucher)
            account = self.accounts.setdefault(voucher.channel, Account(voucher.channel, cap=UINT128_MAX))
            account.promise(voucher.cumulative)
        self.cores[index] = StageSession(
            opening,
            client=peer.peer_id,
            price=self.price,
            account=account,
            row_bytes=ROW,
            now_ms=time.time_ns() // 1_000_000,
        )
        self.streams[index] = stream
        await stream.send(SessionOpened(1))
        while (received := await stream.receive()) is not None:
            match received.message:
                case Begin() as begin:
                    await self._begin(begin, received.raw)
                case Credit(record, _):
                    account.promise(Voucher.unpack(record).cumulative)
                    await stream.send(CreditAck(str(account.promised)))
                    await self._run()
                case CloseSession(tokens):
                    self.closed.append((index, tokens))
                    if (index, "close") not in self.silent:
                        await self._close(index, tokens)
                case ReceiptAck(signature):
                    self.acks[index] = signature
                    await stream.send(SessionClosed(), fin=True)
                    return

    async def _begin(self, begin: Begin, raw: memoryview) -> None:
        self.ring = Ring([self.cores[index] for index in sorted(self.cores)])
        self.cores[0].begin(begin, raw)
        if (0, "begin") not in self.silent:
            await self._run()

    async def _run(self) -> None:
        assert self.ring is not None
        told = len(self.ring.heard)
        self.ring.run()
        last = len(self.identities) - 1
        for tokens in self.ring.heard[told:]:
            for index, message in [(last, tokens)] if self.say is None else self.say(tokens):
                await self.streams[index].send(message)
        for index, core in self.cores.items():
            if needed := core.credit_needed():
                await self.streams[index].send(NeedCredit(str(needed)))
        for index in self.streams:
            if (error := self.at_begin(index)) is not None:
                await self._offer(index, None)
                await self.streams[index].fail(error)

    async def _close(self, index: int, tokens: int) -> None:
        if not await self._offer(index, tokens):
            await self.streams[index].send(SessionClosed(), fin=True)

    async def _offer(self, index: int, tokens: int | None) -> bool:
        core = self.cores[index]
        if core.closed:
            return False
        receipt = core.close(tokens, now_ms=time.time_ns() // 1_000_000)
        receipt = self.bill(index, receipt) if receipt is not None else None
        if receipt is None:
            return False
        signature = self.sign(index, receipt) if self.sign is not None else receipt.sign(self.identities[index])
        await self.streams[index].send(ReceiptOffer(receipt.pack(), signature))
        return True


@dataclass(slots=True, kw_only=True)
class RogueSwarm:
    """Rogues behind real connections, and the real client."""

    rogues: Rogues
    legs: tuple[Leg, ...]
    client: Identity
    links: Links
    ledger: Ledger
    wallet: Wallet
    settlement: FakeSettlement

    def call(self, tokens: int = 6, prompt: int = 3, **options: Any) -> Call:
        """A call on all of them."""
        request = CallRequest(prompt_ids=tuple(range(prompt)), max_tokens=tokens, **options)
        return Call(
            request,
            self.legs,
            manifest_id=MANIFEST,
            identity=self.client,
            links=self.links,
            wallet=self.wallet,
        )

    def nothing_is_promised(self) -> bool:
        """Whether no call holds money any more."""
        return not any(budget.open or budget.reserved for budget in self.wallet._budgets.values())

    def channel(self, index: int) -> Channel:
        """The channel to a worker."""
        state = self.settlement.channel(ME, self.legs[index].candidate.signed.quote.account)
        assert state is not None
        return Channel(
            chain_id=self.settlement.chain_id,
            contract=self.settlement.contract,
            client=ME,
            worker=state.worker,
            epoch=state.epoch,
        )


@asynccontextmanager
async def open_rogues(path: Path, stages: int = 1, *, price: Price = PRICE) -> AsyncIterator[RogueSwarm]:
    """So many workers in a chain over eight layers, and a client with a deposit."""
    rogues = Rogues([Identity.generate() for _ in range(stages)], price)
    chain, now = FakeChain(), int(time.time())
    settlement = chain.account(ME)
    chain.mint(ME, 10_000_000)
    settlement.deposit(10_000_000)
    client = Identity.generate()
    bounds = [round(LAYERS * index / stages) for index in range(stages + 1)]
    async with trio.open_nursery() as nursery, open_links(client) as links, open_ledger(path / "client.db") as ledger:
        legs = []
        for index, identity in enumerate(rogues.identities):
            port = await nursery.start(
                partial(serve_peers, partial(rogues.handle, index), identity, host="127.0.0.1", port=0)
            )
            offer = quote(
                1,
                bounds[index],
                bounds[index + 1],
                worker=identity.peer_id,
                account=Address(identity.peer_id[:20]),
                price=price,
                issued=now,
                valid_until=now + 300,
            )
            candidate = Candidate(signed=offer.sign(identity), host="127.0.0.1", port=port, rtt=0.001)
            legs.append(Leg(candidate=candidate, start=bounds[index], stop=bounds[index + 1]))
        wallet = Wallet(spending=Identity.generate(), ledger=ledger, settlement=settlement, allocation=100_000)
        yield RogueSwarm(
            rogues=rogues,
            legs=tuple(legs),
            client=client,
            links=links,
            ledger=ledger,
            wallet=wallet,
            settlement=settlement,
        )
        nursery.cancel_scope.cancel()


def rebilled(receipt: Receipt, **changes: object) -> Receipt:
    """The receipt with other fields and an amount that adds up."""
    fields = {name: changes.get(name, getattr(receipt, name)) for name in ("start", "stop", "price", "input_tokens")}
    fields |= {name: changes.get(name, getattr(receipt, name)) for name in ("output_tokens", "rebuilt_tokens")}
    amount = fields["price"].amount(  # type: ignore[attr-defined]
        layers=fields["stop"] - fields["start"],  # type: ignore[operator]
        input_tokens=fields["input_tokens"] + fields["rebuilt_tokens"],  # type: ignore[operator]
        output_tokens=fields["output_tokens"],
    )
    return replace(receipt, amount=amount, **changes)  # type: ignore[arg-type]
