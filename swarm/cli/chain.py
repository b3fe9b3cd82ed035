"""``swarm chain``: a development chain on loopback."""

from __future__ import annotations

from typing import Annotated

import typer

from swarm.cli.terminal import print_json, print_progress


def chain(
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8545,
    close_window: Annotated[
        int | None, typer.Option(help="Seconds between asking for a channel's close and the refund.", min=0)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON alone.")] = False,
) -> None:
    """Host a development chain with the settlement contract, in memory, until Ctrl-C.

    Prints one line of JSON when it answers: rpc_url, chain_id, contract, token. Nothing on it is worth anything.
    """
    import trio

    from swarm.embedded_chain import CLOSE_WINDOW, ChainAddress, serve_chain

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            if not json:
                print_progress("swarm: starting a development chain, this takes a few seconds")
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
                print_progress(
                    f"swarm: ready; others reach it with SWARM_CHAIN_RPC={address.url}"
                    f" SWARM_CHAIN_CONTRACT=0x{address.contract}; Ctrl-C stops it"
                )

    trio.run(serve)
