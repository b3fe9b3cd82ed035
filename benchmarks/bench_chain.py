"""What a chain of workers on loopback costs: ms per token beside local transformers, and the software cost per hop.

    python -m benchmarks.bench_chain [--quick] [--json]

One session, greedy, fp32. Every worker is a process and so is transformers; this process is the client. Rounds are
interleaved (each configuration in turn, then again), so that what else the machine does meets all alike; a figure is
the median over the rounds of the time per token after the first ones.

**The cost per hop** is measured on a ring of stages that compute nothing, with everything else on: TLS, credit and
vouchers, the ledger, the receipts' chained roots. A ring of N stages has N hops, none at N = 1, so it is
(ms per token at N - ms per token at 1) / N.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

from benchmarks.children import Child, open_child, open_children
from benchmarks.loopback_worker import ALLOCATION, HOST, Setup, account_of, seeded_chain
from benchmarks.random_llama import write_random_llama
from benchmarks.report import Bar, Findings, Table, installed, machine, run
from client.call import Call, CallRequest, open_call
from client.publish import Published, publish_folder
from client.route import Candidate, Leg
from client.wallet import Wallet
from swarm.demo import model_folder
from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.ledger import open_ledger
from swarm.links import Links, open_links
from swarm.messages import GetQuote, QuoteReply
from swarm.nurseries import open_nursery
from swarm.records import SignedQuote
from swarm.testing import FakeSettlement

SCHEMA = "bench-chain/1"
PROMPT = tuple(range(10, 26))  # in both vocabularies
STAGES = (1, 2, 3)
TRANSFORMERS_FLOOR = 1.0  # one worker is no slower
HOP_FLOOR = 2.0  # ms
HOP_NOTE = "floor 2 ms; heading for 0.5, and 0.2 as the goal"
CLIENT_ACCOUNT = Address(b"\xcc" * Address.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    hop_rounds: int
    skipped: int
    """Tokens of a call that do not count: the prefill and what is cold."""
    counted: int

    @property
    def tokens(self) -> int:
        """Tokens of one call."""
        return self.skipped + self.counted


FULL = Plan(rounds=5, hop_rounds=15, skipped=16, counted=64)
QUICK = Plan(rounds=2, hop_rounds=3, skipped=4, counted=16)

Configuration = Callable[[Plan], Awaitable[tuple[float, list[int]]]]
"""Generate once: ms per token, and the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One configuration's rounds, in ms per token."""

    rounds: list[float]
    tokens: list[int]

    @property
    def median(self) -> float:
        """The figure that counts."""
        return median(self.rounds)


def pace(times: Sequence[float], plan: Plan) -> float:
    """ms per token from the moments (seconds) at which tokens were there. Raises SwarmError unless all are."""
    if len(times) != plan.tokens:
        raise SwarmError(f"{len(times)} tokens came of {plan.tokens}")
    return (times[-1] - times[plan.skipped - 1]) / plan.counted * 1e3


async def measure_in_turn(configurations: dict[str, Configuration], plan: Plan, rounds: int) -> dict[str, Measured]:
    """Every configuration once, then again, for so many rounds after one that is not counted."""
    measured = {name: Measured(rounds=[], tokens=[]) for name in configurations}
    for number in range(rounds + 1):
        for name, generate in configurations.items():
            ms, tokens = await generate(plan)
            if number:
                measured[name].rounds.append(ms)
            measured[name].tokens[:] = tokens
    return measured


# ---- a model, its workers and a client -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """Workers of one model on loopback, and the client that calls them."""

    published: Published
    workers: list[Candidate]
    identity: Identity
    links: Links
    wallet: Wallet

    async def generate(self, stages: int, plan: Plan) -> tuple[float, list[int]]:
        """One call on the first ``stages`` workers, the layers divided evenly."""
        layers = self.published.signed.manifest.layers
        bounds = [round(layers * index / stages) for index in range(stages + 1)]
        legs = [
            Leg(candidate=worker, start=start, stop=stop)
            for worker, start, stop in zip(self.workers[:stages], bounds[:-1], bounds[1:], strict=True)
        ]
        call = Call(
            CallRequest(prompt_ids=PROMPT, max_tokens=plan.tokens),
            legs,
            manifest_id=self.published.signed.manifest_id,
            identity=self.identity,
            links=self.links,
            wallet=self.wallet,
        )
        times: list[float] = []
        async with open_call(call):
            async for message in call:
                times.extend([time.perf_counter()] * len(message.ids))
            summary = await call.finish()
        if len(summary.receipts) != stages:
            raise SwarmError(f"{len(summary.receipts)} receipts came of {stages} stages")
        return pace(times, plan), list(call.received)


