"""A whole swarm in one process for tests: real wire, engine, ledgers and cores; the chain is the shipped fake.

The DHT and the torrents are left out: tests that want them start real processes (tests/e2e).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from client.call import Call, CallRequest, open_call
from client.publish import Published, publish_folder
from client.route import Candidate, Leg
from client.wallet import Wallet
from swarm.demo import model_folder
from swarm.identity import Identity
from swarm.ids import Address
from swarm.ledger import Ledger, open_ledger
from swarm.links import Links, open_links
from swarm.peer import serve_peers
from swarm.receipts import Price
from swarm.records import SignedQuote
from swarm.testing import FakeChain, FakeSettlement
from worker.config import ModelConfig
from worker.engine import NativeEngine, open_engine
from worker.model import SpanModel
from worker.service import Offer, Service
from worker.shards import FolderSource

PRICE = Price(per_1k_input=1_000, per_1k_output=3_000)
FREE = Price(per_1k_input=0, per_1k_output=0)
DEPOSIT = 10_000_000
ALLOCATION = 100_000


@dataclass(slots=True, kw_only=True)
class LocalWorker:
    """One worker of the local swarm."""

    identity: Identity
    service: Service
    engine: NativeEngine
    ledger: Ledger
    settlement: FakeSettlement
    port: int
    start: int
    stop: int

    def candidate(self) -> Candidate:
        """It, as a client that asked for a quote knows it."""
        signed = self.service.quote(self.service.manifest_id)
        read = SignedQuote.read(signed.record, signed.signature, sender=self.identity.peer_id, now=time.time())
        return Candidate(signed=read, host="127.0.0.1", port=self.port, rtt=0.001)


@dataclass(slots=True, kw_only=True)
class LocalSwarm:
    """Workers, and a client that calls them."""

    published: Published
    workers: list[LocalWorker]
    client: Identity
    spending: Identity
    links: Links
    ledger: Ledger
    wallet: Wallet
    settlement: FakeSettlement

    def legs(self, *cuts: int) -> tuple[Leg, ...]:
        """The model cut at these layers, one worker a part, in order."""
        layers = self.published.signed.manifest.layers
        bounds = [0, *cuts, layers]
        return tuple(
            Leg(candidate=worker.candidate(), start=start, stop=stop)
            for worker, start, stop in zip(self.workers, bounds, bounds[1:], strict=False)
        )

    def call(self, request: CallRequest, legs: Sequence[Leg]) -> Call:
        """A call on these legs, not yet open."""
        return Call(
            request,
            legs,
            manifest_id=self.published.signed.manifest_id,
            identity=self.client,
            links=self.links,
            wallet=self.wallet,
        )

    async def generate(self, request: CallRequest, legs: Sequence[Leg]) -> tuple[list[int], Call]:
        """Run a call to its end: its tokens, and the finished call."""
        tokens: list[int] = []
        async with open_call(self.call(request, legs)) as call:
            async for message in call:
                tokens.extend(message.ids)
            await call.finish()
        return tokens, call


@asynccontextmanager
async def open_local_swarm(
    path: Path, spans: Sequence[tuple[int, int]], *, folder: Path | None = None, price: Price = PRICE
) -> AsyncIterator[LocalSwarm]:
    """Workers on these spans of a model (the bundled one), and a client with a deposit on a fake chain."""
    folder = folder or model_folder()
    published = await publish_folder(folder, name="demo", publisher=Identity.generate())
    chain = FakeChain()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        workers = []
        for index, span in enumerate(spans):
            home = path / f"worker-{index}"
            home.mkdir(parents=True)
            workers.append(await _open_worker(stack, nursery, home, folder, published, chain, span, price))
        settlement = FakeSettlement(chain=chain, account=Address(b"\xcc" * 20))
        chain.mint(settlement.account, DEPOSIT)
        settlement.deposit(DEPOSIT)
        client, spending = Identity.generate(), Identity.generate()
        links = await stack.enter_async_context(open_links(client))
        ledger = await stack.enter_async_context(open_ledger(path / "client.db"))
        wallet = Wallet(spending=spending, ledger=ledger, settlement=settlement, allocation=ALLOCATION)
        yield LocalSwarm(
            published=published,
            workers=workers,
            client=client,
            spending=spending,
            links=links,
            ledger=ledger,
            wallet=wallet,
            settlement=settlement,
        )


async def _open_worker(
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    home: Path,
    folder: Path,
    published: Published,
    chain: FakeChain,
    span: tuple[int, int],
    price: Price,
) -> LocalWorker:
    identity = Identity.generate()
    config = ModelConfig.parse(published.signed.manifest.config)
    model = SpanModel.load(config, FolderSource(folder), *span)
    engine = await stack.enter_async_context(open_engine(model, kv_budget_bytes=64 << 20, threads=1))
    ledger = await stack.enter_async_context(open_ledger(home / "worker.db"))
    settlement = FakeSettlement(chain=chain, account=Address(identity.peer_id[:20]))
    service = Service(
        identity=identity,
        signed=published.signed,
        objects=published.objects,
        engine=engine,
        offer=Offer(start=span[0], stop=span[1], price=price, decode_rate=100.0, prefill_rate=1000.0),
        ledger=ledger,
        settlement=settlement,
    )
    service.links = await stack.enter_async_context(open_links(identity, service.handle))
    port = await nursery.start(
        partial(serve_peers, service.handle, identity, host="127.0.0.1", port=0, on_peer=service.links.adopt)
    )
    return LocalWorker(
        identity=identity,
        service=service,
        engine=engine,
        ledger=ledger,
        settlement=settlement,
        port=port,
        start=span[0],
        stop=span[1],
    )
