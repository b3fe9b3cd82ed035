"""``swarm watch`` and ``swarm settle --service``: batches, posted and checked until Ctrl-C."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.options import ChainOption, ContractOption, HomeOption, JsonOption, load
from swarm.cli.terminal import print_json, print_progress

if TYPE_CHECKING:
    from swarm.config import Home
    from swarm.settlement import ChannelState
    from swarm.settlement_evm import EvmSettlement
    from swarm.settler import Turn
    from swarm.watcher import Findings

REPORTS = 16  # turns that may wait to be printed


def watch(
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="HOST:PORT", help="A settler or watcher to fetch files from; may be repeated."),
    ] = None,
    bond: Annotated[
        int, typer.Option("--bond", metavar="AMOUNT", min=0, help="Base units to deposit for demands first.")
    ] = 0,
    home: HomeOption = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    json: JsonOption = False,
) -> None:
    """Check everybody's batches, and prove lies.

    Until Ctrl-C. Files are fetched as torrents, checked record by record and served on. Half the bond of a batch that
    lies goes to the account that proves it.
    """
    from swarm.cli.settle import connect
    from swarm.config import parse_address

    found, settings = load(home, chain_rpc=chain, chain_contract=contract)
    settlement = connect(found, settings)
    if bond:
        settlement.deposit_bond(bond)
    peers = [parse_address(text, name="peer") for text in peer or ()]
    serve(found, settlement, ledgers=None, peers=peers, json=json)


def folder_of(home: Home) -> Path:
    """Where a home keeps batch files."""
    return home.path / "batches"


def finalize(home: Home, settlement: EvmSettlement, state: ChannelState) -> bool:
    """Finalise the close of a batched channel from the home's files; False if the one that it takes is missing."""
    from swarm.batch_files import BatchFiles
    from swarm.batches_evm import open_board
    from swarm.settler import finalize as finalize_close

    board = open_board(settlement)
    if board.due():
        board.advance()
    return finalize_close(board, BatchFiles(folder_of(home)), board.batches(), state)


def serve(
    home: Home,
    settlement: EvmSettlement,
    *,
    ledgers: tuple[Path, ...] | None,
    peers: list[tuple[str, int]] | None,
    json: bool,
) -> None:
    """Settle for ``ledgers`` (None: do not settle) and watch with ``peers`` (None: do not watch) until Ctrl-C."""
    import trio

    from swarm.batches_evm import open_board
    from swarm.cli.interrupts import run_closing
    from swarm.nurseries import open_nursery
    from swarm.settler import Settler, SettlerConfig, run_settler
    from swarm.torrents import TorrentConfig, open_torrents
    from swarm.watcher import Watcher, WatcherConfig, run_watcher

    folder = folder_of(home)

    async def run() -> None:
        reports, turns = trio.open_memory_channel[object](REPORTS)
        async with open_torrents(TorrentConfig()) as torrents, open_nursery() as nursery:
            print_progress(f"swarm: batch files are served at 127.0.0.1:{torrents.port}; Ctrl-C stops it")
            # A settler serves its files as a watcher does, and looks at others' alike.
            watching = WatcherConfig(folder=folder, peers=tuple(peers or ()), demand=peers is not None)
            watcher = Watcher(open_board(settlement), settlement, watching, torrents)
            nursery.start_soon(partial(run_watcher, watcher, report=reports))
            if ledgers is not None:
                settler = Settler(open_board(settlement), settlement, SettlerConfig(folder=folder, ledgers=ledgers))
                nursery.start_soon(partial(run_settler, settler, report=reports))
            last = ""
            async for turn in turns:
                text = turn if isinstance(turn, str) else describe(turn)
                if text and text != last:
                    print_json({"event": text}) if json else print_progress(text)
                last = text

    run_closing(run)


def describe(turn: Turn | Findings | object) -> str:
    """One line about what a turn did; empty if it did nothing."""
    from swarm.settler import Turn
    from swarm.watcher import Findings

    parts: list[str] = []
    if isinstance(turn, Turn):
        parts += [f"posted batch {turn.posted}"] if turn.posted else []
        parts += [f"showed data {turn.answered} times"] if turn.answered else []
        parts += [f"paid {len(turn.claimed)} workers"] if turn.claimed else []
        parts += [f"closed {len(turn.closed)} channels"] if turn.closed else []
    elif isinstance(turn, Findings):
        parts += [f"batch {number} is true" for number in turn.checked]
        parts += [f"voided batch {number}: {lie.kind}, {lie.what}" for number, lie in turn.proven]
        parts += [f"demanded the data of batch {number}" for number in turn.demanded]
        parts += [f"voided batch {number}: its data was withheld" for number in turn.voided]
        parts += [f"{turn.shown} records put on record for closes"] if turn.shown else []
        parts += turn.problems
    return "; ".join(parts)
