"""``swarm settle`` and ``swarm wallet``: what was earned, on chain; what is there to spend."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.options import ChainOption, ContractOption, HomeOption, JsonOption, load
from swarm.cli.terminal import print_json, print_progress, print_table
from swarm.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from swarm.config import Home, Settings
    from swarm.receipts import Channel
    from swarm.settlement import Claim, Settlement
    from swarm.settlement_evm import EvmSettlement

COINS = 10**18  # wei for gas that `fund` gives: hundreds of transactions


class WalletAction(StrEnum):
    """What to do with the wallet."""

    show = "show"
    balance = "balance"
    create = "create"
    fund = "fund"
    deposit = "deposit"
    allocate = "allocate"
    close = "close"
    withdraw = "withdraw"


def settle(
    home: Annotated[
        list[Path] | None, typer.Option("--home", metavar="FOLDER", help="A worker's home; may be repeated.")
    ] = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    service: Annotated[
        bool, typer.Option("--service", help="Go on until Ctrl-C: post batches, show their data, claim and close.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="As a service, check everybody's batches too.")] = False,
    bond: Annotated[
        int, typer.Option("--bond", metavar="AMOUNT", min=0, help="Base units to deposit for bonds first.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Redeem on chain what a worker has earned.

    The last voucher of every direct channel, all in one transaction, which the first home's account pays the gas of.
    Batched channels are settled by a service: this one with --service, or anybody's.
    """
    places: list[Path | None] = [*home] if home else [None]
    homes = [load(path, chain_rpc=chain, chain_contract=contract) for path in places]
    settlement = connect(*homes[0])
    if bond:
        settlement.deposit_bond(bond)
    if service or watch:
        from swarm.cli.batches import serve

        ledgers = tuple(found.worker_ledger for found, _ in homes if found.worker_ledger.exists())
        serve(homes[0][0], settlement, ledgers=ledgers if service else None, peers=[] if watch else None, json=json)
        return
    claims: list[tuple[Home, Channel, Claim]] = []
    for found, _ in homes:
        claims.extend((found, channel, claim) for channel, claim in _claims(found, settlement))
    if not claims:
        print_progress("nothing to redeem: every channel is settled")
        if json:
            print_json({"vouchers": 0, "gas": 0, "paid": 0, "transaction": None})
        return
    before = {channel: _settled(settlement, channel) for _, channel, _ in claims}
    transaction = settlement.redeem([claim for _, _, claim in claims])
    paid = {channel: _settled(settlement, channel) for _, channel, _ in claims}
    for found, _ in homes:
        _mark(found, {channel: paid[channel] for of, channel, _ in claims if of is found}, transaction.hash)
    total = sum(paid.values()) - sum(before.values())
    if json:
        print_json({"vouchers": len(claims), "gas": transaction.gas, "paid": total, "transaction": transaction.hash})
        return
    rows = [(channel.worker.short, channel.client.short, paid[channel] - before[channel]) for _, channel, _ in claims]
    print_table(
        ("worker", "client", "paid"), rows, title=f"redeemed {len(claims)} vouchers for {transaction.gas:,} gas"
    )


def wallet(
    action: Annotated[
        WalletAction,
        typer.Argument(metavar="ACTION", help="show, balance, create, fund, deposit, allocate, close or withdraw."),
    ],
    amount: Annotated[
        int, typer.Argument(metavar="AMOUNT", min=0, help="Base units of the settlement token.", show_default=False)
    ] = 0,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="0x…", help="The worker's account, for allocate.")
    ] = None,
    batched: Annotated[
        bool, typer.Option("--batched", help="A channel that allocate opens is paid by batches.")
    ] = False,
    home: HomeOption = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    json: JsonOption = False,
) -> None:
    """Look at and fill the account that pays for calls.

    `create` makes the account's key and the spending key where they are missing, and needs no chain. `show` and
    `balance` are the same. `deposit` and `withdraw` move tokens into the settlement contract and out of it.
    `allocate` sets the cap of the channel to a worker to AMOUNT in all. `close` asks for the close of
    every channel, and takes back what is left in those whose window has passed. `fund` gives the account coins for
    gas, and AMOUNT tokens, on a development chain such as `swarm chain`; on others, buy them.
    """
    found, settings = load(home, chain_rpc=chain, chain_contract=contract)
    if action is WalletAction.create:
        _create(found, json=json)
        return
    settlement = connect(found, settings)
    if action is WalletAction.allocate:
        _allocate(found, settlement, worker, amount, batched=batched)
    elif action is WalletAction.fund:
        settlement.fund(settlement.account, native=COINS, tokens=amount)
    elif action is WalletAction.deposit:
        settlement.deposit(amount)
    elif action is WalletAction.withdraw:
        settlement.withdraw(amount)
    elif action is WalletAction.close:
        _close_channels(found, settlement)
    state = settlement.account_state(settlement.account)
    shown = {
        "account": f"0x{settlement.account}",
        "free_balance": state.free_balance,
        "token_balance": state.token_balance,
        "spending_key": state.spending_key,
    }
    if json:
        print_json(shown)
    else:
        print(f"account         0x{settlement.account}")
        print(f"tokens          {state.token_balance:,}")
        print(f"free balance    {state.free_balance:,}")
        print(f"spending key    {state.spending_key or 'none yet; the first call registers it'}")


