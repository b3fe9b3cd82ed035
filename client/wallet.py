"""The client's money: channels to workers, and vouchers that are on disk before they are sent."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from client.budget import ChannelBudget, StageCost
from client.route import Leg
from swarm.errors import PaymentError, VerificationError
from swarm.identity import Identity
from swarm.ids import Address, CallId
from swarm.ledger import Ledger
from swarm.receipts import FREE_CHANNEL, Channel, Receipt, SignedReceipt, SignedVoucher
from swarm.records import Quote
from swarm.settlement import ChannelState, Settlement, Transaction


class Wallet:
    """Budgets by worker account. Without a settlement back end it can only call workers that serve for nothing."""

    def __init__(self, *, spending: Identity, ledger: Ledger, settlement: Settlement | None, allocation: int) -> None:
        """``allocation``: base units set aside for each worker when its channel is opened."""
        self._spending = spending
        self._ledger = ledger
        self._settlement = settlement
        self._allocation = allocation
        self._budgets: dict[Address, ChannelBudget] = {}
        self._doubted: set[Address] = set()  # channels that a worker sees otherwise: read again before the next call
        self._opening = trio.Lock()
        self.transactions: list[tuple[str, Transaction]] = []
        """What it has sent to the chain, by kind."""

    async def prepare(self, call: CallId, legs: Sequence[Leg], costs: Sequence[StageCost]) -> None:
        """Keep room for a whole call in the channel to every worker of its chain, until `settle_call`.

        What is missing is allocated in one transaction. Raises `PaymentError` when the free balance does not cover it,
        or naming the worker that cannot be paid.
        """
        priced = [(leg.candidate.signed.quote, cost.whole) for leg, cost in zip(legs, costs, strict=True) if cost.whole]
        async with self._opening:
            caps: dict[Address, int] = {}
            for quote, cost in priced:
                if quote.account in caps:
                    raise PaymentError(
                        f"peer {quote.worker.short} is paid to the same account as another stage; call it alone",
                        peer_id=quote.worker,
                    )
                caps[quote.account] = await self._wanted(quote, cost)
            missing = {account: cap for account, cap in caps.items() if cap}
            if missing:
                await self._allocate(missing)
            for quote, cost in priced:
                self._budgets[quote.account].reserve(call, cost)

    async def _wanted(self, quote: Quote, cost: int) -> int:
        """The cap that the channel to this worker needs, 0 when it is enough already."""
        settlement = self._settlement
        if settlement is None:
            raise PaymentError(f"peer {quote.worker.short} asks a price; name a chain with --chain to pay it")
        if (quote.chain_id, quote.contract) != (settlement.chain_id, settlement.contract):
            raise PaymentError(
                f"peer {quote.worker.short} is paid on chain {quote.chain_id}, contract {quote.contract}; "
                "name that one with --chain and --contract",
                peer_id=quote.worker,
            )
        budget = self._budgets.get(quote.account)
        if budget is None or (quote.account in self._doubted and not budget.reserved):
            budget = await self._read(quote)
        if budget is None:
            return max(self._allocation, cost)
        shortage = budget.shortage(cost)
        return budget.cap + max(self._allocation, shortage) if shortage else 0

    async def _read(self, quote: Quote) -> ChannelBudget | None:
        """The budget of the channel as the chain has it now; None when there is none."""
        settlement = self._settlement
        if settlement is None:
            raise PaymentError("there is no chain to read the channel from")
        self._doubted.discard(quote.account)
        self._budgets.pop(quote.account, None)
        state = await trio.to_thread.run_sync(settlement.channel, settlement.account, quote.account)
        if state is None:
            return None
        if state.closing_at is not None:
            raise PaymentError(
                f"the channel to peer {quote.worker.short} is being closed; finalise that before calling it again",
                peer_id=quote.worker,
            )
        budget = self._budgets[quote.account] = self._resume(state)
        return budget

    async def _allocate(self, caps: dict[Address, int]) -> None:
        settlement = self._settlement
        if settlement is None:
            raise PaymentError("there is no chain to allocate on")
        account = await trio.to_thread.run_sync(settlement.account_state, settlement.account)
        held = sum(budget.cap for worker, budget in self._budgets.items() if worker in caps)
        wanted = sum(caps.values()) - held
        if account.free_balance < wanted:
            raise PaymentError(
                f"these workers need {wanted} allocated and the free balance is {account.free_balance}; "
                "deposit more with: swarm wallet deposit"
            )
        if account.spending_key != self._spending.peer_id:
            registered = await trio.to_thread.run_sync(settlement.register_spending_key, self._spending.peer_id)
            self.transactions.append(("register", registered))
        self.transactions.append(("allocate", await trio.to_thread.run_sync(settlement.allocate, caps)))
        for worker in caps:
            state = await trio.to_thread.run_sync(settlement.channel, settlement.account, worker)
            if state is None:
                raise PaymentError("the chain took the allocation and does not show the channel; try again")
            known = self._budgets.get(worker)
            if known is not None and known.channel.epoch == state.epoch:
                known.cap = state.cap
            else:
                self._budgets[worker] = self._resume(state)

    def _resume(self, state: ChannelState) -> ChannelBudget:
        """A budget as the ledger left it, so that a restart promises nothing twice."""
        settlement = self._settlement
        if settlement is None:
            raise PaymentError("there is no chain to read the channel from")
        if state.spending_key != self._spending.peer_id:
            raise PaymentError(
                f"the channel to {state.worker.short} was opened with another spending key; close it and open a new one"
            )
        channel = Channel(
            chain_id=settlement.chain_id,
            contract=settlement.contract,
            client=state.client,
            worker=state.worker,
            epoch=state.epoch,
        )
        issued, earned = self._ledger.issued(channel), self._ledger.earned(channel)
        promised = issued.voucher.cumulative if issued is not None else 0
        return ChannelBudget(
            channel=channel,
            cap=state.cap,
            issued=promised,
            nonce=issued.voucher.nonce if issued is not None else 0,
            earned=earned,
            doubtful=max(0, promised - earned),
            receipts_root=self._ledger.receipts_root(channel),
        )

    async def voucher(self, quote: Quote, call: CallId, ceiling: int, terms_hash: bytes) -> SignedVoucher | None:
        """A voucher that lets ``call`` cost up to ``ceiling`` at this worker, stored before it is returned.

        For a call's first the last voucher is given again when it still covers it: unearned prepayment carries over.
        None when the last one covers a later request.
        """
        budget = self._budgets.get(quote.account)
        if budget is None:
            raise PaymentError(f"there is no channel to peer {quote.worker.short}", call_id=call)
        is_first = call not in budget.open
        voucher = budget.promise(call, ceiling, terms_hash)
        if voucher is None:
            return self._ledger.issued(budget.channel) if is_first else None
        signed = voucher.sign(self._spending)
        await self._ledger.issue_voucher(signed)
        return signed

    def acknowledge(self, quote: Quote, cumulative: int) -> None:
        """The worker says that it has a voucher of ``cumulative``."""
        if (budget := self._budgets.get(quote.account)) is not None:
            budget.acknowledge(cumulative)

    def concede(self, quote: Quote, cumulative: int) -> None:
        """The worker says that it stopped for want of a voucher of ``cumulative``: see `ChannelBudget.concede`."""
        if (budget := self._budgets.get(quote.account)) is not None:
            budget.concede(cumulative)

    def doubt(self, quote: Quote) -> None:
        """The worker refused to be paid on this channel: it is read from the chain again before the next call."""
        self._doubted.add(quote.account)

    async def settle_call(self, quote: Quote, call: CallId, receipt: SignedReceipt | None) -> None:
        """A call at this worker is over. Its receipt, if there is one, is stored and frees what was not used."""
        budget = self._budgets.get(quote.account) if _is_priced(quote) else None
        if budget is not None:
            budget.close(call, receipt.receipt if receipt is not None else None)
        if receipt is None:
            return
        channel = budget.channel if budget is not None else FREE_CHANNEL
        await self._ledger.record_receipt(
            channel,
            receipt.receipt,
            worker_signature=receipt.worker_signature,
            client_signature=receipt.client_signature,
        )
        if budget is not None:
            budget.receipts_root = self._ledger.receipts_root(channel)

    def check(self, receipt: Receipt, quote: Quote) -> None:
        """Raise `VerificationError` for a receipt of another channel, or one that counts more than there can be."""
        budget = self._budgets.get(quote.account) if _is_priced(quote) else None
        expected = budget.channel if budget is not None else FREE_CHANNEL
        named = (receipt.client_account, receipt.worker_account, receipt.channel_epoch)
        most = budget.most_earned(receipt.call_id, receipt.amount) if budget is not None else 0
        wrong = "channel" if named != (expected.client, expected.worker, expected.epoch) else ""
        if not wrong and receipt.cumulative > most:
            wrong = "cumulative"
        if wrong:
            raise VerificationError(
                f"peer {quote.worker.short}'s receipt has the wrong {wrong}; not signed", peer_id=quote.worker
            )


def _is_priced(quote: Quote) -> bool:
    """Whether calls at this worker are paid; the same question as the worker asks."""
    return bool(quote.price.per_1k_input or quote.price.per_1k_output)
