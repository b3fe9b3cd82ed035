"""A trio loop in a thread of its own, for callers that have another loop or none.

The loop is `TrioThread.run`: it opens one resource, runs jobs in a nursery beside it, and closes both when told. A
`Job` ends in its future whatever happens, also when it is cancelled, so that whoever waits for it knows that nothing
of it is left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio

from swarm.errors import ClosedError
from swarm.nurseries import open_nursery

T = TypeVar("T")
V = TypeVar("V")


class Job(Generic[T]):
    """One function running in the thread."""

    def __init__(self, post: Callable[[Callable[[], object]], None], function: Callable[[], Awaitable[T]]) -> None:
        self.future: Future[T] = Future()
        """Its result or error; `ClosedError` if it was cancelled."""
        self.future.set_running_or_notify_cancel()  # cancelling is `cancel`'s business, which waits for the end
        self._post = post
        self._function = function
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Cancel it, from any thread. The future is set when it has ended."""
        with contextlib.suppress(ClosedError):  # then it has ended
            self._post(self._scope.cancel)

    async def run(self) -> None:
        """The job's task."""
        try:
            with self._scope:
                self.future.set_result(await self._function())
        except Exception as error:  # noqa: BLE001 - whoever waits for the job gets it
            self.future.set_exception(error)
        finally:
            if not self.future.done():
                self.refuse()

    def refuse(self) -> None:
        """End it as one that can no longer run."""
        self.future.set_exception(ClosedError("the swarm was closed while this was under way; open it again"))


class TrioThread(Generic[V]):
    """A resource, opened in a trio loop in a thread of its own, and functions that run beside it there."""

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[V]]) -> None:
        self.opened: Future[V] = Future()
        """The resource, or what opening it raised."""
        self.ended: Future[None] = Future()
        """Set when the thread has closed everything, with the error of closing if there was one."""
        self._opener = opener
        self._scope = trio.CancelScope()
        self._stopping = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._running = threading.Event()

    def start(self) -> None:
        """Start the thread; it opens the resource and sets `opened`."""
        threading.Thread(target=self._run, name="swarm", daemon=True).start()
        self._running.wait()

    def submit(self, function: Callable[[], Awaitable[T]]) -> Job[T]:
        """Run ``function`` in the thread. Raises `ClosedError` when it has ended."""
        job = Job(self.post, function)
        self.post(lambda: self._spawn(job))
        return job

    def stop(self) -> None:
        """Cancel all jobs and close the resource; an opening that is still under way is cancelled. See `ended`."""
        with contextlib.suppress(ClosedError):
            self.post(self._stop)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001 - the thread's end: whoever opened it gets it
            self._end(error)
        else:
            self._end(None)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._running.set()
        with self._scope:
            async with self._opener() as value, open_nursery() as nursery:
                self._nursery = nursery
                self.opened.set_result(value)
                try:
                    await self._stopping.wait()
                    nursery.cancel_scope.cancel()
                finally:
                    self._nursery = None

    def _end(self, error: BaseException | None) -> None:
        self._running.set()
        if not self.opened.done():
            self.opened.set_exception(error or ClosedError("closed before it was open"))
            error = None
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    def post(self, function: Callable[[], object]) -> None:
        try:
            if self._token is None:
                raise ClosedError("the swarm is not open; use it inside its with block")
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise ClosedError("the swarm is closed; open it again") from None

    def _spawn(self, job: Job[T]) -> None:
        if self._nursery is None:
            job.refuse()
        else:
            self._nursery.start_soon(job.run)

    def _stop(self) -> None:
        if self.opened.done():
            self._stopping.set()
        else:
            self._scope.cancel()
