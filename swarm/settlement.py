"""What is settled on chain, seen from Python: values, and the interface that every settlement back end has.

A client deposits tokens, allocates a cap to each worker, and signs vouchers off chain; a worker redeems its last
voucher for what it has earned of it; a close returns the rest to the client after a window in which the worker can
still redeem. Amounts are base units of the settlement token; times are seconds of the chain's clock. Methods block
on the network: asynchronous callers run them in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import PaymentError, UsageError
from swarm.ids import Address, PeerId
from swarm.receipts import UINT128_MAX, SignedVoucher

MAX_BATCH = 32  # allocations or claims in one transaction: 32 signature checks fill a quarter of a 30 M gas block

# What each refusal of the contract means to the person who meets it. The keys are the contract's reasons, unchanged.
ADVICE: Mapping[str, str] = {
    "nothing to deposit": "name an amount above zero",
    "nothing to withdraw": "name an amount above zero",
    "free balance too low": "deposit more, or close a channel that is no longer used",
    "token took a fee": "use a token that arrives whole",
    "token refused the transfer": "check the account's token balance",
    "token balance too low": "fund the account with the settlement token first",
    "allowance too low": "run the deposit again",
    "no spending key registered": "register a spending key first",
    "spending key is not canonical": "make a new spending key",
    "spending key is off the curve": "make a new spending key",
    "spending key is of small order": "make a new spending key",
    "no worker named": "name the worker's account",
    "cap is zero": "allocate an amount above zero",
    "cap can only rise": "close the channel to get money back",
    "channel is closing": "finalise the close, then allocate again",
    "channel is not open": "allocate to this worker first",
    "close was not requested": "request the close first",
    "closing window is open": "wait until the window has passed",
    "voucher is of another epoch": "it belongs to a channel that was closed; drop it",
    "voucher is above the cap": "redeem the last voucher within the cap, or have the client raise the cap",
    "claim is above the voucher": "claim at most what the voucher promises",
    "claim is already paid": "there is nothing new to redeem",
    "channel is batched": "finalise its close with the batch contract",
    "this contract has no batches": "open the channel as a direct one",
    "voucher is forged": "the channel's spending key did not sign it; drop it",
    "caps are out of range": "allocate less",
    "no fees to collect": "wait until workers were paid",
    # Of the contract Batches.
    "bond balance too low": "deposit more for bonds",
    "snapshot is too old": "build the batch again from the newest block",
    "snapshot was reorganised": "build the batch again from the newest block",
    "snapshot goes back": "somebody posted a newer batch; build this one again",
    "batch is too large": "leave channels for the next batch",
    "total is out of range": "check the batch before posting it",
    "another batch was posted": "read the batch from the chain again",
    "batch is resolved": "it cannot be judged any more",
    "batch is not void": "the demand stands until it is answered or the batch is void",
    "batch is not final": "wait until its window has passed",
    "challenge window is over": "nothing can be proven of this batch any more",
    "voucher is signed": "there is no lie to prove",
    "record is backed": "there is no lie to prove",
    "record is in order": "there is no lie to prove",
    "sums follow": "there is no lie to prove",
    "filling is in order": "there is no lie to prove",
    "block is the same": "there is no lie to prove",
    "record is of another epoch": "use a record of the channel's present epoch",
    "records are not adjacent": "give two neighbours",
    "index is no record's": "name a record of the batch",
    "index is a record's": "name the header or the filling",
    "index is outside the tree": "name a place in the tree",
    "path has another length": "make the proof again from the batch's file",
    "path leads elsewhere": "make the proof again from the batch's file",
    "layer has another length": "make the answer again from the batch's file",
    "layer leads elsewhere": "make the answer again from the batch's file",
    "a block is 16 KiB": "give a whole block",
    "no such block": "name a block of the file",
    "no such batch": "name one of the final batches",
    "already demanded": "wait for the answer",
    "too many demands": "wait for answers",
    "nothing was demanded": "somebody answered it already",
    "data window is open": "wait until the window has passed",
    "not the last final batch": "claim on the last one",
    "nothing new in it": "as much is on record already",
    "a later batch counts": "use the last final batch from before the request",
    "batch is from after the request": "use the last final batch from before the request",
    "a batch may still count it": "wait a few blocks",
    "a batch is pending": "wait until it is resolved",
    "second window is open": "prove what the batch counted, or wait",
    "the channel stands before": "make the proof again from the batch's file",
    "the channel stands after": "make the proof again from the batch's file",
    "the channel stands there": "make the proof again from the batch's file",
    "total is above the cap": "agree on what the cap covers",
    "worker did not sign": "ask the worker for its signature",
    "more was paid already": "agree on what was paid at least",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """One open channel as the chain has it."""

    client: Address
    worker: Address
    epoch: int
    cap: int
    """What the client has allocated in all; a voucher above it is refused."""
    settled: int
    """What the worker has been paid in this epoch; on a batched channel, what vouchers shown on chain promise."""
    spending_key: PeerId
    """The key that signs this epoch's vouchers."""
    closing_at: int | None
    """When a requested close can be finalised; None while no close was requested."""
    batched: bool = False
    """Paid by claims on batches; a direct channel is paid by `Settlement.redeem`."""
    closing_block: int | None = None
    """The block of the request to close a batched channel: batches from there on leave it out."""

    def __post_init__(self) -> None:
        if not 0 <= self.settled <= self.cap <= UINT128_MAX:
            raise PaymentError(f"a channel that settled {self.settled} of {self.cap} is impossible; check the contract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's claim on a channel: the client's voucher, and what has been earned of its promise."""

    signed: SignedVoucher
    amount: int
    """Earned on this channel in all, at most the voucher's cumulative; the prepaid rest stays with the client."""

    def __post_init__(self) -> None:
        if not 0 < self.amount <= self.signed.voucher.cumulative:
            raise PaymentError(
                f"cannot claim {self.amount} on a voucher for {self.signed.voucher.cumulative}; "
                "claim what was earned of it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction that is in a block."""

    hash: bytes
    gas: int
    """Gas used, that of a token approval sent along included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """One account as the contract and the token have it."""

    address: Address
    free_balance: int
    """Deposited and allocated to nobody."""
    spending_key: PeerId | None
    """The key that channels opened from now on will have."""
    token_balance: int
    """Tokens outside the contract."""


class Settlement(Protocol):
    """The settlement contract, used by one account.

    Every method raises `PaymentError` where the contract refuses and `UnreachableError` where no node answers; a
    refused call leaves no trace on chain but its fee.
    """

    @property
    def chain_id(self) -> int:
        """The chain's id (EIP-155), as vouchers carry it."""

    @property
    def contract(self) -> Address:
        """The contract's address, as vouchers carry it."""

    @property
    def account(self) -> Address:
        """The account that sends this object's transactions."""

    @property
    def close_window(self) -> int:
        """Seconds between the request to close a channel and the refund."""

    def account_state(self, address: Address) -> AccountState:
        """Balances and current spending key of any account."""

    def channel(self, client: Address, worker: Address) -> ChannelState | None:
        """The open channel between two accounts, or None."""

    def register_spending_key(self, spending_key: PeerId) -> Transaction:
        """Set the key for channels this account opens from now on."""

    def deposit(self, amount: int) -> Transaction:
        """Move tokens into this account's free balance, approving the contract where needed."""

    def allocate(self, caps: Mapping[Address, int], *, batched: bool = False) -> Transaction:
        """Open channels to workers, or raise their caps to these totals, all or none.

        A channel stays direct or ``batched`` for its epoch, as it was opened.
        """

    def redeem(self, claims: Sequence[Claim]) -> Transaction:
        """Pay workers what they earned on direct channels. Anyone may send it.

        Claims that are paid already are skipped unless all are; for other faults none is paid. On a batched channel
        the voucher is put on record, to be paid at least when the channel closes.
        """

    def request_close(self, worker: Address) -> Transaction:
        """Start the closing window of this account's channel to ``worker``."""

    def request_exit(self, client: Address) -> Transaction:
        """Start the closing window of ``client``'s channel to this account, from the worker's side."""

    def finalize_close(self, worker: Address) -> Transaction:
        """After the window of a direct channel, return what was not paid to this account's free balance."""

    def withdraw(self, amount: int) -> Transaction:
        """Pay free balance out to this account."""


def refusal(reason: str) -> PaymentError:
    """The error for a call that the contract refused with ``reason``."""
    advice = ADVICE.get(reason, "check the contract's address and the account's balances")
    return PaymentError(f"the settlement contract refused: {reason}; {advice}")


def check_batch(size: int) -> None:
    """Raise `UsageError` unless one transaction takes so many allocations or claims."""
    if not 0 < size <= MAX_BATCH:
        raise UsageError(f"one transaction takes 1 to {MAX_BATCH} channels, not {size}; split them")


def check_amount(amount: int) -> None:
    """Raise `UsageError` unless ``amount`` is one that a transaction can carry."""
    if not 0 < amount <= UINT128_MAX:
        raise UsageError(f"{amount} is not an amount; use base units of the token, from 1 to 2**128 - 1")


def check_claims(claims: Sequence[Claim], *, chain_id: int, contract: Address) -> None:
    """Raise unless the claims fit one transaction (`UsageError`) and are for this contract (`PaymentError`)."""
    check_batch(len(claims))
    for claim in claims:
        channel = claim.signed.voucher.channel
        if channel.chain_id != chain_id or channel.contract != contract:
            raise PaymentError(
                f"a voucher is for contract 0x{channel.contract} on chain {channel.chain_id}; redeem it there"
            )
