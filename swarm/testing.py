"""Doubles of what is outside the process, for tests of this project and of programs that use it.

They are simple implementations, not recordings: each passes the conformance suite of the thing it stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.errors import VerificationError
from swarm.ids import Address, PeerId
from swarm.settlement import (
    AccountState,
    ChannelState,
    Claim,
    Transaction,
    check_amount,
    check_batch,
    check_claims,
    refusal,
)

FAKE_CHAIN_ID = 1337
FAKE_CONTRACT = Address(bytes.fromhex("fa" * 20))
FAKE_GAS = 21_000  # what every transaction here claims to have used
_P = 2**255 - 19


class FakeChain:
    """The settlement contract's rules in memory: the specification that the contract is tested against.

    ``now`` is the chain's clock in seconds; it moves only by `advance`.
    """

    def __init__(self, *, close_window: int = 60, now: int = 1_000_000, fee_bps: int = 0) -> None:
        self.close_window = close_window
        self.now = now
        self.block = 1
        self.fee_bps = fee_bps
        self.fees = 0
        self.tokens: dict[Address, int] = {}
        self.free: dict[Address, int] = {}
        self.keys: dict[Address, PeerId] = {}
        self.channels: dict[tuple[Address, Address], ChannelState] = {}
        self.epochs: dict[tuple[Address, Address], int] = {}
        self.transactions = 0

    def account(self, address: Address) -> FakeSettlement:
        """The contract as ``address`` uses it."""
        return FakeSettlement(chain=self, account=address)

    def mint(self, address: Address, tokens: int) -> None:
        """Give tokens to an account."""
        self.tokens[address] = self.tokens.get(address, 0) + tokens

    def advance(self, seconds: int) -> None:
        """Move the chain's clock."""
        self.now += seconds

    def register(self, client: Address, spending_key: PeerId) -> None:
        """`Settlement.register_spending_key`."""
        fault = key_fault(spending_key)
        if fault is not None:
            raise refusal(fault)
        self.keys[client] = spending_key

    def deposit(self, client: Address, amount: int) -> None:
        """`Settlement.deposit`."""
        if self.tokens.get(client, 0) < amount:
            raise refusal("token balance too low")
        self.tokens[client] -= amount
        self.free[client] = self.free.get(client, 0) + amount

    def withdraw(self, client: Address, amount: int) -> None:
        """`Settlement.withdraw`."""
        if self.free.get(client, 0) < amount:
            raise refusal("free balance too low")
        self.free[client] -= amount
        self.mint(client, amount)

    def pay(self, worker: Address, amount: int) -> None:
        """`Settlement._pay_worker`."""
        fee = amount * self.fee_bps // 10_000
        self.fees += fee
        self.mint(worker, amount - fee)

    def allocate(self, client: Address, caps: Mapping[Address, int], *, batched: bool = False) -> None:
        """`Settlement.allocate`."""
        key = self.keys.get(client)
        if key is None:
            raise refusal("no spending key registered")
        free = self.free.get(client, 0)
        changed: dict[tuple[Address, Address], ChannelState] = {}
        for worker, cap in caps.items():
            if not any(worker):
                raise refusal("no worker named")
            pair = (client, worker)
            channel = self.channels.get(pair)
            if channel is None:
                channel = ChannelState(
                    client=client,
                    worker=worker,
                    epoch=self.epochs.get(pair, 0) + 1,
                    cap=0,
                    settled=0,
                    spending_key=key,
                    closing_at=None,
                    batched=batched,
                )
            elif channel.closing_at is not None:
                raise refusal("channel is closing")
            if cap < channel.cap:
                raise refusal("cap can only rise")
            if cap - channel.cap > free:
                raise refusal("free balance too low")
            free -= cap - channel.cap
            changed[pair] = replace(channel, cap=cap)
        self.free[client] = free
        self.channels |= changed
        self.epochs |= {pair: channel.epoch for pair, channel in changed.items()}

    def redeem(self, claims: Sequence[Claim]) -> None:
        """`Settlement.redeem`."""
        changed: dict[tuple[Address, Address], ChannelState] = {}
        for claim in claims:
            voucher = claim.signed.voucher
            pair = (voucher.channel.client, voucher.channel.worker)
            channel = changed.get(pair, self.channels.get(pair))
            if channel is None:
                raise refusal("channel is not open")
            if voucher.channel.epoch != channel.epoch:
                raise refusal("voucher is of another epoch")
            if voucher.cumulative > channel.cap:
                raise refusal("voucher is above the cap")
            if claim.amount <= channel.settled:
                continue
            try:
                claim.signed.verify(channel.spending_key)
            except VerificationError as error:
                raise refusal("voucher is forged") from error
            changed[pair] = replace(channel, settled=claim.amount)
        if not changed:
            raise refusal("claim is already paid")
        for pair, channel in changed.items():
            if not channel.batched:
                self.pay(channel.worker, channel.settled - self.channels[pair].settled)
        self.channels |= changed

    def request_close(self, client: Address, worker: Address) -> None:
        """`Settlement.request_close`."""
        channel = self._open(client, worker)
        if channel.closing_at is not None:
            raise refusal("channel is closing")
        block = self.block if channel.batched else None
        self.channels[client, worker] = replace(channel, closing_at=self.now + self.close_window, closing_block=block)

    def finalize_close(self, client: Address, worker: Address) -> None:
        """`Settlement.finalize_close`."""
        channel = self._open(client, worker)
        if channel.closing_at is None:
            raise refusal("close was not requested")
        if self.now < channel.closing_at:
            raise refusal("closing window is open")
        if channel.batched:
            raise refusal("channel is batched")
        self.free[client] = self.free.get(client, 0) + channel.cap - channel.settled
        del self.channels[client, worker]

    def _open(self, client: Address, worker: Address) -> ChannelState:
        channel = self.channels.get((client, worker))
        if channel is None:
            raise refusal("channel is not open")
        return channel


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSettlement:
    """`swarm.settlement.Settlement` on a `FakeChain`."""

    chain: FakeChain
    account: Address
    chain_id: int = FAKE_CHAIN_ID
    contract: Address = FAKE_CONTRACT

    @property
    def close_window(self) -> int:
        """Seconds between the request to close a channel and the refund."""
        return self.chain.close_window

    def account_state(self, address: Address) -> AccountState:
        """Balances and current spending key of any account."""
        return AccountState(
            address=address,
            free_balance=self.chain.free.get(address, 0),
            spending_key=self.chain.keys.get(address),
            token_balance=self.chain.tokens.get(address, 0),
        )

    def channel(self, client: Address, worker: Address) -> ChannelState | None:
        """The open channel between two accounts, or None."""
        return self.chain.channels.get((client, worker))

    def register_spending_key(self, spending_key: PeerId) -> Transaction:
        """Set the key for channels this account opens from now on."""
        self.chain.register(self.account, spending_key)
        return self._done()

    def deposit(self, amount: int) -> Transaction:
        """Move tokens into this account's free balance."""
        check_amount(amount)
        self.chain.deposit(self.account, amount)
        return self._done()

    def allocate(self, caps: Mapping[Address, int], *, batched: bool = False) -> Transaction:
        """Open channels to workers, or raise their caps to these totals, all or none."""
        check_batch(len(caps))
        for cap in caps.values():
            check_amount(cap)
        self.chain.allocate(self.account, caps, batched=batched)
        return self._done()

    def redeem(self, claims: Sequence[Claim]) -> Transaction:
        """Pay workers what they earned, all or none. Anyone may send it."""
        check_claims(claims, chain_id=self.chain_id, contract=self.contract)
        self.chain.redeem(claims)
        return self._done()

    def request_close(self, worker: Address) -> Transaction:
        """Start the closing window of this account's channel to ``worker``."""
        self.chain.request_close(self.account, worker)
        return self._done()

    def request_exit(self, client: Address) -> Transaction:
        """Start the closing window of ``client``'s channel to this account, from the worker's side."""
        self.chain.request_close(client, self.account)
        return self._done()

    def finalize_close(self, worker: Address) -> Transaction:
        """After the window, return what was not paid to this account's free balance."""
        self.chain.finalize_close(self.account, worker)
        return self._done()

    def withdraw(self, amount: int) -> Transaction:
        """Pay free balance out to this account."""
        check_amount(amount)
        self.chain.withdraw(self.account, amount)
        return self._done()

    def _done(self) -> Transaction:
        self.chain.transactions += 1
        return Transaction(hash=hashlib.sha256(str(self.chain.transactions).encode()).digest(), gas=FAKE_GAS)


def key_fault(key: PeerId) -> str | None:
    """Why the contract refuses an Ed25519 public key (its own words), or None.

    RFC 8032 section 5.1.3 in plain arithmetic: y below P, x^2 = (y^2 - 1) / (d y^2 + 1) a square, and [8]A not the
    neutral element.
    """
    y = int.from_bytes(key, "little") & (2**255 - 1)
    if y >= _P:
        return "spending key is not canonical"
    d = -121665 * pow(121666, -1, _P) % _P
    square = (y * y - 1) * pow(d * y * y + 1, -1, _P) % _P
    if square != 0 and pow(square, (_P - 1) // 2, _P) != 1:
        return "spending key is off the curve"
    for _ in range(3):
        # Doubling on y^2 and x^2 alone: y' = (y^2 + x^2) / (1 - d x^2 y^2), and x'^2 follows from the curve.
        product = d * square * y * y % _P
        y = (y * y + square) * pow(1 - product, -1, _P) % _P
        square = (y * y - 1) * pow(d * y * y + 1, -1, _P) % _P
    return "spending key is of small order" if y == 1 else None
