"""What settling costs: gas of every operation, gas per call in batches, vouchers per second, payment's share of a call.

    python -m benchmarks.bench_settlement [--quick] [--json]

Gas is that of whole transactions under Prague rules in pyrevm, with the test token and the default fee of one percent.
The EIP-7623 floor on calldata and the 21 000 of a transaction are in it.

Vouchers are signed, checked and stored as a call does it: the client's side records before it signs, the worker's side
verifies and records before it goes on, both on disk with a sync, sharing syncs where calls are concurrent. Payment's
share of a call is one voucher of that path beside 64 tokens at the pace of one worker on the demo model.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import trio

from benchmarks.report import Bar, Findings, Table, run
from benchmarks.settlement_world import Chain, address
from swarm.identity import Identity
from swarm.ids import Address
from swarm.ledger import Ledger, open_ledger
from swarm.receipts import WINDOW_TOKENS, Channel, Voucher

SCHEMA = "bench-settlement/1"
ED25519_BAR = 268_000
PER_CALL_BAR = 10.0
SHARE_BAR = 1.0
CHANNELS, WORKERS = 100, 20
CALLS = (10**3, 10**5, 10**6)
EPOCH_CALLS = 10**6  # calls that one batch settles: a day of a thousand clients, two calls in three minutes each
TOKEN_MS = 1.9  # one token of the bundled model on one worker of two cores, by bench_chain: the fastest there is
SPENDING = Identity(bytes(range(32)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    vouchers: int
    rounds: int


FULL = Plan(vouchers=2_000, rounds=5)
QUICK = Plan(vouchers=200, rounds=2)


# ---- gas -------------------------------------------------------------------------------------------------------------


def operations() -> list[tuple[str, str, int]]:
    """(what, the figure to beat, gas) of every operation."""
    rows: list[tuple[str, str, int]] = []
    chain = Chain()
    worker = address(0x500)
    client = address(0x600)
    gas = chain.fund(client, 10_000)
    rows.append(("register a spending key", "", gas))
    chain.allocate(client, {worker: 1000})
    chain.redeem([(client, worker, 1000)], 1000)  # the pool's first fee fills a slot once and for all
    other = address(0x601)
    chain.fund(other, 10_000)
    chain.allocate(other, {address(0x501): 1000})
    rows.append(
        ("redeem one voucher, first of channel and worker", "290 k", chain.redeem([(other, address(0x501), 500)], 500))
    )
    rows.append(("redeem one voucher, later", "", chain.redeem([(other, address(0x501), 600)], 600)))
    workers = [address(0x700 + at) for at in range(20)]
    chain.allocate(client, dict.fromkeys(workers, 100))
    each = chain.redeem([(client, worker, 50) for worker in workers], 50) // 20
    rows.append(("per voucher in a transaction of 20", "259 k", each))
    rows.append(
        ("allocate 8 workers, direct", "216 k", chain.allocate(client, {address(0x800 + at): 5 for at in range(8)}))
    )
    batched = {address(0x810 + at): 5 for at in range(8)}
    rows.append(("allocate 8 new workers, batched", "", chain.allocate(client, batched, batched=True)))
    second = chain.allocate(other, batched, batched=True)
    rows.append(("allocate 8 workers that have batched channels", "", second))
    chain.promise_all(other, batched, 5)
    chain.post()
    rows.append(("post a batch, all of its roots and bond", "141 k (five slots)", chain.post()))
    rows.append(("claim for one worker with transfer, first", "53–58 k", chain.settle_first(next(iter(batched)))))
    chain.raise_all(other, batched, 10)
    rows.append(("claim for one worker with transfer, later", "53–58 k", chain.settle_next(next(iter(batched)))))
    return rows + proofs()


def proofs() -> list[tuple[str, str, int]]:
    """Gas of the proofs, in a batch of 100 channels."""
    rows: list[tuple[str, str, int]] = []
    for name, figure in (
        ("F1 forged voucher", "289–299 k"),
        ("F2 not backed", ""),
        ("F4 running sums", ""),
        ("F5 wrong total", ""),
        ("F5 filling", ""),
        ("F7 one block differs", "645–652 k"),
    ):
        rows.append((f"prove {name}", figure, Chain.with_channels(CHANNELS, WORKERS).prove(name)))
    chain = Chain.with_channels(CHANNELS, WORKERS)
    demand, show = chain.demand_and_show()
    rows += [("F8 demand a block", "", demand), ("F8 show a block and the layer", "", show)]
    rows.append(("request the close of a batched channel", "", chain.request_close()))
    rows.append(("finalise it with its record", "", chain.close()))
    return rows


def per_call(calls: int) -> tuple[int, int, float]:
    """(batches, gas in all, gas per call): posting and claims of `CHANNELS` channels and `WORKERS` workers."""
    chain = Chain.with_channels(CHANNELS, WORKERS)
    batches = max(1, calls // EPOCH_CALLS)
    gas = 0
    for number in range(batches):
        chain.count_calls(calls // batches, number)
        gas += chain.post() + chain.settle_all()
    return batches, gas, gas / calls


# ---- vouchers --------------------------------------------------------------------------------------------------------


async def pay(client: Ledger, worker: Ledger, channel: Channel, count: int) -> None:
    """One call's vouchers, one after the other, through both ledgers."""
    for number in range(1, count + 1):
        voucher = Voucher(
            channel=channel,
            nonce=number,
            cumulative=number * 10,
            receipts_root=client.receipts_root(channel),
            terms_hash=bytes(32),
        )
        signed = voucher.sign(SPENDING)
        await client.issue_voucher(signed)
        signed.verify(SPENDING.peer_id)
        await worker.accept_voucher(signed)


