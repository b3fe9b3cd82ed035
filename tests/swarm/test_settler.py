"""Settlers and watchers on real chains: the embedded one, and anvil where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from swarm.batch_board import BatchBoard, Standing
from swarm.batch_check import LieKind
from swarm.batches import Batch, BatchTree, pack_file
from swarm.batches_evm import open_board
from swarm.deployment import Terms
from swarm.errors import PaymentError, UnreachableError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.ledger import open_ledger
from swarm.receipts import Channel, Voucher
from swarm.settlement_evm import EvmSettlement, account_address, deploy, deploy_test_token
from swarm.settler import Settler, SettlerConfig, Turn, run_settler
from swarm.torrents import TorrentConfig, open_torrents
from swarm.watcher import Findings, Watcher, WatcherConfig, run_watcher
from tests.swarm.anvil import running_anvil
from tests.swarm.chains import running_chain

ROOT = Path(__file__).parents[2]
TERMS = Terms(close_window=400, challenge_window=200, data_window=50, bond=1000, deposit=10, lag=8, fee_bps=0)
SPENDING = Identity(bytes(range(32)))
CLIENT, WORKER, SETTLER, WATCHER = (bytes([n]) * 32 for n in (0x21, 0x41, 0x61, 0x62))


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    with running_anvil() as url:
        yield url


@dataclass(kw_only=True)
class Place:
    """Fresh contracts on a node, a client with a batched channel of 1000 to a worker, and everybody's accounts."""

    url: str
    folder: Path
    contract: Address = field(init=False)

    def __post_init__(self) -> None:
        token = deploy_test_token(self.url)
        first = EvmSettlement.connect(self.url, self._deploy(token), account_key=CLIENT)
        self.contract = first.contract
        for key in (CLIENT, WORKER, SETTLER, WATCHER):
            first.fund(account_address(key), native=10**18, tokens=100_000)
        client = self.use(CLIENT)
        client.register_spending_key(SPENDING.peer_id)
        client.deposit(10_000)
        client.allocate({account_address(WORKER): 1000}, batched=True)
        for key in (SETTLER, WATCHER):
            self.use(key).deposit_bond(10_000)

    def _deploy(self, token: Address) -> Address:
        source = EvmFunding(self.url)
        source.coins(account_address(CLIENT))
        return deploy(self.url, account_key=CLIENT, token=token, terms=TERMS)[0]

    def use(self, key: bytes) -> EvmSettlement:
        return EvmSettlement.connect(self.url, self.contract, account_key=key)

    def board(self, key: bytes) -> BatchBoard:
        return open_board(self.use(key))

    def settler(self, name: str = "settler", key: bytes = SETTLER, *, epoch: int = 100) -> Settler:
        config = SettlerConfig(folder=self.folder / name, ledgers=(self.ledger,), epoch=epoch, confirmations=1)
        return Settler(self.board(key), self.use(key), config)

    def watcher(self, name: str = "watcher") -> Watcher:
        return Watcher(self.board(WATCHER), self.use(WATCHER), WatcherConfig(folder=self.folder / name))

    @property
    def ledger(self) -> Path:
        return self.folder / "worker" / "ledger-worker.db"

    async def promise(self, cumulative: int) -> None:
        """The worker takes a voucher."""
        channel = Channel(
            chain_id=1337,
            contract=self.contract,
            client=account_address(CLIENT),
            worker=account_address(WORKER),
            epoch=1,
        )
        voucher = Voucher(
            channel=channel,
            nonce=cumulative,
            cumulative=cumulative,
            receipts_root=bytes(32),
            terms_hash=bytes(32),
        )
        async with open_ledger(self.ledger) as ledger:
            await ledger.accept_voucher(voucher.sign(SPENDING))

    def tokens(self, key: bytes) -> int:
        return self.use(key).account_state(account_address(key)).token_balance

    def advance(self, seconds: int) -> None:
        self.use(CLIENT).advance_clock(seconds)


@dataclass(kw_only=True)
class EvmFunding:
    """Coins for an account before there is a contract."""

    url: str

    def __init__(self, url: str) -> None:
        self.url = url

    def coins(self, address: Address) -> None:
        from web3 import HTTPProvider, Web3

        w3 = Web3(HTTPProvider(self.url))
        sent = w3.eth.send_transaction(
            {
                "from": w3.eth.accounts[0],
                "to": Web3.to_checksum_address(bytes(address)),
                "value": Web3.to_wei(1, "ether"),
            }
        )
        w3.eth.wait_for_transaction_receipt(sent)


