"""The settlement contract on an EVM chain, through web3. Synchronous: asynchronous callers use a thread.

Transactions are signed here, never by the node. Redemptions carry a computed gas limit instead of an estimate, since
an estimate runs every signature check several times over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from requests.exceptions import RequestException
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.contract.contract import ContractConstructor, ContractFunction
from web3.exceptions import (
    BadFunctionCallOutput,
    ContractLogicError,
    TimeExhausted,
    Web3Exception,
    Web3RPCError,
    Web3ValueError,
)
from web3.types import RPCEndpoint, TxParams, TxReceipt, Wei

from swarm import contracts
from swarm.deployment import Terms, creation_record
from swarm.errors import PaymentError, ResourceError, UnreachableError, UsageError, VerificationError
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

CALL_TIMEOUT = 60.0  # seconds for one RPC answer: an embedded chain runs a full batch of signature checks in it
RECEIPT_TIMEOUT = 180.0  # seconds for a transaction to enter a block; several blocks of the slowest chains in use
REDEEM_BASE_GAS = 200_000  # the transaction itself and a token transfer, with room for tokens behind proxies
REDEEM_CLAIM_GAS = 330_000  # one signature check and one channel; measured about 240 k
GAS_MARGIN = 1.25  # on estimates: the state may move between estimate and block
ACCOUNT_KEY_SIZE = 32


class EvmSettlement:
    """`Settlement` on a contract behind a node's JSON-RPC. Safe to use from several threads."""

    def __init__(self, w3: Web3, rpc_url: str, contract: Address, account: LocalAccount) -> None:
        """Use `connect`, which checks what is there."""
        self._w3 = w3
        self._url = rpc_url
        self._signer = account
        self._sending = threading.Lock()  # held from reading the nonce to handing the transaction over
        self.contract = contract
        self.account = Address(bytes.fromhex(account.address[2:]))
        self._settlement = _contract(w3, "Settlement", contract)
        self.chain_id = 0
        self.close_window = 0
        self.token = Address(bytes(Address.size))

    @classmethod
    def connect(cls, rpc_url: str, contract: Address, *, account_key: bytes, chain_id: int | None = None) -> Self:
        """Connect to the contract at ``contract`` as the account of ``account_key`` (32 bytes, secp256k1).

        Raises `UnreachableError` if no node answers, and `VerificationError` if the chain is not ``chain_id`` or the
        address holds no settlement contract.
        """
        settlement = cls(_open(rpc_url), rpc_url, contract, _signer(account_key))
        settlement._check(chain_id)
        return settlement

    def _check(self, chain_id: int | None) -> None:
        with _mapped(self._url):
            self.chain_id = self._w3.eth.chain_id
        if chain_id is not None and chain_id != self.chain_id:
            raise VerificationError(
                f"the node at {self._url} is on chain {self.chain_id}, not {chain_id}; use another node"
            )
        try:
            with _mapped(self._url):
                self.close_window = self._settlement.functions.close_window().call()
                self.token = _address(self._settlement.functions.token().call())
        except PaymentError as error:
            raise VerificationError(_no_contract(self.contract)) from error
        self._token = _contract(self._w3, "TestToken", self.token)

    def account_state(self, address: Address) -> AccountState:
        """Balances and current spending key of any account."""
        who = _checksum(address)
        with _mapped(self._url):
            free = self._settlement.functions.free_balance(who).call()
            key = self._settlement.functions.spending_key(who).call()
            tokens = self._token.functions.balanceOf(who).call()
        return AccountState(
            address=address, free_balance=free, spending_key=PeerId(key) if any(key) else None, token_balance=tokens
        )

    def channel(self, client: Address, worker: Address) -> ChannelState | None:
        """The open channel between two accounts, or None."""
        with _mapped(self._url):
            state = self._settlement.functions.channel(_checksum(client), _checksum(worker)).call()
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
        return self._send(self._settlement.functions.register_spending_key(bytes(spending_key)))

    def deposit(self, amount: int) -> Transaction:
        """Move tokens into this account's free balance, approving the contract where needed."""
        check_amount(amount)
        contract = _checksum(self.contract)
        with _mapped(self._url):
            allowed = self._token.functions.allowance(self._signer.address, contract).call()
        gas = 0
        if allowed < amount:
            gas = self._send(self._token.functions.approve(contract, amount)).gas
        done = self._send(self._settlement.functions.deposit(amount))
        return Transaction(hash=done.hash, gas=done.gas + gas)

    def allocate(self, caps: Mapping[Address, int], *, batched: bool = False) -> Transaction:
        """Open channels to workers, or raise their caps to these totals, all or none."""
        check_batch(len(caps))
        for cap in caps.values():
            check_amount(cap)
        wanted = [(_checksum(worker), cap) for worker, cap in caps.items()]
        functions = self._settlement.functions
        return self._send(functions.allocate_batched(wanted) if batched else functions.allocate(wanted))

    def redeem(self, claims: Sequence[Claim]) -> Transaction:
        """Pay workers what they earned, all or none. Anyone may send it."""
        check_claims(claims, chain_id=self.chain_id, contract=self.contract)
        gas = REDEEM_BASE_GAS + REDEEM_CLAIM_GAS * len(claims)
        return self._send(self._settlement.functions.redeem([claim_fields(claim) for claim in claims]), gas)

    def request_close(self, worker: Address) -> Transaction:
        """Start the closing window of this account's channel to ``worker``."""
        return self._send(self._settlement.functions.request_close(_checksum(worker)))

    def request_exit(self, client: Address) -> Transaction:
        """Start the closing window of ``client``'s channel to this account, from the worker's side."""
        return self._send(self._settlement.functions.request_exit(_checksum(client)))

    def finalize_close(self, worker: Address) -> Transaction:
        """After the window, return what was not paid to this account's free balance."""
        return self._send(self._settlement.functions.finalize_close(_checksum(worker)))

    def withdraw(self, amount: int) -> Transaction:
        """Pay free balance out to this account."""
        check_amount(amount)
        return self._send(self._settlement.functions.withdraw(amount))

    def fund(self, address: Address, *, native: int, tokens: int) -> None:
        """Give coins (``native``, in wei) and test tokens from the node's first unlocked account.

        For development chains alone: the account must hold coins and have deployed the test token.
        """
        with _mapped(self._url):
            source = _unlocked(self._w3, self._url)
            to = _checksum(address)
            if native:
                _mined(self._w3, self._w3.eth.send_transaction({"from": source, "to": to, "value": Wei(native)}))
            if tokens:
                _mined(self._w3, self._token.functions.mint(to, tokens).transact({"from": source}))

    def advance_clock(self, seconds: int) -> None:
        """Move the node's clock forward: embedded chain and anvil alone."""
        with _mapped(self._url):
            for method, params in (("evm_increaseTime", [seconds]), ("evm_mine", [])):
                self._w3.manager.request_blocking(RPCEndpoint(method), params)

    def _send(self, call: ContractFunction, gas: int | None = None) -> Transaction:
        """Sign, send and await one call; its revert becomes `PaymentError` with the contract's reason."""
        with _mapped(self._url):
            with self._sending:
                transaction = self._prepare(call, gas)
                signed = self._signer.sign_transaction(dict(transaction))  # type: ignore[arg-type]
                sent = self._w3.eth.send_raw_transaction(signed.raw_transaction)
            receipt = _mined(self._w3, sent)
            if receipt["status"] != 1:
                # Ask for the reason: the same call on the state that refused it.
                call.call({"from": self._signer.address, "gas": transaction["gas"]})
                raise PaymentError(f"transaction 0x{sent.hex()} failed in its block; the state has moved, try again")
        return Transaction(hash=bytes(sent), gas=receipt["gasUsed"])

    def _prepare(self, call: ContractFunction, gas: int | None) -> TxParams:
        sender = self._signer.address
        if gas is None:
            gas = int(call.estimate_gas({"from": sender}) * GAS_MARGIN)
        fields: TxParams = {
            "from": sender,
            "chainId": self.chain_id,
            "nonce": self._w3.eth.get_transaction_count(sender, "pending"),
            "gas": gas,
        }
        base = self._w3.eth.get_block("latest").get("baseFeePerGas")
        if base is None:
            fields["gasPrice"] = self._w3.eth.gas_price
        else:
            tip = self._w3.eth.max_priority_fee
            fields["maxPriorityFeePerGas"] = tip
            fields["maxFeePerGas"] = Wei(2 * base + tip)
        return call.build_transaction(fields)


