"""The ledger: vouchers and receipts on disk before anybody is told of them. The one module that imports apsw.

A file in WAL mode with ``synchronous=FULL``. Whoever writes waits in line; the first of the line takes everything
that waits with it into one transaction and one sync, on a thread, and only then does any of them return. Other
processes may read the file meanwhile (`read_ledger`); a second writer is refused by a lock on ``<file>.lock`` that
the operating system drops with the process, however that ends.

Reads see what was acknowledged and cost one lookup by key, so they are plain calls.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import apsw
import trio

from swarm import ledger_rows
from swarm.errors import ClosedError, ResourceError, SwarmError
from swarm.ledger_schema import APPLICATION_ID, MIGRATIONS, Call, ChannelState, StoredReceipt
from swarm.receipts import Channel, Receipt, SignedVoucher

__all__ = ["Call", "ChannelState", "Ledger", "LedgerView", "StoredReceipt", "open_ledger", "read_ledger"]

MAX_GROUP = 256  # writes to one sync: a sync takes milliseconds, and this many rows are written in less
BUSY_MS = 5_000  # how long to wait for a tool that has the file locked, such as a backup

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",  # with normal, a power cut takes acknowledged rows with it
    "fullfsync": "on",  # macOS: a plain fsync stops at the drive's own cache
    "foreign_keys": "on",
}

P = ParamSpec("P")
T = TypeVar("T")


class LedgerView:
    """The reading half. Amounts are in base units of the settlement token."""

    def __init__(self, path: Path, reader: apsw.Connection) -> None:
        self.path = path
        self._reader = reader

    def accepted(self, channel: Channel) -> SignedVoucher | None:
        """The highest voucher taken on this channel (the worker's side)."""
        return self._read(ledger_rows.accepted, channel)

    def issued(self, channel: Channel) -> SignedVoucher | None:
        """The last voucher given on this channel (the client's side)."""
        return self._read(ledger_rows.issued, channel)

    def earned(self, channel: Channel) -> int:
        """The highest cumulative of this channel's receipts; 0 when it has none."""
        return self._read(ledger_rows.earned, channel)

    def settled(self, channel: Channel) -> int:
        """What the contract has paid for this channel in all, as far as it was marked here."""
        return self._read(ledger_rows.settled, channel)

    def channels(self) -> list[ChannelState]:
        """Every channel, in the order in which they were first used."""
        return self._read(ledger_rows.channels)

    def unsettled(self) -> list[tuple[Channel, SignedVoucher, int]]:
        """(channel, highest voucher, earned) of every channel whose voucher promises more than was settled."""
        return [
            (state.channel, state.accepted, state.earned)
            for state in self.channels()
            if state.accepted is not None and state.accepted.voucher.cumulative > state.settled
        ]

    def receipts(self, channel: Channel) -> list[StoredReceipt]:
        """The channel's receipts in the order in which they were recorded: the order of their Merkle leaves."""
        return self._read(ledger_rows.receipts, channel)

    def receipts_root(self, channel: Channel) -> bytes:
        """The Merkle root over the channel's receipts, for its next voucher; O(log n)."""
        return self._read(ledger_rows.receipts_root, channel)

    def calls(self, limit: int = 50) -> list[Call]:
        """The last ``limit`` calls, latest first, each with its receipts in the order of the layers."""
        return self._read(ledger_rows.calls, limit)

    def check(self) -> None:
        """Raise `ResourceError` unless this is a ledger of a version that this program reads."""
        self._read(lambda connection: _version(self.path, connection))

    def _read(self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return query(self._reader, *args, **kwargs)
        except apsw.ConnectionClosedError as error:
            raise ClosedError(f"the ledger {self.path} was closed; open it again") from error
        except apsw.Error as error:
            raise _resource_error(self.path, error) from error


class Ledger(LedgerView):
    """The ledger of one process, open for writing. Made by `open_ledger`; belongs to one trio run."""

    def __init__(self, path: Path, reader: apsw.Connection, writer: apsw.Connection, lock: apsw.Connection) -> None:
        super().__init__(path, reader)
        self._writer = writer
        self._lock = lock
        self._pending: list[_Write[Any]] = []
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._closed = False
        self.commits = 0
        """Transactions, and so syncs, since it was opened."""

    async def accept_voucher(self, signed: SignedVoucher) -> bool:
        """Keep this voucher if it is the highest of its channel; they may arrive in any order.

        Returns whether it is the new highest, after the sync. The caller has checked its signature and the
        allocation. Raises `ResourceError` if it could not be written.
        """
        return await self._write(partial(ledger_rows.accept, signed=signed))

    async def issue_voucher(self, signed: SignedVoucher) -> None:
        """Record a voucher before it is sent; returns after the sync.

        Raises `PaymentError` unless its nonce and its cumulative both rise, `ResourceError` if it could not be
        written. A voucher that was not recorded must not be sent.
        """
        await self._write(partial(ledger_rows.issue, signed=signed))

    async def record_receipt(
        self,
        channel: Channel,
        receipt: Receipt,
        *,
        worker_signature: bytes,
        client_signature: bytes | None = None,
    ) -> None:
        """Keep one receipt and append its leaf to the channel's tree; returns after the sync.

        The same receipt again changes nothing, except that a client signature completes one recorded without it.
        The caller has checked the signatures. Raises `PaymentError` for a receipt of another channel and for a
        different one of the same call, worker and start; `ResourceError` if it could not be written.
        """
        stored = StoredReceipt(receipt=receipt, worker_signature=worker_signature, client_signature=client_signature)
        await self._write(partial(ledger_rows.record, channel=channel, stored=stored))

    async def mark_settled(self, channel: Channel, amount: int, transaction_hash: bytes) -> None:
        """Note that the contract has paid ``amount`` in all for this channel; returns after the sync.

        ``transaction_hash`` is the 32 bytes of the transaction. Marking it again changes nothing.
        """
        await self._write(
            partial(ledger_rows.settle, channel=channel, amount=amount, transaction_hash=transaction_hash)
        )

    async def _write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run ``work`` in the next transaction; return or raise what it did, after the sync."""
        if self._closed:
            raise ClosedError(f"the ledger {self.path} was closed; open it again")
        write = _Write(work)
        self._pending.append(write)
        try:
            # The line is first come, first served, so whoever gets the turn undone is the first that waits.
            async with self._turn:
                if not write.done:
                    group = self._pending[:MAX_GROUP]
                    del self._pending[:MAX_GROUP]
                    # Shielded: the others of the group are not to fail because this caller was cancelled.
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(self._commit, group, limiter=self._limiter)
        finally:
            if write in self._pending:
                self._pending.remove(write)
        return write.outcome()

    def _commit(self, group: list[_Write[Any]]) -> None:
        """One transaction and one sync for the whole group. Runs on the writer's thread."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for write in group:
                write.attempt(self._writer)
            self._writer.execute("COMMIT")
            self.commits += 1
        except apsw.Error as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            for write in group:
                write.error = _resource_error(self.path, error)
                write.error.__cause__ = error
        for write in group:
            write.done = True

    async def _close(self) -> None:
        self._closed = True
        with trio.CancelScope(shield=True):
            async with self._turn:
                await trio.to_thread.run_sync(_close_all, self._reader, self._writer, self._lock)


class _Write(Generic[T]):
    """One write that waits for its transaction, and then its outcome."""

    __slots__ = ("_result", "_work", "done", "error")

    def __init__(self, work: Callable[[apsw.Connection], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self.error: Exception | None = None
        self.done = False

    def attempt(self, connection: apsw.Connection) -> None:
        """Do the work in a savepoint of its own: what one write refuses is not undone for its neighbours.

        A fault of the file (`apsw.Error`) concerns all of them and is not caught here.
        """
        try:
            with connection:
                self._result = [self._work(connection)]
        except apsw.Error:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the task that asked for the write
            self.error = error

    def outcome(self) -> T:
        """Return what the work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


@asynccontextmanager
async def open_ledger(path: Path) -> AsyncIterator[Ledger]:
    """Open the ledger at ``path`` for writing, making it (mode 0600) and its folder if they are not there.

    Raises `ResourceError` if another process writes to it, if it is damaged or of a newer version, or if the disk or
    the permissions do not allow it.
    """
    ledger = await trio.to_thread.run_sync(_open, path)
    try:
        yield ledger
    finally:
        await ledger._close()


@contextmanager
def read_ledger(path: Path) -> Iterator[LedgerView]:
    """Open the ledger at ``path`` for reading; another process may be writing to it. Raises `ResourceError`."""
    if not path.is_file():
        raise ResourceError(f"there is no ledger at {path}; name the folder of the worker or client with --home")
    try:
        reader = _connect(path, apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise _resource_error(path, error) from error
    with closing(reader):
        view = LedgerView(path, reader)
        view.check()
        yield view


def _open(path: Path) -> Ledger:
    opened: list[apsw.Connection] = []
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (lock_path, path):
            _make_private(file)
        opened.append(lock := _connect(lock_path, apsw.SQLITE_OPEN_READWRITE, busy_ms=0))
        lock.execute("BEGIN EXCLUSIVE")  # never ends: the lock goes with the connection
        opened.append(writer := _connect(path, apsw.SQLITE_OPEN_READWRITE))
        for name, setting in PRAGMAS.items():
            writer.pragma(name, setting)
        _migrate(path, writer)
        opened.append(reader := _connect(path, apsw.SQLITE_OPEN_READONLY))
        return Ledger(path, reader, writer, lock)
    except (apsw.Error, OSError, SwarmError) as error:
        _close_all(*opened)
        if isinstance(error, SwarmError):
            raise
        raise _resource_error(path, error) from error


def _make_private(path: Path) -> None:
    """See that the file is there and its owner's alone; SQLite gives the log beside it the same mode."""
    # A file that is there is not opened: closing any descriptor of it would drop this process's locks (POSIX).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _connect(path: Path, flags: int, *, busy_ms: int = BUSY_MS) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(busy_ms)
    return connection


def _close_all(*connections: apsw.Connection) -> None:
    for connection in connections:
        connection.close()


def _version(path: Path, connection: apsw.Connection) -> int:
    """The file's version; 0 for an empty one. Raises `ResourceError` for one that this program cannot read."""
    application = ledger_rows.value(connection, "PRAGMA application_id")
    version = int(ledger_rows.value(connection, "PRAGMA user_version"))
    empty = not ledger_rows.value(connection, "SELECT count(*) FROM sqlite_schema")
    if application != APPLICATION_ID and not (empty and version == 0):
        raise ResourceError(f"{path} is not a ledger; move it away or choose another --home")
    if version > len(MIGRATIONS):
        raise ResourceError(f"{path} was written by a newer version; run: pip install --upgrade swarm-inference")
    return version


def _migrate(path: Path, connection: apsw.Connection) -> None:
    version = _version(path, connection)
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        with connection:
            connection.execute(script)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", number)


def _resource_error(path: Path, error: apsw.Error | OSError) -> ResourceError:
    """The one line for a fault of the file, by what its owner can do about it."""
    match error:
        case apsw.BusyError() | apsw.LockedError():
            text = f"another process is using {path}; stop it or choose another --home"
        case apsw.FullError():
            text = f"the disk under {path} is full; free some space and try again, nothing acknowledged was lost"
        case apsw.CorruptError() | apsw.NotADBError():
            text = f"the ledger {path} is damaged; put back a copy of it, or move it away to begin a new one"
        case apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.CantOpenError() | PermissionError():
            text = f"cannot write the ledger {path}; check the permissions of {path.parent}"
        case _:
            text = f"the ledger {path} cannot be used ({error}); check the disk and the folder, then try again"
    return ResourceError(text)