@pytest.fixture
def place(node: str, tmp_path: Path) -> Place:
    return Place(url=node, folder=tmp_path)


async def test_a_batch_from_the_ledger_to_the_worker(place: Place) -> None:
    await whole_way(place)


async def test_the_same_on_the_embedded_chain(tmp_path: Path) -> None:
    with running_chain(60) as chain:
        await whole_way(Place(url=chain.url, folder=tmp_path))


async def whole_way(place: Place) -> None:
    await place.promise(300)
    settler, watcher = place.settler(), place.watcher("settler")
    assert settler.turn().posted == 1
    found = await watcher.turn()
    assert (found.checked, found.proven, found.problems) == ([1], [], [])
    assert settler.turn() == Turn()
    place.advance(100)
    assert settler.turn() == Turn()  # the epoch is over, but there is nothing new
    await place.promise(450)
    assert settler.turn().posted == 2
    place.advance(100)
    assert settler.turn() == Turn(claimed=(account_address(WORKER),))
    assert place.tokens(WORKER) == 100_300
    # A second settler that has only files and the first one's snapshot goes on after the first is gone.
    other = Settler(place.board(WATCHER), place.use(WATCHER), SettlerConfig(folder=place.folder / "settler", epoch=1))
    assert other.turn() == Turn()
    place.advance(100)
    place.settler().turn()
    assert place.tokens(WORKER) == 100_450
    place.use(CLIENT).request_close(account_address(WORKER))
    for _ in range(9):
        place.advance(0)
    assert settler.turn().closed == ()
    place.advance(400)
    assert settler.turn().closed == ((account_address(CLIENT), account_address(WORKER)),)
    assert place.use(CLIENT).account_state(account_address(CLIENT)).free_balance == 9_550


def lying(settler: Settler) -> Batch:
    """What a settler would post, with a worker's sum too high."""
    batch = settler.build(settler.board.port.head().number - 1, None)
    record = batch.tree.record(1)
    raw = bytearray(record.pack())
    raw[88] = 1
    return Batch(header=batch.header, tree=BatchTree(pack_file(batch.header, [bytes(raw)])))


async def test_a_watcher_fetches_by_root_and_voids_a_lie(place: Place) -> None:
    await place.promise(300)
    settler = place.settler()
    bad = lying(settler)
    settler.files.save(bad.tree)
    settler.board.post(bad, settler.settlement.block_hash(bad.header.snapshot))
    [seen] = settler.board.batches()
    async with open_torrents(TorrentConfig()) as seeding, open_torrents(TorrentConfig()) as fetching:
        await seeding.seed(seen.posted.torrent().encode(), settler.config.folder)
        watcher = Watcher(
            place.board(WATCHER),
            place.use(WATCHER),
            WatcherConfig(folder=place.folder / "fetched", peers=(("127.0.0.1", seeding.port),), fetch_timeout=30),
            fetching,
        )
        found = await watcher.turn()
    assert [(number, lie.kind) for number, lie in found.proven] == [(1, LieKind.sums)]
    assert watcher.board.state(1).standing is Standing.void
    assert watcher.board.bond_balance(account_address(WATCHER)) == 10_000 + 500
    # An honest one follows at once: the void batch does not count as the epoch's.
    assert settler.turn().posted == 2
    found = await place.watcher("settler").turn()
    assert (found.checked, found.problems) == ([2], [])


async def test_withheld_data_is_demanded_and_the_batch_voided(place: Place) -> None:
    await place.promise(300)
    settler, watcher = place.settler(), place.watcher()
    assert settler.turn().posted == 1
    assert (await watcher.turn()).demanded == [1]
    # The settler is there: it shows the data, and is paid for it.
    assert settler.turn().answered == 1
    assert settler.board.bond_balance(account_address(SETTLER)) == 9_000 + 10
    # Nobody serves the file, and the next demand goes unanswered.
    assert (await watcher.turn()).demanded == [1]
    assert (await watcher.turn()) == Findings()
    place.advance(60)
    assert (await watcher.turn()).voided == [1]
    assert watcher.board.state(1).standing is Standing.void