def deploy(rpc_url: str, *, account_key: bytes, token: Address, terms: Terms) -> tuple[Address, Address]:
    """Deploy the settlement contracts for ``token`` and return the addresses of `Settlement` and `Batches`."""
    w3 = _open(rpc_url)
    signer = _signer(account_key)
    with _mapped(rpc_url):
        nonce = w3.eth.get_transaction_count(signer.address, "pending")
        batches = Address(Web3.keccak(creation_record(_address(signer.address), nonce + 1))[12:])
        creation = _factory(w3, "Settlement").constructor(
            _checksum(token), terms.close_window, _checksum(batches), _checksum(terms.pool), terms.fee_bps
        )
        settlement = _deployed(w3, signer, creation, nonce)
        fixed = (terms.bond, terms.deposit, terms.challenge_window, terms.data_window, terms.lag)
        creation = _factory(w3, "Batches").constructor(_checksum(settlement), _checksum(token), fixed)
        return settlement, _deployed(w3, signer, creation, nonce + 1)


def deploy_test_token(rpc_url: str) -> Address:
    """Deploy the test token from the node's first unlocked account, which can then `EvmSettlement.fund`."""
    w3 = _open(rpc_url)
    with _mapped(rpc_url):
        source = _unlocked(w3, rpc_url)
        return _created(_mined(w3, _factory(w3, "TestToken").constructor().transact({"from": source})))


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
    return _address(_signer(account_key).address)


