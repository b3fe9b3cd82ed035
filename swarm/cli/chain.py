"""``swarm chain``: a development chain on loopback."""

from __future__ import annotations

from typing import Annotated

import typer

from swarm.cli.terminal import print_json, print_progress


def chain(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8545,
    close_window: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=0, help="From asking for a channel's close to the refund; a day without."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON alone.")] = False,
) -> None:
    """Host a development chain with the settlement contract.

    Runs until Ctrl-C, in memory alone; nothing on it is worth anything. Prints one line of JSON when it answers:
    rpc_url, chain_id, contract, token.
    """
    import trio

    from swarm.cli.interrupts import run_closing
    from swarm.embedded_chain import CLOSE_WINDOW, ChainAddress, serve_chain

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            if not json:
                print_progress("starting a development chain, this takes a few seconds")
            window = CLOSE_WINDOW if close_window is None else close_window

            async def run(task_status: trio.TaskStatus[ChainAddress]) -> None:
                await serve_chain(host, port, close_window=window, task_status=task_status)

            address = await nursery.start(run)
            print_json(
                {
                    "rpc_url": address.url,
                    "chain_id": address.chain_id,
                    "contract": "0x" + address.contract.hex(),
                    "token": "0x" + address.token.hex(),
                }
            )
            if not json:
                print_progress("ready; Ctrl-C stops it and forgets everything on it. Others reach it with:")
                print_progress(f"  export SWARM_CHAIN_RPC={address.url} SWARM_CHAIN_CONTRACT=0x{address.contract}")

    run_closing(serve)
