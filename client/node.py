"""The client's node: one DHT node, one set of connections, one wallet; models by name and calls on them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from client.call import Call, CallRequest, open_call
from client.route import Candidate, plan_chain, uncovered
from client.wallet import Wallet
from dht.config import DhtConfig
from dht.directory import Directory
from dht.node import open_node
from dht.roster import MAX_ASKED, Filter
from dht.sources import Sources
from swarm.config import Home
from swarm.errors import MissingLayersError, PaymentError, SwarmError, UsageError
from swarm.identity import Identity
from swarm.ids import Address, ManifestId, PeerId
from swarm.ledger import Ledger, open_ledger
from swarm.links import Links, open_links
from swarm.manifest import Manifest
from swarm.messages import GetQuote, QuoteReply
from swarm.peer import Peer
from swarm.records import SignedQuote
from swarm.settlement import Settlement

ALLOCATION = 1_000_000  # base units set aside for a worker when its channel is opened
ROSTER_READS = 2  # each brings up to sixteen workers: what the first leaves open is asked for by name
ATTEMPTS = 3  # chains tried before a call gives up; a worker that failed is left out of the next


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client joins and pays."""

    home: Path
    """Keys and ledger; made if it is not there."""
    bootstrap: tuple[tuple[str, int], ...]
    """DHT nodes to join through."""
    chain_rpc: str | None = None
    """JSON-RPC URL of the chain that calls are paid on; without one only free workers can be called."""
    contract: Address | None = None
    """The settlement contract on it."""
    allocation: int = ALLOCATION
    """Base units set aside for each worker when its channel is opened; what is not earned comes back at its close."""
    most_price: int | None = None
    """The most a layer may cost, in base units for 1000 tokens in and 1000 out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as found in the swarm, with the small files that a client needs."""

    reference: str
    manifest: Manifest
    manifest_id: ManifestId
    objects: Mapping[str, bytes]
    """By file name: tokenizer.json and, where the model has them, tokenizer_config.json and the like."""


