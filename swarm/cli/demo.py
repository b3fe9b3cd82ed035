"""``swarm demo``: a whole swarm on this machine, from torrent to settled receipts, in one command.

Every other role is started as a process through the command line, as a user would; this process is the client.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarm.cli.interrupts import is_interrupt, run_closing
from swarm.cli.terminal import GREEN, RED, YELLOW, paint, print_json, print_progress, print_table, print_text
from swarm.errors import SwarmError, UsageError

if TYPE_CHECKING:
    import trio

    from client.call import Call, CallSummary
    from client.node import ClientNode, Model
    from swarm.cli.roles import Role, Roles
    from swarm.settlement_evm import EvmSettlement

SCHEMA = "swarm-demo/1"
PROMPT = 'def send(self, data):\n    """'
PRICE_INPUT = 1_000  # base units per 1000 tokens and layer; the test token has no value
PRICE_OUTPUT = 3_000
ALLOCATION = 100_000  # base units set aside for each worker
CLOSE_WINDOW = 3_600  # seconds; the demo moves its own chain's clock past it
POCKET_MONEY = 100_000_000  # base units deposited for whoever talks to a swarm that is kept
COINS = 10**18  # wei for gas
LAYERS = 8  # of the bundled model


@dataclass(slots=True)
class Outcome:
    """What the demo found out, step by step."""

    model: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0
    ms_per_token: float | None = None
    first_token_ms: float | None = None
    reference_equal: bool | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)
    settlement: dict[str, Any] = field(default_factory=dict)


def demo(
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", show_default=False, help="What the model is to continue.")
    ] = PROMPT,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, max=LAYERS, help="Workers, each on its own span of layers.")
    ] = 3,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, max=900, help="Tokens to generate.")] = 96,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the swarm up until Ctrl-C, and say how to talk to it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run a whole swarm on this machine, from torrent to receipts.

    Starts a development chain, a publisher and workers, generates text across them, pays, and settles. Greedy output
    is checked against transformers, where it is installed. Nothing leaves this machine.
    """
    # Before anything is open: an interrupt inside an import may be lost.
    for module in ("client.call", "client.node", "client.tokenizer", "swarm.cli.roles", "swarm.settlement_evm"):
        importlib.import_module(module)

    show = Show(quiet=json)
    folder = Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    try:
        run_closing(partial(_run, folder, show, prompt=prompt, workers=workers, max_tokens=max_tokens, keep=keep))
    except BaseException as error:
        if is_interrupt(error):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print_progress(f"the logs are in {folder}")
        raise
    shutil.rmtree(folder, ignore_errors=True)


class Show:
    """What the demo shows while it runs; when it is quiet, one JSON object in the end."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._started = time.monotonic()

    def step(self, what: str, detail: str = "") -> None:
        """One line about a step that is done."""
        if not self.quiet:
            print(f"{time.monotonic() - self._started:5.1f} s  {what:<12}{detail}", flush=True)

    def text(self, text: str) -> None:
        """Text as it streams."""
        if not self.quiet:
            print_text(text)

    def table(self, title: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        """A table."""
        if not self.quiet:
            print()
            print_table(columns, rows, title=title)

    def outcome(self, outcome: Outcome) -> None:
        """Everything as one JSON object, where nothing else is shown."""
        if self.quiet:
            print_json({"schema": SCHEMA, **{name: getattr(outcome, name) for name in Outcome.__slots__}})

    def verdict(self, text: str, colour: str) -> None:
        """The last word."""
        if not self.quiet:
            print(paint(text, colour, sys.stdout), flush=True)


async def _run(folder: Path, show: Show, *, prompt: str, workers: int, max_tokens: int, keep: bool) -> None:
    import trio

    from client.node import ClientConfig, open_client
    from swarm.cli.roles import open_roles
    from swarm.ids import Address

    outcome = Outcome()
    async with open_roles(folder) as roles:
        reference = await _start_reference(roles, folder)
        started: dict[str, Role] = {}

        async def start(name: str, *arguments: str) -> None:
            started[name] = await roles.start(name, *arguments)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, "chain", "chain", "--port", "0", "--close-window", str(CLOSE_WINDOW))
            nursery.start_soon(start, "publisher", *_publish_command(folder))
        chain, publisher = started["chain"].ready, started["publisher"].ready
        outcome.model = publisher["model"]
        show.step("chain", f"{chain['rpc_url']}, settlement contract {chain['contract'][:10]}…")
        show.step("publisher", f"{publisher['model_bytes']:,} bytes as {outcome.model[:8]}…/demo")
        ready = await _start_workers(roles, show, folder, chain, publisher, workers)
        config = ClientConfig(
            home=folder / "client",
            bootstrap=(_address(publisher["bootstrap"]),),
            chain_rpc=chain["rpc_url"],
            contract=Address.parse(chain["contract"]),
            allocation=ALLOCATION,
        )
        async with open_client(config) as node:
            settlement = _evm(node)
            deposited = ALLOCATION * workers
            gas = await _fund(settlement, ready, deposited)
            show.step("deposit", f"{deposited:,} units for {workers} workers, {gas['deposit']:,} gas")
            summary = await _generate(node, show, outcome, prompt, max_tokens)
            gas |= {kind: transaction.gas for kind, transaction in node.wallet.transactions}
            _describe_chain(show, outcome, ready, summary)
            await _settle(roles, show, outcome, chain, settlement, ready, gas)
            if keep:
                await _fund(settlement, ready, POCKET_MONEY)
        await _compare(reference, show, outcome, max_tokens)
        show.outcome(outcome)
        if keep:
            await _stay(folder, chain, publisher)
    if outcome.reference_equal is False:
        raise SwarmError("the output differs from transformers'; this is a bug, report it with the prompt")


