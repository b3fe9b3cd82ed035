"""The settlement contract on an EVM chain, through web3. Synchronous: asynchronous callers use a thread.

Transactions are signed here, never by the node. Redemptions carry a computed gas limit instead of an estimate, since
an estimate runs every signature check several times over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from eth_account import Account
from eth_typing import BlockNumber
from web3 import Web3
from web3.types import Wei

from swarm.deployment import Terms, creation_record
from swarm.errors import PaymentError, ResourceError, VerificationError
from swarm.evm import (
    EvmAccount,
    checksum,
    created,
    deployed,
    factory,
    mapped,
    mined,
    open_node,
    signer_of,
    to_address,
    unlocked,
)
from swarm.ids import Address, PeerId
from swarm.settlement import (
    AccountState,
    ChannelState,
    Claim,
    Transaction,
    check_amount,
    check_batch,
    check_claims,
)

REDEEM_BASE_GAS = 200_000  # the transaction itself and a token transfer, with room for tokens behind proxies
REDEEM_CLAIM_GAS = 330_000  # one signature check and one channel; measured about 240 k
ACCOUNT_KEY_SIZE = 32


class EvmSettlement:
    """`Settlement` on a contract behind a node's JSON-RPC. Safe to use from several threads."""

    def __init__(self, evm: EvmAccount, contract: Address) -> None:
        """Use `connect`, which checks what is there."""
        self.evm = evm
        self.contract = contract
        self.account = evm.address
        self._settlement = evm.contract("Settlement", contract)
        self.chain_id = 0
        self.close_window = 0
        self.token = Address(bytes(Address.size))
        self.batches = Address(bytes(Address.size))

    @classmethod
    def connect(cls, rpc_url: str, contract: Address, *, account_key: bytes, chain_id: int | None = None) -> Self:
        """Connect to the contract at ``contract`` as the account of ``account_key`` (32 bytes, secp256k1).

        Raises `UnreachableError` if no node answers, and `VerificationError` if the chain is not ``chain_id`` or the
        address holds no settlement contract.
        """
        settlement = cls(EvmAccount(rpc_url, account_key), contract)
        settlement._check(chain_id)
        return settlement

    def _check(self, chain_id: int | None) -> None:
        with mapped(self.evm.url):
            self.chain_id = self.evm.chain_id = self.evm.w3.eth.chain_id
        if chain_id is not None and chain_id != self.chain_id:
            raise VerificationError(
                f"the node at {self.evm.url} is on chain {self.chain_id}, not {chain_id}; use another node"
            )
        try:
            with mapped(self.evm.url):
                self.close_window = self._settlement.functions.close_window().call()
                self.token = to_address(self._settlement.functions.token().call())
                self.batches = to_address(self._settlement.functions.batches().call())
        except PaymentError as error:
            raise VerificationError(_no_contract(self.contract)) from error
        self._token = self.evm.contract("TestToken", self.token)

    def account_state(self, address: Address) -> AccountState:
        """Balances and current spending key of any account."""
        who = checksum(address)
        with mapped(self.evm.url):
            free = self._settlement.functions.free_balance(who).call()
            key = self._settlement.functions.spending_key(who).call()
            tokens = self._token.functions.balanceOf(who).call()
        return AccountState(
            address=address, free_balance=free, spending_key=PeerId(key) if any(key) else None, token_balance=tokens
        )

    def channel(self, client: Address, worker: Address, *, block: int | None = None) -> ChannelState | None:
        """The open channel between two accounts, or None; as of a block, or of the newest."""
        with mapped(self.evm.url):
            call = self._settlement.functions.channel(checksum(client), checksum(worker))
            state = call.call(block_identifier="latest" if block is None else BlockNumber(block))
        epoch, cap, settled, spending_key, closing_at, batched, closing_block = state
        if cap == 0:
            return None
        return ChannelState(
            client=client,
            worker=worker,
            epoch=epoch,
            cap=cap,
            settled=settled,
            spending_key=PeerId(spending_key),
            closing_at=closing_at or None,
            batched=batched,
            closing_block=closing_block or None,
        )

    def register_spending_key(self, spending_key: PeerId) -> Transaction:
        """Set the key for channels this account opens from now on."""
        return self.evm.send(self._settlement.functions.register_spending_key(bytes(spending_key)))

    def deposit(self, amount: int) -> Transaction:
        """Move tokens into this account's free balance, approving the contract where needed."""
        check_amount(amount)
        gas = self._approve(self.contract, amount)
        done = self.evm.send(self._settlement.functions.deposit(amount))
        return Transaction(hash=done.hash, gas=done.gas + gas)

    def deposit_bond(self, amount: int) -> Transaction:
        """Move tokens into this account's bond balance at the contract `Batches`, approving it where needed."""
        check_amount(amount)
        gas = self._approve(self.batches, amount)
        done = self.evm.send(self.evm.contract("Batches", self.batches).functions.deposit_bond(amount))
        return Transaction(hash=done.hash, gas=done.gas + gas)

    def _approve(self, spender: Address, amount: int) -> int:
        """Let a contract take so much; the gas it took, 0 if it may already."""
        with mapped(self.evm.url):
            allowed = self._token.functions.allowance(self.evm.signer.address, checksum(spender)).call()
        if allowed >= amount:
            return 0
        return self.evm.send(self._token.functions.approve(checksum(spender), amount)).gas

    def allocate(self, caps: Mapping[Address, int], *, batched: bool = False) -> Transaction:
        """Open channels to workers, or raise their caps to these totals, all or none."""
        check_batch(len(caps))
        for cap in caps.values():
            check_amount(cap)
        wanted = [(checksum(worker), cap) for worker, cap in caps.items()]
        functions = self._settlement.functions
        return self.evm.send(functions.allocate_batched(wanted) if batched else functions.allocate(wanted))

    def redeem(self, claims: Sequence[Claim]) -> Transaction:
        """Pay workers what they earned, all or none. Anyone may send it."""
        check_claims(claims, chain_id=self.chain_id, contract=self.contract)
        gas = REDEEM_BASE_GAS + REDEEM_CLAIM_GAS * len(claims)
        return self.evm.send(self._settlement.functions.redeem([claim_fields(claim) for claim in claims]), gas)

    def request_close(self, worker: Address) -> Transaction:
        """Start the closing window of this account's channel to ``worker``."""
        return self.evm.send(self._settlement.functions.request_close(checksum(worker)))

    def request_exit(self, client: Address) -> Transaction:
        """Start the closing window of ``client``'s channel to this account, from the worker's side."""
        return self.evm.send(self._settlement.functions.request_exit(checksum(client)))

    def finalize_close(self, worker: Address) -> Transaction:
        """After the window, return what was not paid to this account's free balance."""
        return self.evm.send(self._settlement.functions.finalize_close(checksum(worker)))

    def withdraw(self, amount: int) -> Transaction:
        """Pay free balance out to this account."""
        check_amount(amount)
        return self.evm.send(self._settlement.functions.withdraw(amount))

    def block_hash(self, number: int) -> bytes:
        """The hash of a block."""
        with mapped(self.evm.url):
            return bytes(self.evm.w3.eth.get_block(BlockNumber(number))["hash"])

    def worker_totals(self, worker: Address) -> tuple[int, int]:
        """What is committed to a worker over its batched channels, and what of it was paid."""
        with mapped(self.evm.url):
            committed, paid = self._settlement.functions.worker_totals(checksum(worker)).call()
        return committed, paid

    def close_requests(self, first_block: int = 0) -> list[tuple[Address, Address]]:
        """(client, worker) of the channels whose close was requested from a block on."""
        event = self._settlement.events.CloseRequested()
        with mapped(self.evm.url):
            logs = event.get_logs(from_block=BlockNumber(first_block))
        return [(to_address(log["args"]["client"]), to_address(log["args"]["worker"])) for log in logs]

    def fund(self, address: Address, *, native: int, tokens: int) -> None:
        """Give coins (``native``, in wei) and test tokens from the node's first unlocked account.

        For development chains alone: the account must hold coins and have deployed the test token.
        """
        with mapped(self.evm.url):
            source = unlocked(self.evm.w3, self.evm.url)
            to = checksum(address)
            if native:
                mined(self.evm.w3, self.evm.w3.eth.send_transaction({"from": source, "to": to, "value": Wei(native)}))
            if tokens:
                mined(self.evm.w3, self._token.functions.mint(to, tokens).transact({"from": source}))

    def advance_clock(self, seconds: int) -> None:
        """Move the node's clock forward: embedded chain and anvil alone."""
        self.evm.advance_clock(seconds)


