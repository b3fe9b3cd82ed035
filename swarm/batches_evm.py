"""The contract `Batches` on an EVM chain: `swarm.batch_board.ContractPort` through web3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eth_typing import BlockNumber
from hexbytes import HexBytes

from swarm.batch_board import BatchBoard, Event, Head
from swarm.errors import UsageError, VerificationError
from swarm.evm import mapped
from swarm.settlement import Transaction
from swarm.settlement_evm import EvmSettlement

LOG_RANGE = 5_000  # blocks in one question for logs: public nodes refuse much more


class EvmBatchPort:
    """Calls of `Batches` by the account of a settlement. Safe to use from several threads."""

    def __init__(self, settlement: EvmSettlement) -> None:
        """Raises `UsageError` if that contract has no batches."""
        if not any(settlement.batches):
            raise UsageError(f"contract 0x{settlement.contract} was deployed without batches; use another")
        self._evm = settlement.evm
        self.account = settlement.account
        self._contract = self._evm.contract("Batches", settlement.batches)

    def call(self, name: str, *arguments: Any) -> Any:
        """A view's answer on the newest block."""
        with mapped(self._evm.url):
            return getattr(self._contract.functions, name)(*arguments).call()

    def send(self, name: str, *arguments: Any) -> Transaction:
        """A transaction, once it is in a block."""
        return self._evm.send(getattr(self._contract.functions, name)(*arguments))

    def head(self) -> Head:
        """The newest block."""
        with mapped(self._evm.url):
            block = self._evm.w3.eth.get_block("latest")
        return Head(number=block["number"], hash=bytes(block["hash"]), time=block["timestamp"])

    def events(self, name: str, first_block: int) -> list[Event]:
        """The contract's log entries of one kind from a block on, in order."""
        found: list[Event] = []
        last = self.head().number
        event = getattr(self._contract.events, name)()
        with mapped(self._evm.url):
            for start in range(first_block, last + 1, LOG_RANGE):
                stop = min(start + LOG_RANGE - 1, last)
                found += [
                    Event(
                        name=name,
                        arguments=log["args"],
                        block=log["blockNumber"],
                        transaction=bytes(log["transactionHash"]),
                    )
                    for log in event.get_logs(from_block=BlockNumber(start), to_block=BlockNumber(stop))
                ]
        return found

    def inputs(self, transaction: bytes) -> Mapping[str, Any]:
        """The arguments of a call that is in a block, by name. Raises `VerificationError` if it is another's."""
        with mapped(self._evm.url):
            sent = self._evm.w3.eth.get_transaction(HexBytes(transaction))
            if sent.get("to") != self._contract.address:
                raise VerificationError("the transaction is not a call of the batch contract; use another node")
            arguments: Mapping[str, Any] = self._contract.decode_function_input(sent["input"])[1]
        return arguments


def open_board(settlement: EvmSettlement) -> BatchBoard:
    """The batches of a settlement contract, used by the same account."""
    return BatchBoard(EvmBatchPort(settlement))
