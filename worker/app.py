"""A worker's whole life: find the model, fetch the span, load it, serve it. The one nursery of the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from dht.config import DhtConfig
from dht.directory import Directory
from dht.heartbeat import Advert
from dht.names import parse_model_reference
from dht.node import open_node
from dht.sources import Sources
from swarm.catalogue import Catalogue
from swarm.config import Home
from swarm.errors import UsageError
from swarm.identity import Identity
from swarm.ids import Address, ManifestId, PeerId
from swarm.ledger import open_ledger
from swarm.links import open_links
from swarm.manifest import Manifest, span_bytes
from swarm.nurseries import open_nursery
from swarm.peer import serve_peers
from swarm.ports import check_port
from swarm.receipts import Price
from swarm.settlement import Settlement
from swarm.store import Store
from swarm.torrent import Torrent
from swarm.torrents import TorrentConfig, Torrents, open_torrents
from worker.adverts import advert_of
from worker.engine import Rates, open_engine
from worker.fetch import Loaded, Report, SpanFetch, load_span, open_stored, open_swarming
from worker.find import find_model
from worker.service import Offer, Service

KV_BUDGET = 1 << 30  # bytes for the keys and values of all sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What to serve, where, and for how much."""

    home: Path
    """Keys, ledger and store; made if it is not there. One worker to a home."""
    model: str
    """PUBLISHER/NAME."""
    bootstrap: tuple[tuple[str, int], ...]
    """DHT nodes to join through."""
    host: str = "127.0.0.1"
    """The address to listen on: for peers (TCP), weights (TCP) and the DHT (UDP)."""
    port: int = 0
    """TCP port for peers; 0 takes a free one."""
    span: tuple[int, int] | None = None
    """Layers [start, stop) to serve; None for all."""
    price: Price
    """Base units per 1000 tokens and layer; zero serves for nothing."""
    chain_rpc: str | None = None
    """JSON-RPC URL of the chain that it is paid on."""
    contract: Address | None = None
    """The settlement contract on it."""
    device: str = "cpu"
    """torch's name of the device."""
    threads: int | None = None
    """Threads that torch may use on a CPU; None leaves it to torch."""
    kv_budget_bytes: int = KV_BUDGET
    disk_quota: int = 0
    """Bytes that the home's store may take; 0 is whatever the disk has."""
    weights: TorrentConfig = field(default_factory=TorrentConfig)
    """Where weights are exchanged, and at which rates; its host is that of the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a worker that serves says of itself. Sizes in bytes, rates in tokens per second for the span."""

    peer_id: PeerId
    host: str
    port: int
    model: str
    manifest_id: ManifestId
    span: tuple[int, int]
    account: Address | None
    bytes_fetched: int
    span_bytes: int
    model_bytes: int
    first_layer_after: float
    """Seconds from the start of the transfer until the first layer was on the device."""
    span_after: float
    """The same for the whole span."""
    decode_rate: float
    prefill_rate: float


