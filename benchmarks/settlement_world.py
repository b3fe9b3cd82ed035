"""The settlement contracts in pyrevm, for measuring gas: clients, workers and a settler whose windows pass at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyrevm
from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from swarm import contracts
from swarm.batch_board import batch_fields
from swarm.batch_check import Lie, LieKind, proof_of, record_fields
from swarm.batches import Batch, BatchTree, Entry, Place, PostedBatch, build_batch, pack_file
from swarm.deployment import Terms, creation_record
from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.receipts import Channel, SignedVoucher, Voucher

CHAIN_ID = 1337
GAS = 30_000_000
DEPLOYER, SETTLER, POOL = (Address(bytes([n]) * 20) for n in (0xDD, 0x5E, 0xF0))
SPENDING = Identity(bytes(range(32)))
WINDOWS = Terms(
    close_window=200, challenge_window=100, data_window=20, bond=10**9, deposit=10**7, lag=8, fee_bps=100, pool=POOL
)
TOP = Address(b"\xff" * 20)
CALL_UNITS = 7  # what one call costs, in base units: any number


def address(number: int) -> Address:
    """An account that no other number has, spread as hashes are."""
    return Address(hashlib.sha256(number.to_bytes(8, "big")).digest()[:20])


@dataclass
class Contract:
    """One deployed contract."""

    address: Address
    functions: dict[str, dict[str, Any]]

    def data(self, name: str, *arguments: Any) -> bytes:
        """Calldata."""
        types = [_type(argument) for argument in self.functions[name]["inputs"]]
        return keccak(f"{name}({','.join(types)})".encode())[:4] + encode(types, arguments)


@dataclass
class Chain:
    """Both contracts and what was promised and posted."""

    vouchers: dict[tuple[Address, Address], SignedVoucher] = field(default_factory=dict)
    caps: dict[tuple[Address, Address], int] = field(default_factory=dict)
    batch: Batch | None = None
    posted: PostedBatch | None = None
    number: int = 0
    now: int = 1_000_000
    block: int = 10

    def __post_init__(self) -> None:
        env = pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=CHAIN_ID))
        self.evm = pyrevm.EVM(env=env, gas_limit=GAS, spec_id="PRAGUE")
        self.pass_time(0)
        self.token = self._deploy("TestToken", b"")
        nonce = self.evm.basic(f"0x{DEPLOYER}").nonce
        judge = Address(keccak(creation_record(DEPLOYER, nonce + 1))[12:])
        self.settlement = self._deploy("Settlement", WINDOWS.settlement_arguments(self.token.address, judge))
        self.batches = self._deploy("Batches", WINDOWS.batches_arguments(self.settlement.address, self.token.address))
        self._bond()

    @classmethod
    def with_channels(cls, channels: int, workers: int) -> Self:
        """Batched channels, divided evenly over the workers, each with a voucher, and a first batch behind them."""
        chain = cls()
        payees = [address(0x2000 + at) for at in range(workers)]
        for at in range(channels):
            client = address(0x1000 + at)
            chain.fund(client, 10**12)
            chain.allocate(client, {payees[at % workers]: 10**11}, batched=True)
            chain.promise(client, payees[at % workers], CALL_UNITS)
        # Every worker is paid once: what is measured is what comes day after day.
        chain.post()
        chain.settle_all()
        chain.count_calls(channels, 1)
        return chain

    # Money and channels.

    def fund(self, client: Address, amount: int) -> int:
        """A key and a deposit; the gas of registering the key."""
        self.send(DEPLOYER, self.token, "mint", f"0x{client}", amount)
        self.send(client, self.token, "approve", f"0x{self.settlement.address}", amount)
        gas = self.send(client, self.settlement, "register_spending_key", bytes(SPENDING.peer_id))
        self.send(client, self.settlement, "deposit", amount)
        return gas

    def allocate(self, client: Address, caps: Mapping[Address, int], *, batched: bool = False) -> int:
        """Open channels."""
        name = "allocate_batched" if batched else "allocate"
        gas = self.send(client, self.settlement, name, [(f"0x{worker}", cap) for worker, cap in caps.items()])
        self.caps |= {(client, worker): cap for worker, cap in caps.items()}
        return gas

    def redeem(self, claims: list[tuple[Address, Address, int]], cumulative: int) -> int:
        """Redeem these (client, worker, amount)."""
        fields = []
        for client, worker, amount in claims:
            signed = self.sign(client, worker, cumulative)
            v = signed.voucher
            head = (f"0x{client}", f"0x{worker}", 1, v.nonce, v.cumulative, v.receipts_root, v.terms_hash, amount)
            fields.append((*head, signed.signature[:32], signed.signature[32:]))
        return self.send(SETTLER, self.settlement, "redeem", fields)

    def sign(self, client: Address, worker: Address, cumulative: int) -> SignedVoucher:
        """A voucher on a channel's first epoch."""
        channel = Channel(chain_id=CHAIN_ID, contract=self.settlement.address, client=client, worker=worker, epoch=1)
        return Voucher(
            channel=channel,
            nonce=cumulative,
            cumulative=cumulative,
            receipts_root=hashlib.sha256(b"receipts").digest(),
            terms_hash=hashlib.sha256(b"terms").digest(),
        ).sign(SPENDING)

    def promise(self, client: Address, worker: Address, cumulative: int) -> None:
        """A voucher for the next batch."""
        self.vouchers[client, worker] = self.sign(client, worker, cumulative)

    def promise_all(self, client: Address, workers: Mapping[Address, int], cumulative: int) -> None:
        """The same to several."""
        for worker in workers:
            self.promise(client, worker, cumulative)

    def raise_all(self, client: Address, workers: Mapping[Address, int], cap: int) -> None:
        """Higher caps and vouchers, in a batch that is final."""
        self.allocate(client, dict.fromkeys(workers, cap), batched=True)
        self.promise_all(client, workers, cap)
        self.post()

    def count_calls(self, calls: int, number: int) -> None:
        """Every channel pays for its part of so many calls."""
        each = max(1, calls // len(self.vouchers)) * CALL_UNITS
        for (client, worker), signed in list(self.vouchers.items()):
            self.promise(client, worker, signed.voucher.cumulative + each + number)

    # Batches.

    def build(self) -> Batch:
        """A batch of everything promised."""
        entries = [Entry(signed=signed, cap=self.caps[pair]) for pair, signed in self.vouchers.items()]
        return build_batch(entries, chain_id=CHAIN_ID, contract=self.settlement.address, snapshot=self.block - 1)

    def post(self, batch: Batch | None = None, *, settle: bool = True) -> int:
        """Post a batch, and let its window pass; the gas of posting."""
        batch = batch or self.build()
        new = batch.posting
        snapshot = bytes(self.evm.block_hash(new.snapshot))
        gas = self.send(
            SETTLER,
            self.batches,
            "post",
            new.record_root,
            new.pieces_root,
            new.snapshot,
            new.count,
            new.total,
            snapshot,
        )
        self.number += 1
        self.batch, self.posted = batch, replace(new, posted=self.now)
        if settle:
            self.pass_time(WINDOWS.challenge_window)
        return gas

    def _claim(self, workers: list[Address]) -> int:
        assert self.batch is not None
        assert self.posted is not None
        tree, count = self.batch.tree, self.posted.count
        proofs = [record_fields(tree.proof(tree.find(count, TOP, worker))) for worker in workers]
        return self.send(SETTLER, self.batches, "claim", self.number, batch_fields(self.posted), proofs)

    def settle_all(self) -> int:
        """Claim for every worker, in one transaction."""
        return self._claim(sorted({worker for _, worker in self.vouchers}))

    def settle_first(self, worker: Address) -> int:
        """Claim for one worker that was never paid; another's claim has resolved the batch."""
        self._claim([max(w for _, w in self.vouchers)])
        return self._claim([worker])

    def settle_next(self, worker: Address) -> int:
        """Claim for one worker that was paid before."""
        self._claim([max(w for _, w in self.vouchers)])
        return self._claim([worker])

    def prove(self, name: str) -> int:
        """Post a batch with a lie and prove it."""
        honest = self.build()
        records = [honest.tree.record(index) for index in range(1, honest.header.count + 1)]
        header, file = honest.header, None
        kind, index = LieKind(name[:2]), 50
        layer: tuple[bytes, ...] = ()
        match name:
            case "F1 forged voucher":
                records[49] = replace(records[49], signature=records[48].signature)
            case "F2 not backed":
                records[49] = replace(records[49], epoch=2)
            case "F4 running sums":
                records[49] = replace(records[49], worker_running=1)
            case "F5 wrong total":
                header, index = replace(header, total=header.total + 1), header.count
            case "F5 filling":
                file, index = bytearray(honest.tree.file), header.count + 1
                file[-1 - 256 * (len(file) // 256 - 1 - index)] = 1
            case _:
                return self._prove_differing(honest)
        tree = BatchTree(bytes(file) if file else pack_file(header, [record.pack() for record in records]))
        self.post(Batch(header=header, tree=tree), settle=False)
        call = proof_of(Lie(kind=kind, index=index, what=name), tree, count=header.count, layer=layer)
        assert self.posted is not None
        return self.send(POOL, self.batches, call.function, self.number, batch_fields(self.posted), *call.arguments)

    def _prove_differing(self, honest: Batch) -> int:
        file = bytearray(honest.tree.file)
        file[300] ^= 1
        other, mine = BatchTree(bytes(file)), BatchTree(honest.tree.file)
        honest.tree.levels = other.levels
        self.post(honest, settle=False)
        assert self.posted is not None
        lie = Lie(kind=LieKind.differing, index=0, what="")
        call = proof_of(lie, mine, count=self.posted.count, layer=other.layer)
        return self.send(POOL, self.batches, call.function, self.number, batch_fields(self.posted), *call.arguments)

    def demand_and_show(self) -> tuple[int, int]:
        """Gas of a demand, and of the answer."""
        self.post(settle=False)
        assert self.posted is not None
        assert self.batch is not None
        fields, tree = batch_fields(self.posted), self.batch.tree
        demand = self.send(SETTLER, self.batches, "demand_data", self.number, fields, 0)
        data = (tree.block(0), list(tree.piece_path(0)), list(tree.layer))
        show = self.send(SETTLER, self.batches, "show_data", self.number, fields, 0, *data)
        self.pass_time(WINDOWS.challenge_window + WINDOWS.data_window)
        return demand, show

    def request_close(self) -> int:
        """The first channel's client asks for its close."""
        client, worker = next(iter(self.vouchers))
        return self.send(client, self.settlement, "request_close", f"0x{worker}")

    def close(self) -> int:
        """It is finalised."""
        assert self.posted is not None
        assert self.batch is not None
        client, worker = next(iter(self.vouchers))
        self.block += WINDOWS.lag
        self.pass_time(WINDOWS.close_window)
        self.send(SETTLER, self.batches, "advance")
        place: Place = self.batch.tree.place(self.posted.count, client, worker)
        fields = (record_fields(place.at), record_fields(place.after))
        number = self._ask(self.batches, "finals")
        parties = (f"0x{client}", f"0x{worker}")
        return self.send(SETTLER, self.batches, "finalize_close", *parties, number, batch_fields(self.posted), fields)

    # The machine.

    def send(self, sender: Address, contract: Contract, name: str, *arguments: Any) -> int:
        """One transaction in a block of its own; its gas, by EIP-7623 no less than its calldata's floor."""
        data = contract.data(name, *arguments)
        self._run(sender, contract.address, data, name)
        result = self.evm.result
        assert result is not None
        self.pass_time(0)
        zeros = data.count(0)
        return max(int(result.gas_used), 21_000 + 10 * zeros + 40 * (len(data) - zeros))

    def pass_time(self, seconds: int) -> None:
        """The next block, so many seconds later."""
        self.now += seconds
        self.block += 1
        self.evm.set_block_env(pyrevm.BlockEnv(timestamp=self.now, number=self.block))

    def _ask(self, contract: Contract, name: str, *arguments: Any) -> Any:
        raw = self._run(SETTLER, contract.address, contract.data(name, *arguments), name)
        return decode([_type(output) for output in contract.functions[name]["outputs"]], raw)[0]

    def _run(self, sender: Address, to: Address, data: bytes, name: str) -> bytes:
        self.evm.reset_transient_storage()
        try:
            return bytes(self.evm.message_call(f"0x{sender}", f"0x{to}", calldata=data, gas=GAS))
        except RuntimeError as error:
            raise SwarmError(f"{name} was refused: {str(error)[:200]}") from error

    def _deploy(self, name: str, arguments: bytes) -> Contract:
        compiled = contracts.load(name)
        created = self.evm.deploy(f"0x{DEPLOYER}", compiled.bytecode + arguments)
        functions = {entry["name"]: entry for entry in compiled.abi if entry["type"] == "function"}
        return Contract(Address.parse(created), functions)

    def _bond(self) -> None:
        amount = 100 * WINDOWS.bond
        self.send(DEPLOYER, self.token, "mint", f"0x{SETTLER}", amount)
        self.send(SETTLER, self.token, "approve", f"0x{self.batches.address}", amount)
        self.send(SETTLER, self.batches, "deposit_bond", amount)


def _type(argument: dict[str, Any]) -> str:
    kind: str = argument["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_type(part) for part in argument["components"]) + ")" + kind.removeprefix("tuple")
    return kind