def deploy(rpc_url: str, *, account_key: bytes, token: Address, terms: Terms) -> tuple[Address, Address]:
    """Deploy the settlement contracts for ``token`` and return the addresses of `Settlement` and `Batches`."""
    w3 = open_node(rpc_url)
    signer = signer_of(account_key)
    with mapped(rpc_url):
        nonce = w3.eth.get_transaction_count(signer.address, "pending")
        batches = Address(Web3.keccak(creation_record(to_address(signer.address), nonce + 1))[12:])
        creation = factory(w3, "Settlement").constructor(
            checksum(token), terms.close_window, checksum(batches), checksum(terms.pool), terms.fee_bps
        )
        settlement = deployed(w3, signer, creation, nonce)
        fixed = (terms.bond, terms.deposit, terms.challenge_window, terms.data_window, terms.lag)
        creation = factory(w3, "Batches").constructor(checksum(settlement), checksum(token), fixed)
        return settlement, deployed(w3, signer, creation, nonce + 1)


def deploy_test_token(rpc_url: str) -> Address:
    """Deploy the test token from the node's first unlocked account, which can then `EvmSettlement.fund`."""
    w3 = open_node(rpc_url)
    with mapped(rpc_url):
        source = unlocked(w3, rpc_url)
        return created(mined(w3, factory(w3, "TestToken").constructor().transact({"from": source})))