async def run_worker(
    config: WorkerConfig, *, report: Report, task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Started once it can be called; raises a typed error when it cannot get there."""
    _check(config)
    home = Home(path=config.home)
    identity = await trio.to_thread.run_sync(Identity.load, home.peer_key)
    settlement = await trio.to_thread.run_sync(_connect_chain, config, home)
    async with (
        open_ledger(home.worker_ledger) as ledger,
        open_node(DhtConfig(host=config.host, bootstrap=config.bootstrap)) as node,
        open_torrents(config.weights) as torrents,
    ):
        directory = Directory(node)
        report("looking for the model", None)
        async with open_links(identity) as links:
            signed, objects = await find_model(config.model, Sources(directory, links), Catalogue(home.store))
        span = _span(config, signed.manifest)
        fetch = SpanFetch(
            manifest=signed.manifest,
            raw=objects[signed.manifest.torrent],
            span=span,
            store=Store(home.store, quota=config.disk_quota),
            device=config.device,
        )
        async with (
            _loaded(fetch, directory, torrents, report) as (torrent, loaded),
            open_engine(loaded.model, kv_budget_bytes=config.kv_budget_bytes, threads=config.threads) as engine,
        ):
            fetched = (await torrent.refresh()).downloaded_payload
            report("measuring", None)
            rates = await engine.probe()
            service = Service(
                identity=identity,
                signed=signed,
                objects=objects,
                engine=engine,
                offer=_offer(config, span, rates),
                ledger=ledger,
                settlement=settlement,
            )
            async with _serving(config, identity, service) as port:
                torrents.map_port(port)
                await directory.announce_torrent(signed.manifest.info_hash, torrents.port)
                async with _advertised(directory, identity, service):
                    task_status.started(
                        Ready(
                            peer_id=identity.peer_id,
                            host=config.host,
                            port=port,
                            model=config.model,
                            manifest_id=signed.manifest_id,
                            span=span,
                            account=settlement.account if settlement is not None else None,
                            bytes_fetched=fetched,
                            span_bytes=span_bytes(signed.manifest, *span),
                            model_bytes=sum(file.size for file in signed.manifest.files),
                            first_layer_after=loaded.first_layer_after,
                            span_after=loaded.span_after,
                            decode_rate=rates.decode,
                            prefill_rate=rates.prefill,
                        )
                    )
                    await trio.sleep_forever()


def _offer(config: WorkerConfig, span: tuple[int, int], rates: Rates) -> Offer:
    """What is served and asked, with the rates that were measured."""
    start, stop = span
    return Offer(start=start, stop=stop, price=config.price, decode_rate=rates.decode, prefill_rate=rates.prefill)


@asynccontextmanager
async def _loaded(
    fetch: SpanFetch, directory: Directory, torrents: Torrents, report: Report
) -> AsyncIterator[tuple[Torrent, Loaded]]:
    """The span on its device, and the torrent that goes on serving it to others until the block is left."""
    async with open_stored(fetch, torrents) as torrent:
        async with open_swarming(directory, torrent, torrents.port, report):
            loaded = await load_span(fetch, torrent, report)
        yield torrent, loaded


@asynccontextmanager
async def _serving(config: WorkerConfig, identity: Identity, service: Service) -> AsyncIterator[int]:
    """Serve peers and keep the links to neighbours until the block is left; gives the port."""
    async with open_links(identity, service.handle) as links, open_nursery() as nursery:
        service.links = links
        serve = partial(serve_peers, service.handle, identity, host=config.host, port=config.port, on_peer=links.adopt)
        service.address = (config.host, await nursery.start(serve))
        yield service.address[1]
        nursery.cancel_scope.cancel()


def _advertised(
    directory: Directory, identity: Identity, service: Service
) -> AbstractAsyncContextManager[None, bool | None]:
    """What the service offers, in the directory until the block is left; brought up to date at every heartbeat."""

    def advert() -> Advert:
        return advert_of(service.quote(service.manifest_id).quote)

    return directory.advertised(identity, advert(), lambda _: advert())


def _check(config: WorkerConfig) -> None:
    """What can be refused before anything is made or fetched."""
    parse_model_reference(config.model)
    if config.chain_rpc is None and (config.price.per_1k_input or config.price.per_1k_output):
        raise UsageError("a worker that asks a price needs a chain; give --chain, or --price 0 to serve for nothing")
    if config.chain_rpc is not None and config.contract is None:
        raise UsageError("a chain needs the settlement contract's address too; give --contract")
    check_port(config.host, config.port)


def _span(config: WorkerConfig, manifest: Manifest) -> tuple[int, int]:
    start, stop = config.span or (0, manifest.layers)
    if not 0 <= start < stop <= manifest.layers:
        raise UsageError(f"span {start}:{stop} is not within the model's layers 0:{manifest.layers}; choose another")
    return start, stop


def _connect_chain(config: WorkerConfig, home: Home) -> Settlement | None:
    if config.chain_rpc is None or config.contract is None:
        return None
    from swarm.settlement_evm import EvmSettlement, load_account

    key, _ = load_account(home.account_key)
    return EvmSettlement.connect(config.chain_rpc, config.contract, account_key=key)
