"""`swarm wallet create|allocate`, `swarm settle --service` and `swarm watch` as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swarm.config import Home
from swarm.ids import Address
from swarm.settlement_evm import EvmSettlement, account_address, deploy, deploy_test_token, load_account
from tests.swarm.anvil import running_anvil
from tests.swarm.test_settler import CLIENT, TERMS, EvmFunding

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "swarm"]


def run(*arguments: str) -> Any:
    done = subprocess.run([*COMMAND, *arguments, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_wallet_is_made_once_and_needs_no_chain(tmp_path: Path) -> None:
    home = str(tmp_path / "client")
    made = run("wallet", "create", "--home", home)
    assert run("wallet", "create", "--home", home) == made
    assert Address.parse(made["account"]) == load_account(Home(path=tmp_path / "client").account_key)[1]
    done = subprocess.run(
        [*COMMAND, "wallet", "allocate", "5", "--home", home], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no chain is named" in done.stderr


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read what it reports until it says this."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"it ended before it said {text!r}")


def test_a_service_posts_and_a_watcher_checks(tmp_path: Path) -> None:
    with running_anvil() as url:
        EvmFunding(url).coins(account_address(CLIENT))
        token = deploy_test_token(url)
        contract, _ = deploy(url, account_key=CLIENT, token=token, terms=TERMS)
        chain = ("--chain", url, "--contract", f"0x{contract}")
        homes = {name: ("--home", str(tmp_path / name)) for name in ("client", "settler")}
        for home in homes.values():
            run("wallet", "create", *home)
            run("wallet", "fund", "10000", *home, *chain)
        run("wallet", "deposit", "5000", *homes["client"], *chain)
        worker = Address(b"\x77" * 20)
        shown = run("wallet", "allocate", "400", "--worker", f"0x{worker}", "--batched", *homes["client"], *chain)
        assert shown["free_balance"] == 4600
        settlement = EvmSettlement.connect(url, contract, account_key=CLIENT)
        state = settlement.channel(Address.parse(shown["account"]), worker)
        assert state is not None
        assert (state.cap, state.batched) == (400, True)
        write_voucher(tmp_path, settlement, state.client, worker)
        service = [*COMMAND, "settle", "--service", "--bond", "5000", "--json", *homes["settler"], *chain]
        with subprocess.Popen(
            service, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            until(process, "posted batch 1")
            process.terminate()
        watch = [*COMMAND, "watch", "--json", *homes["settler"], *chain]
        with subprocess.Popen(watch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            until(process, "batch 1 is true")
            process.terminate()


def write_voucher(folder: Path, settlement: EvmSettlement, client: Address, worker: Address) -> None:
    """The settler's home is a worker's too, which holds a voucher of the client."""
    import trio

    from swarm.identity import Identity
    from swarm.ledger import open_ledger
    from swarm.receipts import Channel, Voucher

    channel = Channel(chain_id=1337, contract=settlement.contract, client=client, worker=worker, epoch=1)
    voucher = Voucher(channel=channel, nonce=1, cumulative=300, receipts_root=bytes(32), terms_hash=bytes(32)).sign(
        Identity.load(folder / "client" / "spending.key")
    )

    async def write() -> None:
        async with open_ledger(Home(path=folder / "settler").worker_ledger) as ledger:
            await ledger.accept_voucher(voucher)

    trio.run(write)
