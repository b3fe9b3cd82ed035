from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import ClosedError, PaymentError, ProtocolError, ResourceError, UsageError
from swarm.identity import Identity
from swarm.ids import Address, CallId, ManifestId, SessionId
from swarm.ledger import PRAGMAS, Ledger, LedgerView, open_ledger, read_ledger
from swarm.merkle import EMPTY_ROOT, merkle_root
from swarm.receipts import UINT128_MAX, Channel, Price, Receipt, SignedVoucher, Voucher

ROOT = Path(__file__).parents[2]
CLIENT, WORKER, SPENDING = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
CHANNEL = Channel(
    chain_id=1337,
    contract=Address(b"\x11" * 20),
    client=Address(b"\x22" * 20),
    worker=Address(b"\x33" * 20),
    epoch=1,
)
OTHER = dataclasses.replace(CHANNEL, worker=Address(b"\x34" * 20))


def voucher(cumulative: int, *, nonce: int | None = None, channel: Channel = CHANNEL) -> SignedVoucher:
    return Voucher(
        channel=channel,
        nonce=cumulative % 2**64 if nonce is None else nonce,
        cumulative=cumulative,
        receipts_root=EMPTY_ROOT,
        terms_hash=bytes(32),
    ).sign(SPENDING)


def receipt(number: int, *, channel: Channel = CHANNEL, start: int = 0, cumulative: int | None = None) -> Receipt:
    return Receipt(
        manifest_id=ManifestId(bytes(32)),
        client=CLIENT.peer_id,
        worker=WORKER.peer_id,
        session_id=SessionId(bytes(16)),
        call_id=CallId(number.to_bytes(16, "big")),
        chain_epoch=0,
        start=start,
        stop=start + 1,
        request_hash=bytes(32),
        input_root=bytes(32),
        output_root=bytes(32),
        fingerprint_root=bytes(32),
        input_tokens=1000,
        output_tokens=0,
        rebuilt_tokens=0,
        price=Price(per_1k_input=7, per_1k_output=0),
        amount=7,
        cumulative=7 * number if cumulative is None else cumulative,
        client_account=channel.client,
        worker_account=channel.worker,
        channel_epoch=channel.epoch,
        started_ms=10 * number + start,
        finished_ms=10 * number + start + 5,
    )


