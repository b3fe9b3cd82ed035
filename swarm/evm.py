"""One account on an EVM node, through web3: calls and transactions of contracts, and this project's errors for both.

Transactions are signed here, never by the node. Synchronous: asynchronous callers use a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
from swarm.errors import PaymentError, UnreachableError, UsageError
from swarm.ids import Address
from swarm.settlement import Transaction, refusal

CALL_TIMEOUT = 60.0  # seconds for one RPC answer: an embedded chain runs a full batch of signature checks in it
RECEIPT_TIMEOUT = 180.0  # seconds for a transaction to enter a block; several blocks of the slowest chains in use
GAS_MARGIN = 1.25  # on estimates: the state may move between estimate and block


class EvmAccount:
    """An account whose key is here, on the chain of one node. Safe to use from several threads."""

    def __init__(self, rpc_url: str, account_key: bytes) -> None:
        """``account_key`` is 32 bytes, secp256k1. Nothing is sent yet."""
        self.w3 = open_node(rpc_url)
        self.url = rpc_url
        self.signer = signer_of(account_key)
        self.address = to_address(self.signer.address)
        self.chain_id = 0
        self._sending = threading.Lock()  # held from reading the nonce to handing the transaction over

    def contract(self, name: str, address: Address) -> Contract:
        """A contract of this project at an address."""
        return self.w3.eth.contract(address=checksum(address), abi=contracts.load(name).abi)

    def advance_clock(self, seconds: int) -> None:
        """Move the node's clock forward: embedded chain and anvil alone."""
        with mapped(self.url):
            for method, params in (("evm_increaseTime", [seconds]), ("evm_mine", [])):
                self.w3.manager.request_blocking(RPCEndpoint(method), params)

    def send(self, call: ContractFunction, gas: int | None = None) -> Transaction:
        """Sign, send and await one call; its revert becomes `PaymentError` with the contract's reason."""
        with mapped(self.url):
            with self._sending:
                transaction = self._prepare(call, gas)
                signed = self.signer.sign_transaction(dict(transaction))  # type: ignore[arg-type]
                sent = self.w3.eth.send_raw_transaction(signed.raw_transaction)
            receipt = mined(self.w3, sent)
            if receipt["transactionHash"] != sent:
                raise UnreachableError(f"the chain node at {self.url} answered for another transaction; use another")
            if receipt["status"] != 1:
                # Ask for the reason: the same call on the state that refused it.
                call.call({"from": self.signer.address, "gas": transaction["gas"]})
                raise PaymentError(f"transaction 0x{sent.hex()} failed in its block; the state has moved, try again")
        return Transaction(hash=bytes(sent), gas=receipt["gasUsed"])

    def _prepare(self, call: ContractFunction, gas: int | None) -> TxParams:
        sender = self.signer.address
        if gas is None:
            gas = int(call.estimate_gas({"from": sender}) * GAS_MARGIN)
        fields: TxParams = {
            "from": sender,
            "chainId": self.chain_id,
            "nonce": self.w3.eth.get_transaction_count(sender, "pending"),
            "gas": gas,
        }
        base = self.w3.eth.get_block("latest").get("baseFeePerGas")
        if base is None:
            fields["gasPrice"] = self.w3.eth.gas_price
        else:
            tip = self.w3.eth.max_priority_fee
            fields["maxPriorityFeePerGas"] = tip
            fields["maxFeePerGas"] = Wei(2 * base + tip)
        return call.build_transaction(fields)


def open_node(rpc_url: str) -> Web3:
    provider = HTTPProvider(rpc_url, request_kwargs={"timeout": CALL_TIMEOUT}, exception_retry_configuration=None)
    return Web3(provider)


def signer_of(account_key: bytes) -> LocalAccount:
    try:
        signer: LocalAccount = Account.from_key(account_key)
        return signer
    except ValueError as error:
        raise UsageError("an account key is a 32-byte secp256k1 key; make one with load_account") from error


def factory(w3: Web3, name: str) -> type[Contract]:
    compiled = contracts.load(name)
    return w3.eth.contract(abi=compiled.abi, bytecode=compiled.bytecode)


def deployed(w3: Web3, signer: LocalAccount, creation: ContractConstructor, nonce: int) -> Address:
    signed = signer.sign_transaction(creation.build_transaction({"from": signer.address, "nonce": nonce}))
    return created(mined(w3, w3.eth.send_raw_transaction(signed.raw_transaction)))


def mined(w3: Web3, sent: HexBytes) -> TxReceipt:
    return w3.eth.wait_for_transaction_receipt(sent, timeout=RECEIPT_TIMEOUT)


def created(receipt: TxReceipt) -> Address:
    created = receipt["contractAddress"]
    if created is None or receipt["status"] != 1:
        raise PaymentError("the contract was not deployed; check the token's address and the account's balance")
    return to_address(created)


def unlocked(w3: Web3, rpc_url: str) -> ChecksumAddress:
    accounts = w3.eth.accounts
    if not accounts:
        raise UsageError(f"the node at {rpc_url} holds no unlocked account; use `swarm chain` or anvil for this")
    return accounts[0]


@contextmanager
def mapped(rpc_url: str) -> Iterator[None]:
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


def checksum(address: Address) -> ChecksumAddress:
    return Web3.to_checksum_address(bytes(address))


def to_address(text: str) -> Address:
    return Address.parse(text)