def load_account(path: Path, *, create: bool = True) -> tuple[bytes, Address]:
    """Read the account key at ``path`` (32 raw bytes, mode 0600), making it first if it is not there.

    Raises `ResourceError` if the file cannot be read or written, is damaged, or others may read it.
    """
    try:
        if create and not path.exists():
            _write_private(path, bytes(Account.create().key))
        key = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise ResourceError(f"cannot use the account key {path}: {error.strerror}; check the folder") from error
    if os.name == "posix" and mode & 0o077:
        raise ResourceError(f"the account key {path} can be read by others; run: chmod 600 {path}")
    if len(key) != ACCOUNT_KEY_SIZE:
        raise ResourceError(f"the account key {path} is damaged ({len(key)} bytes, not 32); restore or remove it")
    return key, account_address(key)


def account_address(account_key: bytes) -> Address:
    """The address of a 32-byte secp256k1 key."""
    return to_address(signer_of(account_key).address)


def claim_fields(claim: Claim) -> tuple[Any, ...]:
    """A claim as the contract's ``Claim`` tuple."""
    voucher = claim.signed.voucher
    return (
        checksum(voucher.channel.client),
        checksum(voucher.channel.worker),
        voucher.channel.epoch,
        voucher.nonce,
        voucher.cumulative,
        voucher.receipts_root,
        voucher.terms_hash,
        claim.amount,
        claim.signed.signature[:32],
        claim.signed.signature[32:],
    )


def _no_contract(contract: Address) -> str:
    return f"there is no settlement contract at 0x{contract}; check the address and the chain"


def _write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    part.rename(path)