CRASH = """
import sys
from pathlib import Path
from tests.swarm.test_settler import Place, SETTLER
place = object.__new__(Place)
place.url, place.folder = sys.argv[1], Path(sys.argv[2])
from swarm.ids import Address
place.contract = Address.parse(sys.argv[3])
settler = place.settler()
send = settler.board.port._evm.w3.eth.send_raw_transaction
def sent(raw):
    answer = send(raw)
    print("sent", flush=True)
    return answer
settler.board.port._evm.w3.eth.send_raw_transaction = sent
settler.turn()
"""


def kill_once_sent(url: str, folder: Path, contract: Address) -> None:
    """A settler in a process of its own, killed as soon as its transaction is with the node and in no block."""
    command = [sys.executable, "-c", CRASH, url, str(folder), f"0x{contract}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        os.kill(process.pid, signal.SIGKILL)


async def test_a_settler_killed_between_posting_and_confirming(tmp_path: Path) -> None:
    with running_anvil() as url:
        place = Place(url=url, folder=tmp_path)
        await place.promise(300)
        rpc = place.use(CLIENT).evm.w3.provider
        rpc.make_request("evm_setAutomine", [False])  # type: ignore[arg-type]
        kill_once_sent(url, tmp_path, place.contract)
        rpc.make_request("evm_setAutomine", [True])  # type: ignore[arg-type]
        rpc.make_request("evm_mine", [])  # type: ignore[arg-type]
        settler = place.settler()
        assert settler.turn() == Turn()
        assert settler.board.counts() == (1, 0, 0)
        found = await place.watcher("settler").turn()
        assert found.checked == [1]
        place.advance(200)
        assert settler.turn().claimed == (account_address(WORKER),)
        assert place.tokens(WORKER) == 100_300


async def test_a_reorganisation_takes_a_batch_back(tmp_path: Path) -> None:
    with running_anvil() as url:
        place = Place(url=url, folder=tmp_path)
        await place.promise(300)
        rpc = place.use(CLIENT).evm.w3.provider
        settler, watcher = place.settler(), place.watcher("settler")
        before = rpc.make_request("evm_snapshot", [])["result"]  # type: ignore[arg-type]
        assert settler.turn().posted == 1
        assert (await watcher.turn()).checked == [1]
        [first] = settler.board.batches()
        stale = settler.build(settler.board.port.head().number - 1, None)
        rpc.make_request("evm_revert", [before])  # type: ignore[arg-type]
        place.advance(7)
        # What was made from a block that is gone cannot be posted; what was posted there is gone and is posted anew.
        with pytest.raises(PaymentError, match="reorganised"):
            settler.board.post(stale, first.posted.record_root)
        await place.promise(500)
        assert settler.turn().posted == 1
        [second] = settler.board.batches()
        assert second.posted.total == 500
        assert (await watcher.turn()).checked == [1]


async def test_a_node_that_goes_away_is_reported_and_met_again(tmp_path: Path) -> None:
    with running_chain(60) as chain:
        place = Place(url=chain.url, folder=tmp_path)
        await place.promise(300)
        settler, watcher = place.settler(), place.watcher()
    with pytest.raises(UnreachableError):
        settler.turn()
    send, receive = trio.open_memory_channel[Turn | str](10)
    heard, hear = trio.open_memory_channel[Findings | str](10)
    async with trio.open_nursery() as nursery:

        async def settle() -> None:
            await run_settler(settler, period=0.01, report=send)

        async def watch() -> None:
            await run_watcher(watcher, period=0.01, report=heard)

        nursery.start_soon(settle)
        nursery.start_soon(watch)
        for _ in range(2):
            assert "no chain node answers" in str(await receive.receive())
            assert "no chain node answers" in str(await hear.receive())
        nursery.cancel_scope.cancel()
    send.close()
    heard.close()
    receive.close()
    hear.close()


async def test_a_settler_without_a_bond_says_so(place: Place) -> None:
    await place.promise(300)
    place.board(SETTLER).port.send("withdraw_bond", 10_000)
    with pytest.raises(PaymentError, match="takes a bond of 1000"):
        place.settler().turn()