async def record(ledger: Ledger, made: Receipt, *, channel: Channel = CHANNEL, complete: bool = True) -> None:
    await ledger.record_receipt(
        channel,
        made,
        worker_signature=made.sign(WORKER),
        client_signature=made.sign(CLIENT) if complete else None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


# ---------------------------------------------------------------------------------------------- the worker's side


async def test_an_empty_ledger_knows_nothing(path: Path) -> None:
    async with open_ledger(path) as ledger:
        assert ledger.accepted(CHANNEL) is None
        assert ledger.issued(CHANNEL) is None
        assert (ledger.earned(CHANNEL), ledger.settled(CHANNEL)) == (0, 0)
        assert ledger.receipts_root(CHANNEL) == EMPTY_ROOT
        assert (ledger.receipts(CHANNEL), ledger.calls(), ledger.channels(), ledger.unsettled()) == ([], [], [], [])


@given(st.lists(st.integers(0, UINT128_MAX) | st.integers(0, 20), min_size=1, max_size=30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_highest_voucher_stands_in_any_order(amounts: list[int], together: bool) -> None:
    async def main(path: Path) -> None:
        raised: dict[int, bool] = {}

        async def accept(at: int) -> None:
            raised[at] = await ledger.accept_voucher(voucher(amounts[at]))

        async with open_ledger(path) as ledger, trio.open_nursery() as nursery:
            for at in range(len(amounts)):
                if together:
                    nursery.start_soon(accept, at)
                else:
                    await accept(at)
                    assert raised[at] == (amounts[at] > max(amounts[:at], default=-1))
        with read_ledger(path) as view:
            assert view.accepted(CHANNEL) == voucher(max(amounts))
            assert view.accepted(OTHER) is None
        assert any(raised.values())

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder) / "ledger.db")


async def test_channels_are_kept_apart(path: Path) -> None:
    epochs = [dataclasses.replace(CHANNEL, epoch=epoch) for epoch in (1, 2)]
    async with open_ledger(path) as ledger:
        for amount, channel in enumerate([*epochs, OTHER], 1):
            assert await ledger.accept_voucher(voucher(amount, channel=channel))
        assert [ledger.accepted(channel) for channel in [*epochs, OTHER]] == [
            voucher(amount, channel=channel) for amount, channel in enumerate([*epochs, OTHER], 1)
        ]
        assert [state.channel for state in ledger.channels()] == [*epochs, OTHER]


async def test_what_is_unsettled_and_what_is_marked(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(100))
        await ledger.accept_voucher(voucher(50, channel=OTHER))
        await record(ledger, receipt(9))
        assert ledger.unsettled() == [(CHANNEL, voucher(100), 63), (OTHER, voucher(50, channel=OTHER), 0)]

        await ledger.mark_settled(CHANNEL, 100, b"\xaa" * 32)
        await ledger.mark_settled(CHANNEL, 100, b"\xaa" * 32)
        await ledger.mark_settled(OTHER, 40, b"\xbb" * 32)
        await ledger.mark_settled(OTHER, 30, b"\xcc" * 32)
        assert (ledger.settled(CHANNEL), ledger.settled(OTHER)) == (100, 40)
        assert ledger.unsettled() == [(OTHER, voucher(50, channel=OTHER), 0)]

        await ledger.accept_voucher(voucher(101))
        assert [found[0] for found in ledger.unsettled()] == [CHANNEL, OTHER]
        with pytest.raises(UsageError, match="32 bytes, not 31"):
            await ledger.mark_settled(CHANNEL, 101, bytes(31))


# ---------------------------------------------------------------------------------------------- the client's side


async def test_an_issued_voucher_must_rise_in_both(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await ledger.issue_voucher(voucher(10, nonce=5))
        for amount, nonce in ((10, 6), (9, 6), (10, 5), (11, 5), (11, 4)):
            with pytest.raises(PaymentError, match="does not rise"):
                await ledger.issue_voucher(voucher(amount, nonce=nonce))
        assert ledger.issued(CHANNEL) == voucher(10, nonce=5)
        assert ledger.accepted(CHANNEL) is None
        await ledger.issue_voucher(voucher(11, nonce=6))
        await ledger.issue_voucher(voucher(1, nonce=1, channel=OTHER))
    async with open_ledger(path) as ledger:
        assert ledger.issued(CHANNEL) == voucher(11, nonce=6)
        with pytest.raises(PaymentError):
            await ledger.issue_voucher(voucher(11, nonce=7))


async def test_a_refused_write_leaves_its_neighbours_alone(path: Path) -> None:
    refused: list[PaymentError] = []

    async def issue(amount: int) -> None:
        try:
            await ledger.issue_voucher(voucher(amount, channel=OTHER if amount % 2 else CHANNEL))
        except PaymentError as error:
            refused.append(error)

    async with open_ledger(path) as ledger:
        await ledger.issue_voucher(voucher(1000))
        async with trio.open_nursery() as nursery:
            for amount in range(20):
                nursery.start_soon(issue, amount)
        assert ledger.issued(CHANNEL) == voucher(1000)
        assert ledger.issued(OTHER) == voucher(19, channel=OTHER)
        assert len(refused) >= 10


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans(), st.booleans()), max_size=30))
@settings(max_examples=30, deadline=None)
def test_receipts_against_a_model(steps: list[tuple[int, int, bool, bool]]) -> None:
    async def main(path: Path) -> None:
        leaves: dict[Channel, list[bytes]] = {CHANNEL: [], OTHER: []}
        signed: dict[tuple[int, int], tuple[Channel, bool]] = {}
        async with open_ledger(path) as ledger:
            for number, start, complete, on_other in steps:
                channel = OTHER if on_other else CHANNEL
                made = receipt(number, channel=channel, start=start)
                known = signed.get((number, start))
                if known is not None and known[0] != channel:
                    with pytest.raises(PaymentError, match="already recorded"):
                        await record(ledger, made, channel=channel, complete=complete)
                    continue
                await record(ledger, made, channel=channel, complete=complete)
                signed[number, start] = (channel, complete or (known is not None and known[1]))
                if known is None:
                    leaves[channel].append(made.leaf())
                assert ledger.receipts_root(channel) == merkle_root(leaves[channel])
        with read_ledger(path) as view:
            for channel in (CHANNEL, OTHER):
                stored = view.receipts(channel)
                assert [one.receipt.leaf() for one in stored] == leaves[channel]
                assert view.receipts_root(channel) == merkle_root(leaves[channel])
                assert view.earned(channel) == max((one.receipt.cumulative for one in stored), default=0)
                for one in stored:
                    both = one.signed()
                    key = (int.from_bytes(one.receipt.call_id, "big"), one.receipt.start)
                    assert (both is not None) == signed[key][1]
                    if both is not None:
                        both.verify()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder) / "ledger.db")


