"""``swarm work``: lend this machine to a model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.options import (
    BootstrapOption,
    ChainOption,
    ContractOption,
    HomeOption,
    HostOption,
    JsonOption,
    PortOption,
    SpanOption,
    joined,
    load,
    parse_span,
    weights,
)
from swarm.cli.terminal import ProgressBar, print_json, print_progress

if TYPE_CHECKING:
    from swarm.torrent import Progress
    from worker.app import Ready, WorkerConfig


def work(
    model: Annotated[str, typer.Argument(metavar="PUBLISHER/NAME", help="The model, as its publisher prints it.")],
    span: SpanOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    host: HostOption = None,
    port: PortOption = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    price: Annotated[
        int | None, typer.Option("--price", metavar="UNITS", min=0, help="Both prices at once; 0 serves for nothing.")
    ] = None,
    price_input: Annotated[
        int | None, typer.Option(metavar="UNITS", min=0, help="Base units per 1000 prompt tokens and layer.")
    ] = None,
    price_output: Annotated[
        int | None, typer.Option(metavar="UNITS", min=0, help="Base units per 1000 written tokens and layer.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch's name of the device: cpu, cuda, mps.")] = "cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads for torch on a CPU.")] = None,
    kv_mib: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Memory for the keys and values of all sessions.")
    ] = 1024,
    json: JsonOption = False,
) -> None:
    """Lend this machine: fetch a span of a model and serve it.

    Runs until Ctrl-C. Only tensors come in; no code is ever fetched. What was fetched is kept, and a worker that is
    started again with the same --home is the same worker.
    """
    from dht.names import parse_model_reference
    from swarm.ports import check_port
    from swarm.receipts import Price

    if price is not None:
        price_input = price if price_input is None else price_input
        price_output = price if price_output is None else price_output
    found, settings = load(
        home,
        bootstrap=bootstrap,
        listen_host=host,
        listen_port=port,
        chain_rpc=chain,
        chain_contract=contract,
        price_input=price_input,
        price_output=price_output,
    )
    parse_model_reference(model)
    layers, join = parse_span(span), joined(settings)
    check_port(settings.listen_host, settings.listen_port)

    from worker.app import WorkerConfig  # loads torch: after everything that can be refused without it

    config = WorkerConfig(
        home=found.path,
        model=model,
        bootstrap=join,
        host=settings.listen_host,
        port=settings.listen_port,
        span=layers,
        price=Price(per_1k_input=settings.price_input, per_1k_output=settings.price_output),
        chain_rpc=settings.chain_rpc or None,
        contract=settings.contract,
        device=device,
        threads=threads,
        kv_budget_bytes=kv_mib << 20,
        disk_quota=settings.disk_quota,
        weights=weights(settings),
    )
    _serve(config, json)


def _serve(config: WorkerConfig, json: bool) -> None:
    """Run the worker until it is interrupted; say when it can be called."""
    import trio

    from swarm.cli.interrupts import run_closing
    from worker.app import run_worker

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            ready: Ready = await nursery.start(partial(run_worker, config, report=partial(_report, bar)))
            bar.close()
            if json:
                print_json(ready)
            else:
                start, stop = ready.span
                publisher, _, name = ready.model.partition("/")
                print_progress(f"serving layers {start} to {stop - 1} of {publisher[:8]}…/{name}; Ctrl-C stops it")
                print_progress(
                    f"  peer {ready.peer_id.short} at {ready.host}:{ready.port}, {ready.decode_rate:.0f} tokens/s"
                )
                print_progress(f"  {ready.bytes_fetched:,} of the model's {ready.model_bytes:,} bytes fetched")

    with ProgressBar() as bar:
        run_closing(run)


def _report(bar: ProgressBar, what: str, progress: Progress | None) -> None:
    if progress is None:
        bar.close()
        print_progress(what)
        return
    done, wanted = progress.done_bytes, progress.wanted_bytes
    peers = f"{progress.peers} peer{'s'[: progress.peers != 1]}"
    text = f"{what} {done / 1e6:,.0f} of {wanted / 1e6:,.0f} MB from {peers}, {progress.rate / 1e6:.1f} MB/s"
    bar.show(done, wanted, text)
