"""What Ctrl-C, a terminal that closes and SIGTERM do to a command: it ends with code 130 and says nothing.

Until a command has something to close they end the process at once: a `KeyboardInterrupt` that arises inside an import
is at the mercy of the library that is being imported, and some go on without it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import trio

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended

T = TypeVar("T")


def leave_at_once() -> None:
    """From now on an interrupt ends the process, in whatever it does."""
    for number in _signals():
        signal.signal(number, _leave)


def close_first() -> None:
    """From now on an interrupt raises `KeyboardInterrupt`, so that everything is closed on the way out."""
    for number in _signals():
        signal.signal(number, signal.default_int_handler)


def run_closing(function: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, where an interrupt cancels ``function``, and raises `KeyboardInterrupt` when all is closed.

    So it arrives where code waits, and never between two steps of it. A second interrupt does not wait any longer.
    """
    import trio

    from swarm.nurseries import open_nursery

    async def main() -> T:
        results: list[T] = []
        work = trio.CancelScope()
        try:
            with trio.open_signal_receiver(*_signals()) as received:
                async with open_nursery() as nursery:
                    nursery.start_soon(_watch, received, work)
                    with work:
                        results.append(await function())
                    nursery.cancel_scope.cancel()
        finally:
            if work.cancel_called:  # whatever went wrong on the way out
                raise KeyboardInterrupt
        return results[0]

    return trio.run(main)


async def _watch(received: AsyncIterator[int], work: trio.CancelScope) -> None:
    async for _ in received:
        if work.cancel_called:
            os._exit(INTERRUPTED)
        work.cancel()


def is_interrupt(error: BaseException) -> bool:
    """Whether an interrupt is what ended it, alone or in a nursery's group."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_interrupt(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def _signals() -> list[signal.Signals]:
    """What ends a command. SIGINT too where a shell ignores it, for a background job; SIGHUP not under nohup."""
    hang_up = os.name == "posix" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hang_up else [])]


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