async def test_a_different_receipt_for_the_same_stage_is_refused(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await record(ledger, receipt(1))
        with pytest.raises(PaymentError, match="already recorded; the first one stands") as caught:
            await record(ledger, receipt(1, cumulative=8))
        assert (caught.value.call_id, caught.value.peer_id) == (receipt(1).call_id, WORKER.peer_id)
        assert [stored.receipt for stored in ledger.receipts(CHANNEL)] == [receipt(1)]
        assert ledger.earned(CHANNEL) == 7


async def test_a_receipt_of_another_channel_is_refused(path: Path) -> None:
    reopened = dataclasses.replace(CHANNEL, epoch=2)
    async with open_ledger(path) as ledger:
        for channel in (OTHER, reopened):
            with pytest.raises(PaymentError, match="another channel"):
                await record(ledger, receipt(1), channel=channel)
        with pytest.raises(ProtocolError, match="64 bytes, not 3"):
            await ledger.record_receipt(CHANNEL, receipt(1), worker_signature=b"abc")
        assert ledger.channels() == []


async def test_calls_come_latest_first_with_their_stages_in_order(path: Path) -> None:
    async with open_ledger(path) as ledger:
        for number, start in ((1, 3), (2, 0), (1, 0), (3, 0), (2, 5)):
            await record(ledger, receipt(number, start=start))
        calls = ledger.calls()
        assert [(int.from_bytes(call.call_id, "big"), len(call.receipts)) for call in calls] == [(2, 2), (3, 1), (1, 2)]
        assert [stored.receipt.start for stored in calls[2].receipts] == [0, 3]
        assert (calls[2].amount, calls[2].started_ms, calls[2].finished_ms) == (14, 10, 18)
        assert ledger.calls(1) == calls[:1]


# -------------------------------------------------------------------------------------- transactions and the disk


async def test_writes_that_wait_together_share_a_transaction(path: Path) -> None:
    async with open_ledger(path) as ledger:
        async with trio.open_nursery() as nursery:
            for amount in range(100):
                nursery.start_soon(ledger.accept_voucher, voucher(amount))
        # The first to come goes alone or with whoever was there; the rest cannot need more than one more each turn.
        assert 1 <= ledger.commits <= 3
        assert ledger.accepted(CHANNEL) == voucher(99)
        before = ledger.commits
        for amount in range(100, 105):
            await ledger.accept_voucher(voucher(amount))
        assert ledger.commits == before + 5


async def test_a_cancelled_writer_harms_nobody_who_waits_with_it(path: Path) -> None:
    async with open_ledger(path) as ledger:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                scope.cancel()
                await ledger.accept_voucher(voucher(1000, channel=OTHER))
            for amount in range(10):
                nursery.start_soon(ledger.accept_voucher, voucher(amount))
        assert ledger.accepted(CHANNEL) == voucher(9)
        assert ledger.accepted(OTHER) is None


async def test_writers_cancelled_while_a_group_is_written(path: Path) -> None:
    async with open_ledger(path) as ledger:
        acknowledged: list[int] = []

        async def accept(amount: int) -> None:
            await ledger.accept_voucher(voucher(amount))
            acknowledged.append(amount)

        for first in range(0, 100, 10):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for amount in range(first, first + 10):
                        nursery.start_soon(accept, amount)
                    for _ in range(first % 7):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await accept(100)
        assert acknowledged[-1] == 100
        assert ledger.accepted(CHANNEL) == voucher(100)


async def test_a_closed_ledger_says_so(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(1))
    with pytest.raises(ClosedError, match="open it again"):
        await ledger.accept_voucher(voucher(2))
    with pytest.raises(ClosedError, match="open it again"):
        ledger.accepted(CHANNEL)


async def test_errors_of_the_body_come_out_as_they_are(path: Path) -> None:
    with pytest.raises(PaymentError, match="mine"):
        async with open_ledger(path):
            raise PaymentError("mine")
    async with open_ledger(path):
        pass


class Disk(apsw.VFS):
    """SQLite's own file system with a lid: counts syncs, keeps what a power cut would leave, and can be full."""

    def __init__(self) -> None:
        super().__init__("lid", base="unix", makedefault=True)
        self.full = False
        self.syncs = 0
        self.durable: dict[str, bytes] = {}
        """What each file held when it was last synced: the least that a power cut leaves."""

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:
        return DiskFile(self, name, flags)


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name

    def xLock(self, level: int) -> None:
        try:
            super().xLock(level)
        except apsw.IOError as error:
            # SQLite asks this of files opened for reading when it closes them, and takes no for an answer.
            raise apsw.BusyError("opened for reading") from error

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._disk.full:
            raise apsw.FullError("no space left on device")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.syncs += 1
        if self._name:
            self._disk.durable[self._name] = Path(self._name).read_bytes()


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.unregister()


def after_power_cut(disk: Disk, path: Path, folder: Path) -> Path:
    """The ledger as it would be found if the power had gone just now."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in disk.durable.items():
        if Path(name).exists():
            (folder / Path(name).name).write_bytes(content)
    return folder / path.name


async def test_a_write_is_acknowledged_after_its_sync(path: Path, tmp_path: Path, disk: Disk) -> None:
    async with open_ledger(path) as ledger:
        for number in range(1, 30):
            await ledger.accept_voucher(voucher(number))
            await record(ledger, receipt(number))
            with read_ledger(after_power_cut(disk, path, tmp_path / "found")) as found:
                assert found.accepted(CHANNEL) == voucher(number)
                assert found.earned(CHANNEL) == 7 * number
                assert found.receipts_root(CHANNEL) == ledger.receipts_root(CHANNEL)


@dataclasses.dataclass(kw_only=True)
class Cut:
    """What a power cut left, and what had been acknowledged by then."""

    files: dict[str, bytes]
    highest: int
    receipts: set[int]


class CutDisk(Disk):
    """A disk whose power is cut at random writes: of what was not synced, any part may be there."""

    def __init__(self, seed: int, every: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.every = every
        self.unsynced: dict[str, list[tuple[int, bytes]]] = {}
        self.highest = 0
        self.receipts: set[int] = set()
        self.cuts: list[Cut] = []

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:
        return CutFile(self, name, flags)

    def cut(self) -> None:
        files = {}
        for name, content in self.durable.items():
            if not Path(name).exists():  # a journal that SQLite has deleted, with a sync of the folder
                continue
            left = bytearray(content)
            for offset, data in self.unsynced.get(name, []):
                if self.rng.random() < 0.5:
                    left.extend(bytes(max(0, offset + len(data) - len(left))))
                    left[offset : offset + len(data)] = data
            files[name] = bytes(left)
        self.cuts.append(Cut(files=files, highest=self.highest, receipts=set(self.receipts)))


class CutFile(DiskFile):
    _disk: CutDisk

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        if self._name:
            self._disk.unsynced.setdefault(self._name, []).append((offset, bytes(data)))
            if self._disk.rng.randrange(self._disk.every) == 0:
                self._disk.cut()

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.unsynced.pop(self._name, None)


def power_cuts(folder: Path, seed: int, *, writes: int, every: int) -> int:
    """Write in three lanes with cuts now and then; every cut must leave all that was acknowledged. Their number."""
    disk = CutDisk(seed, every)
    path = folder / f"home-{seed}" / "ledger.db"

    async def lane(ledger: Ledger, number: int) -> None:
        for step in range(1, writes + 1):
            mark = 3 * step + number
            if disk.rng.random() < 0.5:
                await ledger.accept_voucher(voucher(mark))
                disk.highest = max(disk.highest, mark)
            else:
                await record(ledger, receipt(mark))
                disk.receipts.add(mark)

    async def main() -> None:
        async with open_ledger(path) as ledger, trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(lane, ledger, number)

    try:
        trio.run(main)
    finally:
        disk.unregister()
    for number, cut in enumerate(disk.cuts):
        found = folder / f"found-{seed}-{number}"
        found.mkdir()
        for name, content in cut.files.items():
            if not name.endswith(".lock"):
                (found / Path(name).name).write_bytes(content)
        trio.run(check_cut, found / path.name, cut)
    return len(disk.cuts)


async def check_cut(path: Path, cut: Cut) -> None:
    """Its owner opens it again, and all that was acknowledged is there."""
    async with open_ledger(path) as ledger:
        accepted = ledger.accepted(CHANNEL)
        stored = [one.receipt for one in ledger.receipts(CHANNEL)]
        assert (accepted.voucher.cumulative if accepted else 0) >= cut.highest
        assert cut.receipts <= {int.from_bytes(one.call_id, "big") for one in stored}
        assert ledger.receipts_root(CHANNEL) == merkle_root([one.leaf() for one in stored])


def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert power_cuts(tmp_path, 1, writes=30, every=20) >= 5


@pytest.mark.slow
def test_three_hundred_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert sum(power_cuts(tmp_path, seed, writes=60, every=10) for seed in range(100, 112)) >= 300


async def test_a_group_shares_one_sync(path: Path, disk: Disk) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(0))
        commits, syncs = ledger.commits, disk.syncs
        async with trio.open_nursery() as nursery:
            for amount in range(1, 101):
                nursery.start_soon(ledger.accept_voucher, voucher(amount))
        assert disk.syncs - syncs == ledger.commits - commits <= 3


async def test_a_full_disk_is_a_local_fault_and_loses_nothing(path: Path, disk: Disk) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(1))
        await record(ledger, receipt(1))
        disk.full = True
        failed: list[ResourceError] = []

        async def accept(amount: int) -> None:
            try:
                await ledger.accept_voucher(voucher(amount))
            except ResourceError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for amount in range(2, 7):
                nursery.start_soon(accept, amount)
        assert {str(error) for error in failed} == {
            f"the disk under {path} is full; free some space and try again, nothing acknowledged was lost"
        }
        assert len(failed) == 5
        with pytest.raises(ResourceError, match="is full"):
            await record(ledger, receipt(2))
        assert ledger.accepted(CHANNEL) == voucher(1)
        assert [stored.receipt for stored in ledger.receipts(CHANNEL)] == [receipt(1)]

        disk.full = False
        assert await ledger.accept_voucher(voucher(2))
        await record(ledger, receipt(2))
    with read_ledger(path) as view:
        assert view.accepted(CHANNEL) == voucher(2)
        assert view.receipts_root(CHANNEL) == merkle_root([receipt(1).leaf(), receipt(2).leaf()])


async def test_a_disk_that_is_full_from_the_start(path: Path, disk: Disk) -> None:
    disk.full = True
    with pytest.raises(ResourceError, match="is full"):
        async with open_ledger(path):
            pytest.fail("the ledger was opened")
    disk.full = False
    async with open_ledger(path) as ledger:
        assert await ledger.accept_voucher(voucher(1))


def run_child(expression: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; from tests.swarm import test_ledger as t; t.{expression}", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def write_until_killed(path: str, rounds: str) -> None:
    """Fork ``rounds`` writers, one after the other; each goes on where the last one was killed."""
    for number in range(int(rounds)):
        child = os.fork()
        if not child:
            trio.run(_write_on, Path(path), number)
        os.waitpid(child, 0)
        print("gone", flush=True)
        sys.stdin.readline()  # the next one starts when this one's work was looked at


async def _write_on(path: Path, number: int) -> None:
    async with open_ledger(path) as ledger:
        print("pid", os.getpid(), flush=True)
        async with trio.open_nursery() as nursery:
            for lane in range(3):
                nursery.start_soon(_write_lane, ledger, number, lane)


async def _write_lane(ledger: Ledger, number: int, lane: int) -> None:
    for step in itertools.count(1):
        mark = (number * 1_000_000 + step) * 3 + lane
        if mark % 2:
            await ledger.accept_voucher(voucher(mark))
            print("voucher", mark, flush=True)
        else:
            await record(ledger, receipt(mark))
            print("receipt", mark, flush=True)


def test_kill_9_loses_nothing_that_was_acknowledged(path: Path) -> None:
    kill_again_and_again(path, 10)


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_acknowledged(path: Path) -> None:
    kill_again_and_again(path, 50)


def kill_again_and_again(path: Path, kills: int) -> None:
    seeded = random.Random(9)
    highest, receipts = 0, set()
    with run_child("write_until_killed(*sys.argv[1:])", str(path), str(kills)) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(kills):
            pid = int(writer.stdout.readline().split()[1])
            left = seeded.randrange(1, 40)
            for line in writer.stdout:
                if line == "gone\n":
                    break
                kind, mark = line.split()
                if kind == "voucher":
                    highest = max(highest, int(mark))
                else:
                    receipts.add(int(mark))
                left -= 1
                if left == 0:
                    os.kill(pid, signal.SIGKILL)
            with read_ledger(path) as view:
                accepted = view.accepted(CHANNEL)
                stored = [one.receipt for one in view.receipts(CHANNEL)]
                assert accepted is None or accepted.voucher.cumulative >= highest
                assert receipts <= {int.from_bytes(one.call_id, "big") for one in stored}
                assert view.receipts_root(CHANNEL) == merkle_root([one.leaf() for one in stored])
            writer.stdin.write("on\n")
            writer.stdin.flush()
    assert highest > 0
    assert len(receipts) > kills
    assert writer.returncode == 0


# ------------------------------------------------------------------------------------------------ files and others


async def test_the_files_are_their_owners_alone(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o666)
    path.chmod(0o666)
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(1))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert {"ledger.db", "ledger.db-wal", "ledger.db.lock"} <= set(modes)
    assert set(modes.values()) == {0o600}


async def test_others_read_while_one_writes(path: Path) -> None:
    async with open_ledger(path) as ledger:
        with read_ledger(path) as view:
            for amount in range(1, 20):
                await ledger.accept_voucher(voucher(amount))
                assert view.accepted(CHANNEL) == voucher(amount)
        reader = run_child("print_accepted(sys.argv[1])", str(path))
        assert reader.communicate()[0] == "19\n"
        assert await ledger.accept_voucher(voucher(20))


def print_accepted(path: str) -> None:
    with read_ledger(Path(path)) as view:
        accepted = view.accepted(CHANNEL)
        print(accepted and accepted.voucher.cumulative)


async def test_a_reader_reads_but_never_writes(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(1))
    with read_ledger(path) as view:
        assert isinstance(view, LedgerView)
        assert not isinstance(view, Ledger)
        assert view.accepted(CHANNEL) == voucher(1)
        with pytest.raises(apsw.ReadOnlyError):
            view._reader.execute("DELETE FROM channel")


async def test_a_second_writer_is_refused_until_the_first_is_gone(path: Path) -> None:
    async with open_ledger(path) as ledger:
        with pytest.raises(ResourceError, match=r"another process is using .*; stop it or choose"):
            async with open_ledger(path):
                pytest.fail("the ledger was opened twice")
        assert run_child("print_refusal(sys.argv[1])", str(path)).communicate()[0].startswith("another process")
        assert await ledger.accept_voucher(voucher(1))
    assert run_child("print_refusal(sys.argv[1])", str(path)).communicate()[0] == "opened\n"


def print_refusal(path: str, user: int | None = None) -> None:
    async def main() -> None:
        async with open_ledger(Path(path)):
            print("opened")

    if user is not None:
        os.setuid(user)
    try:
        trio.run(main)
    except ResourceError as error:
        print(error)


async def test_a_folder_that_cannot_be_written_is_a_local_fault() -> None:
    # Root may write anywhere, so where the tests run as root the child becomes nobody.
    user = 65534 if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "ledger.db"
        async with open_ledger(path) as ledger:
            await ledger.accept_voucher(voucher(1))
        folder.chmod(0o555)
        try:
            for refused in (path, folder / "new" / "ledger.db"):
                output = run_child(f"print_refusal(sys.argv[1], {user})", str(refused)).communicate()[0]
                assert output == f"cannot write the ledger {refused}; check the permissions of {refused.parent}\n"
        finally:
            folder.chmod(0o755)
        assert sorted(file.name for file in folder.iterdir()) == ["ledger.db", "ledger.db.lock"]
        async with open_ledger(path) as ledger:
            assert ledger.accepted(CHANNEL) == voucher(1)


async def open_and_read(path: Path) -> None:
    async with open_ledger(path) as ledger:
        ledger.channels()


async def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ResourceError, match=f"the ledger {path} is damaged"):
        await open_and_read(path)
    with pytest.raises(ResourceError, match="is damaged"), read_ledger(path):
        pytest.fail("the ledger was opened")
    assert path.read_bytes() == b"not a database at all" * 100


async def test_a_damaged_page_is_named(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await record(ledger, receipt(1))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(ResourceError, match=f"the ledger {path} is damaged"):
        await open_and_read(path)


async def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ResourceError, match="is not a ledger"):
        await open_and_read(path)


async def test_a_newer_version_is_refused_and_an_older_one_migrated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_ledger(path) as ledger:
        await ledger.accept_voucher(voucher(1))
        now = ledger._writer.pragma("user_version")
    from swarm import ledger_schema

    longer = (*ledger_schema.MIGRATIONS, "CREATE TABLE later (x BLOB) STRICT;")
    monkeypatch.setattr("swarm.ledger.MIGRATIONS", longer)
    async with open_ledger(path) as ledger:
        assert ledger._writer.pragma("user_version") == now + 1
        assert ledger.accepted(CHANNEL) == voucher(1)
    monkeypatch.undo()
    with pytest.raises(ResourceError, match="newer version"):
        await open_and_read(path)
    with pytest.raises(ResourceError, match="newer version"), read_ledger(path):
        pytest.fail("the ledger was opened")


def test_a_ledger_that_is_not_there_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(ResourceError, match="there is no ledger at"), read_ledger(path):
        pytest.fail("the ledger was opened")
    assert not path.parent.exists()


async def test_it_runs_with_the_settings_it_names(path: Path) -> None:
    async with open_ledger(path) as ledger:
        found = {name: ledger._writer.pragma(name) for name in PRAGMAS}
    assert found == {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "foreign_keys": 1}