@asynccontextmanager
async def open_swarm(folder: Path, published: Published, *, native: bool) -> AsyncIterator[Swarm]:
    """Start the workers; each serves the whole model, and so any stage of it."""
    client, spending = Identity.generate(), Identity.generate()
    keys = [Identity.generate() for _ in range(max(STAGES))]
    chain = seeded_chain(CLIENT_ACCOUNT, spending.peer_id, [key.peer_id for key in keys])
    settlement = FakeSettlement(chain=chain, account=CLIENT_ACCOUNT)
    async with AsyncExitStack() as stack:
        names = [f"{'worker' if native else 'pass-through'}-{index + 1}" for index in range(len(keys))]
        command = ("-m", "benchmarks.loopback_worker")
        children = await stack.enter_async_context(open_children(names, *command, folder=folder))
        links = await stack.enter_async_context(open_links(client))
        ledger = await stack.enter_async_context(open_ledger(folder / f"{names[0]}-client.db"))
        wallet = Wallet(spending=spending, ledger=ledger, settlement=settlement, allocation=ALLOCATION)
        ports: dict[str, int] = {}

        async def start(child: Child, key: Identity) -> None:
            home = folder / f"{child.name}-home"
            home.mkdir()
            setup = Setup(
                out=str(folder / "published"),
                name=published.signed.manifest.name,
                folder=str(published.folder),
                home=str(home),
                seed=key.seed.hex(),
                native=native,
                client=CLIENT_ACCOUNT.hex(),
                spending=spending.peer_id.hex(),
            )
            ports[child.name] = (await child.ask(setup.encode()))["port"]

        async with open_nursery() as nursery:
            for child, key in zip(children, keys, strict=True):
                nursery.start_soon(start, child, key)
        workers = [await _candidate(links, ports[name], key, published) for name, key in zip(names, keys, strict=True)]
        yield Swarm(published=published, workers=workers, identity=client, links=links, wallet=wallet)


async def _candidate(links: Links, port: int, key: Identity, published: Published) -> Candidate:
    peer = await links.connect(HOST, port, key.peer_id)
    reply, _ = await peer.request(GetQuote(published.signed.manifest_id), QuoteReply)
    signed = SignedQuote.read(reply.record, reply.signature, sender=key.peer_id, now=time.time())
    if signed.quote.account != account_of(key.peer_id):
        raise SwarmError("a worker answered with another account than it was seeded with")
    return Candidate(signed=signed, host=HOST, port=port, rtt=0.0)


@asynccontextmanager
async def open_transformers(folder: Path, model: Path) -> AsyncIterator[dict[str, Configuration]]:
    """Local transformers with one thread and with two; nothing where it is not installed."""
    if installed("transformers") is None:
        yield {}
        return
    log = folder / "transformers.log"
    async with open_child("transformers", "-m", "benchmarks.local_transformers", str(model), log=log) as child:

        async def generate(threads: int, plan: Plan) -> tuple[float, list[int]]:
            question = {"prompt_ids": PROMPT, "tokens": plan.tokens, "threads": threads}
            answer = await child.ask(question)
            return pace(answer["times"], plan), answer["ids"]

        yield {f"transformers, {threads} thread{'s'[: threads - 1]}": partial(generate, threads) for threads in (1, 2)}


# ---- what is measured ------------------------------------------------------------------------------------------------


def stages_name(stages: int) -> str:
    """How a chain is called in the tables."""
    return "1 worker" if stages == 1 else f"{stages} workers"


async def measure_model(folder: Path, published: Published, plan: Plan) -> dict[str, Measured]:
    """ms per token of transformers and of chains of workers, in one run."""
    async with (
        open_transformers(folder, published.folder) as configurations,
        open_swarm(folder, published, native=True) as swarm,
    ):
        chains = {stages_name(stages): partial(swarm.generate, stages) for stages in STAGES}
        return await measure_in_turn(configurations | chains, plan, plan.rounds)