def _create(home: Home, *, json: bool) -> None:
    from swarm.identity import Identity
    from swarm.settlement_evm import load_account

    _, address = load_account(home.account_key)
    shown = {"account": f"0x{address}", "spending_key": str(Identity.load(home.spending_key).peer_id)}
    if json:
        print_json(shown)
    else:
        print(f"account         {shown['account']}\nspending key    {shown['spending_key']}")


def _allocate(home: Home, settlement: EvmSettlement, worker: str | None, cap: int, *, batched: bool) -> None:
    from swarm.identity import Identity
    from swarm.ids import Address

    try:
        to = Address.parse(worker or "")
    except ValueError as error:
        raise UsageError("allocate to whom? give --worker 0x… with 40 hex digits") from error
    spending = Identity.load(home.spending_key).peer_id
    if settlement.account_state(settlement.account).spending_key != spending:
        settlement.register_spending_key(spending)
    settlement.allocate({to: cap}, batched=batched)


def connect(home: Home, settings: Settings) -> EvmSettlement:
    """The settlement contract that the settings name, used by the home's account."""
    if not settings.chain_rpc or settings.contract is None:
        raise UsageError("no chain is named; give --chain URL and --contract 0x…")
    from swarm.settlement_evm import EvmSettlement, load_account

    key, _ = load_account(home.account_key)
    return EvmSettlement.connect(settings.chain_rpc, settings.contract, account_key=key)


def _claims(home: Home, settlement: Settlement) -> list[tuple[Channel, Claim]]:
    """A claim for every channel on this contract that has earned more than the chain has paid."""
    from swarm.ledger import read_ledger
    from swarm.settlement import Claim

    if not home.worker_ledger.exists():
        raise UsageError(f"{home.path} has no worker's ledger; name a worker's home with --home")
    found = []
    with read_ledger(home.worker_ledger) as ledger:
        for channel, signed, earned in ledger.unsettled():
            if (channel.chain_id, channel.contract) != (settlement.chain_id, settlement.contract):
                continue
            state = settlement.channel(channel.client, channel.worker)
            if state is None or state.batched:
                continue
            if state.epoch == channel.epoch and earned > state.settled:
                found.append((channel, Claim(signed=signed, amount=min(earned, signed.voucher.cumulative))))
    return found


def _settled(settlement: Settlement, channel: Channel) -> int:
    state = settlement.channel(channel.client, channel.worker)
    return state.settled if state is not None and state.epoch == channel.epoch else 0


def _mark(home: Home, paid: dict[Channel, int], transaction_hash: bytes) -> None:
    """Note in the ledger what the chain has paid. The chain is the truth, so a worker that is running may skip it."""
    import trio

    from swarm.ledger import open_ledger

    async def mark() -> None:
        async with open_ledger(home.worker_ledger) as ledger:
            for channel, amount in paid.items():
                await ledger.mark_settled(channel, amount, transaction_hash)

    try:
        trio.run(mark)
    except ResourceError:
        print_progress(f"{home.path} is in use by its worker; the chain keeps what was paid")


def _close_channels(home: Home, settlement: EvmSettlement) -> None:
    from swarm.cli.batches import finalize
    from swarm.errors import PaymentError
    from swarm.ledger import read_ledger

    with read_ledger(home.client_ledger) as ledger:
        channels = [state.channel for state in ledger.channels()]
    for channel in channels:
        state = settlement.channel(channel.client, channel.worker) if channel.client == settlement.account else None
        if state is None or state.epoch != channel.epoch:
            continue
        if state.closing_at is None:
            settlement.request_close(channel.worker)
            print_progress(f"asked to close the channel to {channel.worker.short}; run this again after the window")
        else:
            try:
                if not state.batched:
                    settlement.finalize_close(channel.worker)
                elif not finalize(home, settlement, state):
                    print_progress("the batch's file is not here; fetch it with `swarm watch`, or let a settler do it")
            except PaymentError as error:
                print_progress(error.message)
