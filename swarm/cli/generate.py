"""``swarm generate``: continue a text on a model in the swarm."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from swarm.cli.options import BootstrapOption, ChainOption, ContractOption, HomeOption, JsonOption
from swarm.cli.terminal import print_json, print_progress, print_text


def generate(
    model: Annotated[str, typer.Argument(metavar="PUBLISHER/NAME", help="The model, as its publisher prints it.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="The most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="X", min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(metavar="X", help="Draw from the tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="The same seed draws the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this; may be repeated.")] = None,
    max_spend: Annotated[
        int | None, typer.Option(metavar="UNITS", min=0, help="Base units that the call may cost at most.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Continue a text on a model of the swarm, streamed to stdout.

    Needs neither torch nor libtorrent. Workers that ask a price need --chain and --contract.
    """
    from client import Swarm
    from dht.names import parse_model_reference
    from swarm.cli.interrupts import close_first

    parse_model_reference(model)  # refused before the swarm is joined
    close_first()
    text = sys.stdin.read() if prompt == "-" else prompt
    with (
        Swarm(home=home, bootstrap=bootstrap or None, chain=chain, contract=contract) as swarm,
        swarm.stream(
            model,
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop or (),
            max_spend=max_spend,
        ) as stream,
    ):
        for delta in stream:
            if not json:
                print_text(delta.text)
        reply = stream.reply
    if reply is None:
        return
    if not json:
        sys.stdout.write("\n")
        pace = f", {reply.ms_per_token:.1f} ms per token" if reply.ms_per_token is not None else ""
        print_progress(
            f"{reply.usage.completion_tokens} tokens by {len(reply.chain)} workers{pace}, cost {reply.cost} units"
        )
        return
    print_json(
        {
            "model": model,
            "call_id": reply.call_id,
            "text": reply.text,
            "token_ids": reply.token_ids,
            "finish_reason": reply.finish_reason,
            "usage": reply.usage,
            "cost": reply.cost,
            "seconds": reply.seconds,
            "ms_per_token": reply.ms_per_token,
            "chain": reply.chain,
        }
    )
