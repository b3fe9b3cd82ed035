"""What Ctrl-C, a terminal that closes and SIGTERM do to a command: it ends with code 130 and says nothing.

Until a command has something to close they end the process at once: a `KeyboardInterrupt` that arises inside an import
is at the mercy of the library that is being imported, and some go on without it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended

T = TypeVar("T")


def leave_at_once() -> None:
    """From now on an interrupt ends the process, in whatever it does."""
    _handle(_leave, _leave)


def close_first() -> None:
    """From now on an interrupt raises `KeyboardInterrupt`, so that everything is closed on the way out.

    SIGINT gets Python's own handler, which is the one that trio knows to replace.
    """
    _handle(signal.default_int_handler, _as_interrupt)


def run_closing(function: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, with interrupts that close what is open. Everything heavy should have been imported before."""
    import trio

    close_first()
    try:
        # Elsewhere an interrupt could end a task between its making and its start.
        return trio.run(function, restrict_keyboard_interrupt_to_checkpoints=True)
    finally:
        leave_at_once()


def is_interrupt(error: BaseException) -> bool:
    """Whether an interrupt is what ended it, alone or in a nursery's group."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_interrupt(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def _handle(
    interrupt: Callable[[int, FrameType | None], object], end: Callable[[int, FrameType | None], object]
) -> None:
    # A shell starts background jobs with SIGINT ignored; then neither signal would reach the command.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, end)
    if os.name == "posix" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, end)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