def claim_fields(claim: Claim) -> tuple[Any, ...]:
    """A claim as the contract's ``Claim`` tuple."""
    voucher = claim.signed.voucher
    return (
        _checksum(voucher.channel.client),
        _checksum(voucher.channel.worker),
        voucher.channel.epoch,
        voucher.nonce,
        voucher.cumulative,
        voucher.receipts_root,
        voucher.terms_hash,
        claim.amount,
        claim.signed.signature[:32],
        claim.signed.signature[32:],
    )


def _open(rpc_url: str) -> Web3:
    provider = HTTPProvider(rpc_url, request_kwargs={"timeout": CALL_TIMEOUT}, exception_retry_configuration=None)
    return Web3(provider)


def _signer(account_key: bytes) -> LocalAccount:
    try:
        signer: LocalAccount = Account.from_key(account_key)
        return signer
    except ValueError as error:
        raise UsageError("an account key is a 32-byte secp256k1 key; make one with load_account") from error


def _contract(w3: Web3, name: str, address: Address) -> Contract:
    return w3.eth.contract(address=_checksum(address), abi=contracts.load(name).abi)


def _factory(w3: Web3, name: str) -> type[Contract]:
    compiled = contracts.load(name)
    return w3.eth.contract(abi=compiled.abi, bytecode=compiled.bytecode)


def _deployed(w3: Web3, signer: LocalAccount, creation: ContractConstructor, nonce: int) -> Address:
    signed = signer.sign_transaction(creation.build_transaction({"from": signer.address, "nonce": nonce}))
    return _created(_mined(w3, w3.eth.send_raw_transaction(signed.raw_transaction)))


def _mined(w3: Web3, sent: HexBytes) -> TxReceipt:
    return w3.eth.wait_for_transaction_receipt(sent, timeout=RECEIPT_TIMEOUT)


def _created(receipt: TxReceipt) -> Address:
    created = receipt["contractAddress"]
    if created is None or receipt["status"] != 1:
        raise PaymentError("the contract was not deployed; check the token's address and the account's balance")
    return _address(created)


def _unlocked(w3: Web3, rpc_url: str) -> ChecksumAddress:
    accounts = w3.eth.accounts
    if not accounts:
        raise UsageError(f"the node at {rpc_url} holds no unlocked account; use `swarm chain` or anvil for this")
    return accounts[0]


@contextmanager
def _mapped(rpc_url: str) -> Iterator[None]:
    """Turn what web3 and its HTTP client raise into this project's errors."""
    try:
        yield
    except ContractLogicError as error:
        raise refusal(_reason(error)) from error
    except BadFunctionCallOutput as error:
        raise PaymentError("the address holds no such contract; check it against the chain") from error
    except TimeExhausted as error:
        raise UnreachableError(
            f"a transaction is in no block after {RECEIPT_TIMEOUT:.0f} s; check the account before sending it again"
        ) from error
    except RequestException as error:
        raise UnreachableError(
            f"no chain node answers at {rpc_url}; start one with `swarm chain`, or check the URL"
        ) from error
    except Web3RPCError as error:
        text = _one_line(error)
        if "insufficient" in text.lower() or "balance" in text.lower():
            raise PaymentError("the account cannot pay the fee; send it some of the chain's own coin") from error
        raise UnreachableError(f"the chain node at {rpc_url} answered with an error: {text}; try again") from error
    except (Web3Exception, Web3ValueError) as error:
        raise UnreachableError(
            f"the chain node at {rpc_url} made no sense: {_one_line(error)}; check the URL"
        ) from error


def _reason(error: ContractLogicError) -> str:
    text = error.message or "no reason given"
    return text.removeprefix("execution reverted").removeprefix(": ").strip() or "no reason given"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _no_contract(contract: Address) -> str:
    return f"there is no settlement contract at 0x{contract}; check the address and the chain"


def _checksum(address: Address) -> ChecksumAddress:
    return Web3.to_checksum_address(bytes(address))


def _address(text: str) -> Address:
    return Address.parse(text)


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