async def pace(folder: Path, calls: int, plan: Plan) -> tuple[float, float]:
    """With so many concurrent calls: vouchers per second, and ms of processor time per voucher; medians."""
    rates, costs = [], []
    for number in range(plan.rounds):
        home = folder / f"{calls}-{number}"
        async with open_ledger(home / "client.db") as client, open_ledger(home / "worker.db") as worker:
            each = plan.vouchers // calls
            start, spent = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                for call in range(calls):
                    nursery.start_soon(pay, client, worker, replace(CHANNEL, epoch=call + 1), each)
            rates.append(calls * each / (time.perf_counter() - start))
            costs.append((time.process_time() - spent) / (calls * each) * 1e3)
    return median(rates), median(costs)


def crypto(count: int) -> float:
    """µs of signing and checking one voucher, without any storing."""
    voucher = Voucher(channel=CHANNEL, nonce=1, cumulative=1, receipts_root=bytes(32), terms_hash=bytes(32))
    start = time.perf_counter()
    for _ in range(count):
        voucher.sign(SPENDING).verify(SPENDING.peer_id)
    return (time.perf_counter() - start) / count * 1e6


CHANNEL = Channel(
    chain_id=1337, contract=Address(b"\x11" * 20), client=Address(b"\x22" * 20), worker=Address(b"\x33" * 20), epoch=1
)


# ---- what is said ----------------------------------------------------------------------------------------------------


def measure(quick: bool) -> Findings:
    """Everything."""
    plan = QUICK if quick else FULL
    findings = Findings(results={"channels": CHANNELS, "workers": WORKERS})
    rows = operations()
    findings.results["gas"] = [{"what": what, "to_beat": figure, "gas": gas} for what, figure, gas in rows]
    findings.tables.append(
        Table(title="gas, whole transactions", columns=("", "to beat", "gas"), rows=[(w, f, g) for w, f, g in rows])
    )
    single = next(gas for what, _, gas in rows if what.startswith("redeem one voucher, first"))
    findings.bars.append(Bar.below("Ed25519 verification, whole transaction", single, ED25519_BAR + 1, "gas"))
    report_calls(findings)
    trio.run(report_vouchers, findings, plan)
    return findings


def report_calls(findings: Findings) -> None:
    """Gas per call at each number of calls."""
    rows = [(calls, *per_call(calls)) for calls in CALLS]
    findings.results["gas_per_call"] = [
        {"calls": calls, "batches": batches, "gas": gas, "per_call": each} for calls, batches, gas, each in rows
    ]
    note = f"{CHANNELS} channels, {WORKERS} workers, one batch per {EPOCH_CALLS:,} calls; posting and claims included."
    columns = ("calls", "batches", "gas in all", "gas per call")
    findings.tables.append(Table(title="batched", columns=columns, rows=list(rows), note=note))
    findings.bars.append(Bar.below("gas per call at 10^6 calls", rows[-1][3], PER_CALL_BAR, "gas"))


async def report_vouchers(findings: Findings, plan: Plan) -> None:
    """Vouchers per second, and what that is beside the tokens they pay for."""
    rows: list[tuple[object, ...]] = []
    cost = 0.0
    with tempfile.TemporaryDirectory(prefix="bench-settlement-") as name:
        for calls in (1, 16):
            rate, spent = await pace(Path(name), calls, plan)
            rows.append((calls, rate, 1e3 / rate * calls, spent))
            findings.results[f"vouchers_per_second_{calls}"] = rate
            findings.results[f"processor_ms_per_voucher_{calls}"] = spent
            cost = max(cost, spent)
    micros = crypto(plan.vouchers)
    findings.results["sign_and_check_us"] = micros
    # A voucher goes out at half a window, so the ring never waits for it: what it takes is processor time.
    share = cost / (WINDOW_TOKENS * TOKEN_MS) * 100
    findings.results["share_percent"] = share
    note = (
        f"Signed, recorded by the client, checked and recorded by the worker; signing and checking is {micros:.0f} µs. "
        f"A window is {WINDOW_TOKENS} tokens, {WINDOW_TOKENS * TOKEN_MS:.0f} ms at {TOKEN_MS} ms per token."
    )
    columns = ("concurrent calls", "vouchers per second", "ms per voucher of a call", "processor ms per voucher")
    findings.tables.append(Table(title="vouchers", columns=columns, rows=rows, note=note))
    findings.bars.append(Bar.below("payment's share of a call's processor time", share, SHARE_BAR, "%"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run(SCHEMA, __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