class ClientNode:
    """Made by `open_client`."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        identity: Identity,
        directory: Directory,
        links: Links,
        ledger: Ledger,
        wallet: Wallet,
        settlement: Settlement | None,
    ) -> None:
        self.config = config
        self.identity = identity
        self.ledger = ledger
        self.settlement = settlement
        self._links = links
        self.wallet = wallet
        self._sources = Sources(directory, links)
        self._models: dict[str, Model] = {}

    async def model(self, reference: str) -> Model:
        """The model that ``PUBLISHER/NAME`` means.

        Raises `UnknownModelError` when the name resolves to nothing, `UnavailableError` when nobody serves its files.
        """
        if reference in self._models:
            return self._models[reference]
        signed = await self._sources.model(reference)
        manifest_id = signed.manifest_id
        objects = {name: await self._sources.object(manifest_id, content) for name, content in signed.manifest.objects}
        model = Model(reference=reference, manifest=signed.manifest, manifest_id=manifest_id, objects=objects)
        self._models[reference] = model
        return model

    async def candidates(self, model: Model) -> list[Candidate]:
        """Live quotes of workers for every layer, as far as there are any, with the round trips they were asked in.

        They are sought in the model's roster first, then there by the layers that are still missing, and at last
        among all who announced themselves.
        """
        found: dict[PeerId, Candidate] = {}

        async def ask(peer: Peer) -> bool:
            asked = time.monotonic()
            reply, _ = await peer.request(GetQuote(model.manifest_id), QuoteReply)
            rtt = time.monotonic() - asked
            signed = SignedQuote.read(reply.record, reply.signature, sender=peer.peer_id, now=time.time())
            if signed.quote.manifest_id == model.manifest_id and signed.quote.stop <= model.manifest.layers:
                host, port = peer.address
                found[peer.peer_id] = Candidate(signed=signed, host=host, port=port, rtt=rtt)
            return False

        layers = model.manifest.layers
        for _ in range(ROSTER_READS):
            missing = uncovered(found.values(), layers)
            if missing:
                wanted = Filter(span=(missing[0], missing[-1] + 1), how_many=MAX_ASKED)
                await self._sources.ask_workers(model.manifest_id, wanted, ask)
        if uncovered(found.values(), layers):
            await self._sources.ask_all(model.manifest_id, ask)
        return list(found.values())

    @asynccontextmanager
    async def open_call(self, model: Model, request: CallRequest) -> AsyncIterator[Call]:
        """A call on a chain of workers found now. A worker that does not take its stage is left out and others tried.

        Raises `MissingLayersError` naming layers that nobody serves, `PaymentError`, `BusyError`, `UnreachableError`.
        """
        positions = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids:
            raise UsageError("an empty prompt; give at least one token")
        if positions > model.manifest.context:
            raise UsageError(
                f"{len(request.prompt_ids)} prompt and {request.max_tokens} new tokens are more than the model's "
                f"context of {model.manifest.context}; shorten the prompt or lower max_tokens"
            )
        usable = {candidate.worker: candidate for candidate in await self.candidates(model)}
        refused: SwarmError | None = None
        async with AsyncExitStack() as stack:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    legs = plan_chain(tuple(usable.values()), model.manifest.layers, most_price=self.config.most_price)
                except (MissingLayersError, PaymentError) as error:
                    raise refused or error from None  # with everybody, there was a chain
                call = Call(
                    request,
                    legs,
                    manifest_id=model.manifest_id,
                    identity=self.identity,
                    links=self._links,
                    wallet=self.wallet,
                )
                try:
                    await stack.enter_async_context(open_call(call))
                    break
                except SwarmError as error:
                    if attempt == ATTEMPTS or error.peer_id not in usable:
                        raise
                    refused = error
                    del usable[error.peer_id]
            yield call


@asynccontextmanager
async def open_client(config: ClientConfig) -> AsyncIterator[ClientNode]:
    """Join the swarm as a client; leaves it when the block is left.

    Raises `UsageError` without an address to join through, `UnreachableError` when no bootstrap node or chain
    answers, `ResourceError` for keys and ledger.
    """
    if not config.bootstrap:
        raise UsageError("no DHT node to join through; give --bootstrap HOST:PORT (a publisher prints its own)")
    home = Home(path=config.home)
    identity = await trio.to_thread.run_sync(Identity.load, home.peer_key)
    spending = await trio.to_thread.run_sync(Identity.load, home.spending_key)
    settlement = await trio.to_thread.run_sync(_connect_chain, config, home)
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(home.client_ledger))
        node = await stack.enter_async_context(
            open_node(DhtConfig(host=_any_host(config.bootstrap), bootstrap=config.bootstrap, read_only=True))
        )
        links = await stack.enter_async_context(open_links(identity))
        wallet = Wallet(spending=spending, ledger=ledger, settlement=settlement, allocation=config.allocation)
        yield ClientNode(
            config,
            identity=identity,
            directory=Directory(node),
            links=links,
            ledger=ledger,
            wallet=wallet,
            settlement=settlement,
        )


def _connect_chain(config: ClientConfig, home: Home) -> Settlement | None:
    if config.chain_rpc is None:
        return None
    if config.contract is None:
        raise UsageError("a chain needs the settlement contract's address too; give --contract")
    from swarm.settlement_evm import EvmSettlement, load_account

    key, _ = load_account(home.account_key)
    return EvmSettlement.connect(config.chain_rpc, config.contract, account_key=key)


def _any_host(bootstrap: tuple[tuple[str, int], ...]) -> str:
    """Where to listen: loopback when everything is on this machine, else every address."""
    return "127.0.0.1" if all(host in ("127.0.0.1", "localhost") for host, _ in bootstrap) else "0.0.0.0"  # noqa: S104