async def measure_hops(models: dict[str, tuple[Path, Published]], plan: Plan) -> dict[int, dict[int, Measured]]:
    """By hidden size and stages: ms per token of rings that compute nothing."""
    async with AsyncExitStack() as stack:
        configurations: dict[str, Configuration] = {}
        places: dict[str, tuple[int, int]] = {}
        for folder, published in models.values():
            swarm = await stack.enter_async_context(open_swarm(folder, published, native=False))
            for stages in STAGES:
                name = f"{published.signed.manifest.hidden} {stages}"
                configurations[name] = partial(swarm.generate, stages)
                places[name] = (published.signed.manifest.hidden, stages)
        measured = await measure_in_turn(configurations, plan, plan.hop_rounds)
    hops: dict[int, dict[int, Measured]] = {}
    for name, (hidden, stages) in places.items():
        hops.setdefault(hidden, {})[stages] = measured[name]
    return hops


async def measure_all(plan: Plan) -> Findings:
    """Both models, and the hop."""
    findings = Findings(results={"prompt_tokens": len(PROMPT), "skipped": plan.skipped, "counted": plan.counted})
    with tempfile.TemporaryDirectory(prefix="bench-chain-") as name:
        folder = Path(name)
        sources = {
            "demo": model_folder(),
            "random-111m": await trio.to_thread.run_sync(write_random_llama, folder / "random-111m-model"),
        }
        models: dict[str, tuple[Path, Published]] = {}
        for model, source in sources.items():
            home = folder / model
            home.mkdir()
            out = home / "published"
            models[model] = (home, await publish_folder(source, name=model, publisher=Identity.generate(), out=out))
        for model, (home, published) in models.items():
            report_model(findings, model, await measure_model(home, published, plan))
        report_hops(findings, await measure_hops(models, plan))
    return findings


# ---- what is said ----------------------------------------------------------------------------------------------------


def report_model(findings: Findings, model: str, measured: dict[str, Measured]) -> None:
    """One model's table, results and bar."""
    local = {name: found for name, found in measured.items() if name.startswith("transformers")}
    best = min((found.median for found in local.values()), default=None)
    reference = next(iter(local.values())).tokens if local else None
    rows: list[tuple[object, ...]] = []
    results: list[dict[str, Any]] = []
    for name, found in measured.items():
        ratio = None if best is None else best / found.median
        same = None if reference is None else found.tokens == reference
        rows.append((name, found.median, min(found.rounds), max(found.rounds), ratio, _yes(same)))
        results.append(
            {
                "what": name,
                "ms_per_token": found.median,
                "rounds": found.rounds,
                "transformers_over_this": ratio,
                "tokens_equal": same,
            }
        )
    findings.results.setdefault("models", {})[model] = results
    note = (
        f"One session; a worker takes the threads that its engine chooses. This machine has {machine()['cores']} "
        "cores: workers of a chain and the client share them."
    )
    if best is None:
        note += " transformers is not installed: left out, and the bar with it."
    else:
        ratio = best / measured[stages_name(1)].median
        title = f"one worker against transformers, {model}"
        findings.bars.append(Bar.at_least(title, ratio, TRANSFORMERS_FLOOR, "transformers / ours"))
    columns = ("ms per token", "median", "min", "max", "transformers / this", "same tokens")
    findings.tables.append(Table(title=f"model {model}", columns=columns, rows=rows, note=note))


def report_hops(findings: Findings, hops: dict[int, dict[int, Measured]]) -> None:
    """The hop's table, results and bars: one for each size of activations, the dearest ring counts."""
    rows: list[tuple[object, ...]] = []
    results: list[dict[str, Any]] = []
    for hidden, rings in hops.items():
        alone = rings[1].median
        costs: list[float] = []
        for stages, found in rings.items():
            hop = None if stages == 1 else (found.median - alone) / stages
            rows.append((hidden, stages, found.median, min(found.rounds), max(found.rounds), hop))
            results.append(
                {
                    "hidden": hidden,
                    "stages": stages,
                    "ms_per_token": found.median,
                    "rounds": found.rounds,
                    "ms_per_hop": hop,
                }
            )
            costs += [] if hop is None else [hop]
        findings.bars.append(Bar.below(f"software cost per hop, hidden {hidden} fp32", max(costs), HOP_FLOOR, "ms"))
    findings.results["hops"] = results
    columns = ("hidden, fp32", "stages", "ms per token", "min", "max", "ms per hop")
    note = f"Stages that compute nothing, everything else on. {HOP_NOTE}."
    findings.tables.append(Table(title="software cost per hop", columns=columns, rows=rows, note=note))


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "NO"


def measure(quick: bool) -> Findings:
    """Everything, as `benchmarks.report.run` wants it."""
    return trio.run(measure_all, QUICK if quick else FULL)


if __name__ == "__main__":
    sys.exit(run(SCHEMA, __doc__, measure))
