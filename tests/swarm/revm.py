"""The compiled contract in pyrevm, used like any settlement: a thousand times faster than py-evm, for breadth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyrevm
from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from swarm import contracts
from swarm.deployment import Terms, creation_record
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
from swarm.settlement_evm import claim_fields

DEPLOYER = Address(bytes.fromhex("dd" * 20))
GAS = 16_000_000
NOW = 1_000_000


class Reverted(Exception):
    """A call that reverted, with the contract's reason."""


def _type(argument: dict[str, Any]) -> str:
    kind: str = argument["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_type(part) for part in argument["components"]) + ")" + kind.removeprefix("tuple")
    return kind


class Deployed:
    """A contract in an `RevmChain`."""

    def __init__(self, chain: RevmChain, abi: list[dict[str, Any]], address: Address) -> None:
        self.chain = chain
        self.address = address
        self.functions = {entry["name"]: entry for entry in abi if entry["type"] == "function"}

    def calldata(self, name: str, *arguments: Any) -> bytes:
        """The bytes of a call."""
        types = [_type(argument) for argument in self.functions[name]["inputs"]]
        return keccak(f"{name}({','.join(types)})".encode())[:4] + encode(types, arguments)

    def call(self, sender: Address, name: str, *arguments: Any) -> Any:
        """Run a call and return its value (a tuple of several). Raises `Reverted`."""
        raw = self.chain.run(sender, self.address, self.calldata(name, *arguments))
        values = decode([_type(output) for output in self.functions[name]["outputs"]], raw)
        return values[0] if len(values) == 1 else values


class RevmChain:
    """An EVM (Prague rules) with the test token and a settlement contract on it."""

    def __init__(self, *, close_window: int = 60, chain_id: int = 1337, terms: Terms | None = None) -> None:
        self.terms = terms or Terms(close_window=close_window, fee_bps=0)
        self.chain_id = chain_id
        self.now = NOW
        self.block = 1
        self.gas = 0
        env = pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=chain_id))
        self.evm = pyrevm.EVM(env=env, gas_limit=GAS, spec_id="PRAGUE")
        self.advance(0)
        self.token = self.deploy("TestToken", b"")
        self.settlement, self.batches = self.deploy_settlement(self.token.address)

    def deploy_settlement(self, token: Address) -> tuple[Deployed, Deployed]:
        """Deploy both settlement contracts."""
        account = self.evm.basic(f"0x{DEPLOYER}")
        batches = Address(keccak(creation_record(DEPLOYER, account.nonce + 1))[12:])
        settlement = self.deploy("Settlement", self.terms.settlement_arguments(token, batches))
        deployed = self.deploy("Batches", self.terms.batches_arguments(settlement.address, token))
        assert deployed.address == batches
        return settlement, deployed

    def deploy(self, name: str, arguments: bytes) -> Deployed:
        """Deploy a committed build."""
        compiled = contracts.load(name)
        return self.deploy_code(compiled.abi, compiled.bytecode + arguments)

    def deploy_code(self, abi: list[dict[str, Any]], code: bytes) -> Deployed:
        """Deploy creation code."""
        try:
            created = self.evm.deploy(f"0x{DEPLOYER}", code)
        except RuntimeError as error:
            raise _reverted(error) from error
        return Deployed(self, abi, Address.parse(created))

    def run(self, sender: Address, to: Address, data: bytes) -> bytes:
        """One transaction; its gas is in ``gas``."""
        self.evm.reset_transient_storage()
        try:
            return bytes(self.evm.message_call(f"0x{sender}", f"0x{to}", calldata=data, gas=GAS))
        except RuntimeError as error:
            raise _reverted(error) from error
        finally:
            if self.evm.result is not None:
                self.gas = self.evm.result.gas_used

    def advance(self, seconds: int) -> None:
        """Move the chain's clock."""
        self.now += seconds
        self.mine(0)

    def mine(self, blocks: int = 1) -> None:
        """Let blocks pass without time."""
        self.block += blocks
        self.evm.set_block_env(pyrevm.BlockEnv(timestamp=self.now, number=self.block))

    def account(self, address: Address) -> RevmSettlement:
        """The contract as ``address`` uses it."""
        return RevmSettlement(chain=self, account=address)

    def mint(self, address: Address, tokens: int) -> None:
        """Give tokens to an account."""
        self.token.call(DEPLOYER, "mint", f"0x{address}", tokens)


def _reverted(error: RuntimeError) -> Reverted:
    found = re.search(r"output: 0x([0-9a-f]*)", str(error))
    if found is None:
        return Reverted(str(error))
    output = bytes.fromhex(found.group(1))
    return Reverted(decode(["string"], output[4:])[0] if output else "no reason given")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevmSettlement:
    """`swarm.settlement.Settlement` on an `RevmChain`."""

    chain: RevmChain
    account: Address

    @property
    def chain_id(self) -> int:
        return self.chain.chain_id

    @property
    def contract(self) -> Address:
        return self.chain.settlement.address

    @property
    def close_window(self) -> int:
        window: int = self._view("close_window")
        return window

    def account_state(self, address: Address) -> AccountState:
        key = self._view("spending_key", f"0x{address}")
        return AccountState(
            address=address,
            free_balance=self._view("free_balance", f"0x{address}"),
            spending_key=PeerId(key) if any(key) else None,
            token_balance=self.chain.token.call(address, "balanceOf", f"0x{address}"),
        )

    def channel(self, client: Address, worker: Address) -> ChannelState | None:
        epoch, cap, settled, key, closing_at, batched, closing_block = self._view(
            "channel", f"0x{client}", f"0x{worker}"
        )
        if cap == 0:
            return None
        return ChannelState(
            client=client,
            worker=worker,
            epoch=epoch,
            cap=cap,
            settled=settled,
            spending_key=PeerId(key),
            closing_at=closing_at or None,
            batched=batched,
            closing_block=closing_block or None,
        )

    def register_spending_key(self, spending_key: PeerId) -> Transaction:
        return self._send("register_spending_key", bytes(spending_key))

    def deposit(self, amount: int) -> Transaction:
        check_amount(amount)
        self.chain.token.call(self.account, "approve", f"0x{self.contract}", amount)
        return self._send("deposit", amount)

    def allocate(self, caps: Mapping[Address, int], *, batched: bool = False) -> Transaction:
        check_batch(len(caps))
        for cap in caps.values():
            check_amount(cap)
        name = "allocate_batched" if batched else "allocate"
        return self._send(name, [(f"0x{worker}", cap) for worker, cap in caps.items()])

    def redeem(self, claims: Sequence[Claim]) -> Transaction:
        check_claims(claims, chain_id=self.chain_id, contract=self.contract)
        return self._send("redeem", [claim_fields(claim) for claim in claims])

    def request_close(self, worker: Address) -> Transaction:
        return self._send("request_close", f"0x{worker}")

    def request_exit(self, client: Address) -> Transaction:
        return self._send("request_exit", f"0x{client}")

    def finalize_close(self, worker: Address) -> Transaction:
        return self._send("finalize_close", f"0x{worker}")

    def withdraw(self, amount: int) -> Transaction:
        check_amount(amount)
        return self._send("withdraw", amount)

    def _view(self, name: str, *arguments: Any) -> Any:
        return self.chain.settlement.call(self.account, name, *arguments)

    def _send(self, name: str, *arguments: Any) -> Transaction:
        try:
            self.chain.settlement.call(self.account, name, *arguments)
        except Reverted as error:
            raise refusal(str(error)) from error
        return Transaction(hash=bytes(32), gas=self.chain.gas)
