"""A worker on loopback for benchmarks: ``python -m benchmarks.loopback_worker``.

It is `worker.service.Service` with everything on (TLS, signed quotes, vouchers, ledger, receipts), in a process of its
own; left out are the DHT and the torrents, which no token passes, and the chain is the shipped fake, which every
process seeds with the same allocation. The engine is the native one, or one whose stages hand on what they get: what
a token then takes is what the software around the engines costs.

The first line on stdin is a `Setup`; the answer ``{"port"}``. It serves until it is ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from client.publish import Published, load_published
from swarm.identity import Identity
from swarm.ids import Address, PeerId
from swarm.ledger import open_ledger
from swarm.links import open_links
from swarm.messages import Sampling
from swarm.peer import serve_peers
from swarm.receipts import Price
from swarm.testing import FakeChain, FakeSettlement
from worker.service import Offer, Service
from worker.stage import Capacity, Draw, Engine, Stage, StageInput, StageOutput

HOST = "127.0.0.1"
PRICE = Price(per_1k_input=1_000, per_1k_output=3_000)
ALLOCATION = 10**12  # base units on each channel: no benchmark runs out
KV_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one worker is told. Keys and addresses are hex."""

    out: str
    """Where the model was published to, as ``name``."""
    name: str
    folder: str
    """The model's own folder."""
    home: str
    """For the ledger."""
    seed: str
    """The worker's private key."""
    native: bool
    """Whether to compute; else stages hand on what they get."""
    client: str
    """The client's account on the chain."""
    spending: str
    """The client's spending key."""

    def encode(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class PassThroughEngine:
    """`worker.stage.Engine` whose stages compute nothing."""

    def __init__(self, layers: int, row_bytes: int) -> None:
        """``row_bytes``: the wire size of one position's activations."""
        self._layers = layers
        self._row_bytes = row_bytes

    def open_stage(
        self,
        start: int,
        stop: int,
        max_positions: int,
        sampling: Sampling | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> Stage:
        """A stage; there is always room."""
        return PassThroughStage(self._row_bytes, last=stop == self._layers)

    def capacity(self) -> Capacity:
        """A device that does nothing."""
        return Capacity(
            device="cpu", device_name="pass-through", memory_bytes=0, kv_positions_free=1 << 20, threads=1, queue=0
        )


class PassThroughStage:
    """`worker.stage.Stage`: activations go out as they came, zeros at the first stage, one fixed token at the last."""

    def __init__(self, row_bytes: int, *, last: bool) -> None:
        self._row_bytes = row_bytes
        self._output = StageOutput(draw=Draw(1)) if last else None

    async def forward(self, step: StageInput) -> StageOutput:
        """Let other tasks run, as every engine does, and answer."""
        await trio.lowlevel.checkpoint()
        if self._output is not None:
            return self._output
        return StageOutput(hidden=bytes(step.count * self._row_bytes if step.hidden is None else step.hidden))

    def close(self) -> None:
        """It holds nothing."""


def account_of(worker: PeerId) -> Address:
    """The chain account of a worker here."""
    return Address(worker[: Address.size])


def seeded_chain(client: Address, spending: PeerId, workers: Sequence[PeerId]) -> FakeChain:
    """A chain on which ``client`` has a channel to each worker: the same state in whichever process it is made."""
    chain = FakeChain()
    total = ALLOCATION * len(workers)
    chain.mint(client, total)
    chain.register(client, spending)
    chain.deposit(client, total)
    chain.allocate(client, {account_of(worker): ALLOCATION for worker in workers})
    return chain


@asynccontextmanager
async def _open_engine(setup: Setup, published: Published) -> AsyncIterator[Engine]:
    manifest = published.signed.manifest
    if not setup.native:
        yield PassThroughEngine(manifest.layers, manifest.row_bytes)
        return
    from worker.config import ModelConfig
    from worker.engine import open_engine
    from worker.model import SpanModel
    from worker.shards import FolderSource

    config = ModelConfig.parse(manifest.config)
    model = SpanModel.load(config, FolderSource(setup.folder), 0, manifest.layers)
    async with open_engine(model, kv_budget_bytes=KV_BUDGET) as engine:
        yield engine


async def serve(setup: Setup) -> None:
    """Serve the whole model until cancelled; says the port on stdout."""
    identity = Identity(bytes.fromhex(setup.seed))
    published = load_published(Path(setup.out), setup.name, Path(setup.folder))
    client, spending = Address(bytes.fromhex(setup.client)), PeerId(bytes.fromhex(setup.spending))
    chain = seeded_chain(client, spending, [identity.peer_id])
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_open_engine(setup, published))
        ledger = await stack.enter_async_context(open_ledger(Path(setup.home) / "worker.db"))
        service = Service(
            identity=identity,
            signed=published.signed,
            objects=published.objects,
            engine=engine,
            offer=Offer(
                start=0, stop=published.signed.manifest.layers, price=PRICE, decode_rate=100.0, prefill_rate=1000.0
            ),
            ledger=ledger,
            settlement=FakeSettlement(chain=chain, account=account_of(identity.peer_id)),
        )
        service.links = await stack.enter_async_context(open_links(identity, service.handle))
        nursery = await stack.enter_async_context(trio.open_nursery())
        port = await nursery.start(
            partial(serve_peers, service.handle, identity, host=HOST, port=0, on_peer=service.links.adopt)
        )
        print(json.dumps({"port": port}), flush=True)


def main() -> None:
    """Read the setup, serve."""
    setup = Setup(**json.loads(sys.stdin.readline()))
    trio.run(serve, setup)


if __name__ == "__main__":
    main()
