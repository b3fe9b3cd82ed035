"""A trio loop in a thread: jobs end in their futures, whatever ends them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from client.bridge import TrioThread
from swarm.errors import ClosedError

PATIENCE = 10  # seconds until a test that hangs fails; nothing here waits for time to pass


class Resource:
    """Remembers whether it is open, and which thread it is in."""

    def __init__(self) -> None:
        self.open = False
        self.thread = 0

    @asynccontextmanager
    async def opener(self) -> AsyncIterator[Resource]:
        self.open, self.thread = True, threading.get_ident()
        try:
            yield self
            await trio.lowlevel.checkpoint()  # closing is not cancelled
        finally:
            self.open = False


def _started(resource: Resource) -> TrioThread[Resource]:
    thread = TrioThread(resource.opener)
    thread.start()
    assert thread.opened.result(PATIENCE) is resource
    return thread


async def _answer() -> int:
    await trio.lowlevel.checkpoint()
    return threading.get_ident()


async def _fail() -> None:
    raise KeyError("its own")


def test_jobs_run_beside_the_resource() -> None:
    resource = Resource()
    thread = _started(resource)
    assert thread.submit(_answer).future.result(PATIENCE) == resource.thread != threading.get_ident()
    with pytest.raises(KeyError, match="its own"):
        thread.submit(_fail).future.result(PATIENCE)
    assert resource.open, "one job's error is its own"
    thread.stop()
    thread.ended.result(PATIENCE)
    assert not resource.open


def test_a_cancelled_job_is_over_when_its_future_is_set() -> None:
    thread = _started(Resource())
    began, cleaned = threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            began.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            cleaned.set()

    job = thread.submit(wait)
    assert began.wait(PATIENCE)
    job.cancel()
    with pytest.raises(ClosedError):
        job.future.result(PATIENCE)
    assert cleaned.is_set()
    job.cancel()  # once more is nothing
    thread.stop()
    thread.ended.result(PATIENCE)


def test_stopping_ends_jobs_and_later_ones_are_refused() -> None:
    thread = _started(Resource())
    job = thread.submit(trio.sleep_forever)
    thread.stop()
    thread.ended.result(PATIENCE)
    with pytest.raises(ClosedError):
        job.future.result(PATIENCE)
    with pytest.raises(ClosedError, match="open it again"):
        thread.submit(_answer)
    thread.stop()


def test_a_job_posted_while_it_closes_is_refused() -> None:
    closing, go_on = threading.Event(), threading.Event()

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        closing.set()
        await trio.to_thread.run_sync(go_on.wait, PATIENCE)

    thread = TrioThread(opener)
    thread.start()
    thread.opened.result(PATIENCE)
    thread.stop()
    assert closing.wait(PATIENCE)
    job = thread.submit(_answer)
    with pytest.raises(ClosedError):
        job.future.result(PATIENCE)
    go_on.set()
    thread.ended.result(PATIENCE)


def test_an_opening_that_fails_is_the_openers_error() -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        raise LookupError("no way in")
        yield

    thread = TrioThread(opener)
    thread.start()
    with pytest.raises(LookupError, match="no way in"):
        thread.opened.result(PATIENCE)
    thread.ended.result(PATIENCE)


def test_an_opening_that_hangs_can_be_stopped() -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        await trio.sleep_forever()
        yield

    thread = TrioThread(opener)
    thread.start()
    thread.stop()
    with pytest.raises(ClosedError):
        thread.opened.result(PATIENCE)
    thread.ended.result(PATIENCE)


def test_an_error_of_closing_is_told_at_the_end() -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        raise OSError("disk full")

    thread = TrioThread(opener)
    thread.start()
    thread.opened.result(PATIENCE)
    thread.stop()
    with pytest.raises(OSError, match="disk full"):
        thread.ended.result(PATIENCE)