def _publish_command(folder: Path) -> tuple[str, ...]:
    from swarm.demo import model_folder

    return ("publish", str(model_folder()), "--name", "demo", "--home", str(folder / "publisher"))


async def _start_reference(roles: Roles, folder: Path) -> trio.Process | None:
    """The comparison process, loading while the swarm starts; None where transformers is not installed."""
    import importlib.util
    import subprocess

    from swarm.demo import model_folder

    if importlib.util.find_spec("transformers") is None:
        return None
    command = (sys.executable, "-m", "swarm.demo.reference", str(model_folder()))
    return await roles.spawn(command, folder / "reference.log", stdin=subprocess.PIPE)


async def _start_workers(
    roles: Roles, show: Show, folder: Path, chain: dict[str, Any], publisher: dict[str, Any], count: int
) -> list[dict[str, Any]]:
    import trio

    bounds = [round(LAYERS * index / count) for index in range(count + 1)]
    ready: dict[int, dict[str, Any]] = {}

    async def start(index: int) -> None:
        start, stop = bounds[index], bounds[index + 1]
        role = await roles.start(
            f"worker-{index + 1}",
            "work",
            publisher["model"],
            *("--span", f"{start}:{stop}", "--bootstrap", publisher["bootstrap"], "--threads", "1"),
            *("--home", str(folder / f"worker-{index + 1}")),
            *("--chain", chain["rpc_url"], "--contract", chain["contract"]),
            *("--price-input", str(PRICE_INPUT), "--price-output", str(PRICE_OUTPUT)),
        )
        ready[index] = {**role.ready, "home": str(folder / f"worker-{index + 1}")}
        fetched, whole = role.ready["bytes_fetched"], role.ready["model_bytes"]
        show.step(f"worker {index + 1}", f"{_layers(start, stop)}, fetched {fetched:,} of {whole:,} bytes")

    async with trio.open_nursery() as nursery:
        for index in range(count):
            nursery.start_soon(start, index)
    return [ready[index] for index in range(count)]


def _evm(node: ClientNode) -> EvmSettlement:
    from swarm.settlement_evm import EvmSettlement

    if not isinstance(node.settlement, EvmSettlement):
        raise UsageError("the demo's client has a chain")
    return node.settlement


async def _fund(settlement: EvmSettlement, ready: list[dict[str, Any]], amount: int) -> dict[str, int]:
    """Coins for gas and test tokens, as a faucet would; then the client's deposit. Gas by kind."""
    import trio

    from swarm.ids import Address

    def fund() -> dict[str, int]:
        settlement.fund(settlement.account, native=COINS, tokens=amount)
        settlement.fund(Address.parse(ready[0]["account"]), native=COINS, tokens=0)
        return {"deposit": settlement.deposit(amount).gas}

    return await trio.to_thread.run_sync(fund)


async def _generate(node: ClientNode, show: Show, outcome: Outcome, prompt: str, max_tokens: int) -> CallSummary:
    from client.call import CallRequest
    from client.tokenizer import Tokenizer

    model: Model = await node.model(outcome.model)
    tokenizer = Tokenizer.load(model.objects, model.manifest.config)
    prompt_ids = tokenizer.encode(prompt)
    request = CallRequest(prompt_ids=prompt_ids, max_tokens=max_tokens, stop_ids=tokenizer.eos_ids)
    text = tokenizer.detokenizer()
    call: Call
    async with node.open_call(model, request) as call:
        gas = sum(transaction.gas for kind, transaction in node.wallet.transactions if kind == "allocate")
        show.step("channels", f"{len(call.legs)} workers allocated in one transaction, {gas:,} gas")
        show.text(f"\n{prompt}")
        async for tokens in call:
            show.text(piece := text.push(tokens.ids))
            outcome.text += piece
            outcome.token_ids.extend(tokens.ids)
        outcome.text += (rest := text.flush())
        show.text(f"{rest}\n\n")
        summary = await call.finish()
    outcome.prompt_ids = list(prompt_ids)
    outcome.seconds = summary.seconds
    if summary.first_token_seconds is not None:
        outcome.first_token_ms = summary.first_token_seconds * 1e3
        decoding = summary.seconds_to_last_token - summary.first_token_seconds
        outcome.ms_per_token = decoding * 1e3 / max(len(outcome.token_ids) - 1, 1)
    return summary


