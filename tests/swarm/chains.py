"""An embedded chain for tests that block: it runs in a thread of its own, as it would in another process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from swarm.deployment import Terms
from swarm.embedded_chain import POOL, ChainAddress, serve_chain


@contextmanager
def running_chain(close_window: int, *, fee_bps: int = 0) -> Iterator[ChainAddress]:
    """A chain on a free port for the length of the block."""
    started: queue.SimpleQueue[tuple[ChainAddress, Callable[[], None]]] = queue.SimpleQueue()

    terms = Terms(close_window=close_window, fee_bps=fee_bps, pool=POOL)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(lambda task_status: serve_chain(terms=terms, task_status=task_status))
            token = trio.lowlevel.current_trio_token()
            started.put((address, lambda: token.run_sync_soon(nursery.cancel_scope.cancel)))

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    address, stop = started.get(timeout=60)
    try:
        yield address
    finally:
        stop()
        thread.join()