def _describe_chain(show: Show, outcome: Outcome, ready: list[dict[str, Any]], summary: CallSummary) -> None:
    receipts = {signed.receipt.worker.hex(): signed.receipt for signed in summary.receipts}
    rows: list[tuple[object, ...]] = []
    for worker in ready:
        receipt = receipts.get(worker["peer_id"])
        start, stop = worker["span"]
        earned = receipt.amount if receipt is not None else 0
        tokens = receipt.output_tokens if receipt is not None else 0
        keys = ("peer_id", "bytes_fetched", "span_bytes", "model_bytes")
        outcome.workers.append(
            {**{key: worker[key] for key in keys}, "span": [start, stop], "tokens": tokens, "earned": earned}
        )
        rows.append(
            (
                worker["peer_id"][:8],
                _layers(start, stop).partition(" ")[2],
                f"{worker['bytes_fetched'] / 1e6:.1f} of {worker['model_bytes'] / 1e6:.1f} MB",
                tokens,
                f"{1000 / worker['decode_rate']:.2f}",
                f"{PRICE_INPUT:,} / {PRICE_OUTPUT:,}",
                earned,
            )
        )
    title = (
        f"{len(outcome.token_ids)} tokens, {outcome.ms_per_token or 0:.1f} ms per token round the chain, "
        f"first after {outcome.first_token_ms or 0:.0f} ms"
    )
    columns = ("worker", "layers", "fetched", "tokens", "ms/token", "price in / out", "earned")
    show.table(title, columns, rows)


async def _settle(
    roles: Roles,
    show: Show,
    outcome: Outcome,
    chain: dict[str, Any],
    settlement: EvmSettlement,
    ready: list[dict[str, Any]],
    gas: dict[str, int],
) -> None:
    """Redeem every worker's last voucher in one transaction, close the channels, and take the rest back."""
    import trio

    from swarm.ids import Address

    homes = [argument for worker in ready for argument in ("--home", worker["home"])]
    where = ("--chain", chain["rpc_url"], "--contract", chain["contract"])
    settled = (await roles.start("settle", "settle", *homes, *where)).ready
    deposited = ALLOCATION * len(ready)
    gas["redeem"] = settled["gas"]

    def close() -> int:
        accounts = [Address.parse(worker["account"]) for worker in ready]
        gas["close"] = sum(settlement.request_close(account).gas for account in accounts)
        settlement.advance_clock(CLOSE_WINDOW + 1)
        gas["close"] += sum(settlement.finalize_close(account).gas for account in accounts)
        free = settlement.account_state(settlement.account).free_balance
        gas["withdraw"] = settlement.withdraw(free).gas
        return free

    refunded = await trio.to_thread.run_sync(close)
    outcome.settlement = {
        "vouchers": settled["vouchers"],
        "gas": settled["gas"],
        "gas_by_kind": gas,
        "deposited": deposited,
        "paid": settled["paid"],
        "refunded": refunded,
    }
    rows: list[tuple[object, ...]] = [
        ("deposited", deposited, gas["deposit"]),
        (f"allocated to {len(ready)} workers", deposited, gas["allocate"]),
        (
            f"paid for {settled['vouchers']} vouchers, signatures verified on chain",
            settled["paid"],
            gas["redeem"],
        ),
        ("refunded after the close", refunded, gas["close"] + gas["withdraw"]),
    ]
    show.table("settled on chain", ("", "units", "gas"), rows)
    if settled["paid"] + refunded != deposited:
        raise SwarmError(f"paid {settled['paid']} and refunded {refunded} are not the {deposited} deposited: a bug")


async def _compare(reference: trio.Process | None, show: Show, outcome: Outcome, max_tokens: int) -> None:
    import json

    from swarm.cli.roles import read_line

    if reference is None or reference.stdin is None:
        show.verdict("\nnot checked: transformers is not installed (pip install 'swarm-inference[demo]')", YELLOW)
        return
    request = {"prompt_ids": outcome.prompt_ids, "max_tokens": max_tokens}
    await reference.stdin.send_all(f"{json.dumps(request)}\n".encode())
    line = await read_line(reference)
    if not line:
        show.verdict("\nnot checked: the reference process ended; see its log", YELLOW)
        return
    outcome.reference_equal = json.loads(line)["token_ids"] == outcome.token_ids
    if outcome.reference_equal:
        show.verdict(f"\nequal to transformers, all {len(outcome.token_ids)} tokens", GREEN)
    else:
        show.verdict("\nDIFFERENT from transformers", RED)


async def _stay(folder: Path, chain: dict[str, Any], publisher: dict[str, Any]) -> None:
    import trio

    client = f"--home {folder / 'client'} --chain {chain['rpc_url']} --contract {chain['contract']}"
    print_progress("the swarm stays up; Ctrl-C stops it. Talk to it from another terminal:")
    print_progress(f"  swarm generate {publisher['model']} 'def fib(n):' --bootstrap {publisher['bootstrap']} {client}")
    await trio.sleep_forever()


def _layers(start: int, stop: int) -> str:
    return f"layer {start}" if stop == start + 1 else f"layers {start}–{stop - 1}"


def _address(text: str) -> tuple[str, int]:
    from swarm.config import parse_address

    return parse_address(text)
