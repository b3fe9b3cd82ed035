from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.cli.interrupts import INTERRUPTED, is_interrupt, run_closing

ROOT = Path(__file__).parents[3]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# Takes its time to close.
SLOW = """
import trio
from swarm.cli.interrupts import run_closing
async def main():
    try:
        print("ready", flush=True)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            print("closing", flush=True)
            await trio.sleep_forever()
run_closing(main)
"""

# Is busy whenever it is interrupted: nothing may come between two of its steps.
BUSY = """
import os, signal, trio
from swarm.cli.interrupts import run_closing
async def child():
    await trio.sleep_forever()
async def main():
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(child)
            if len(nursery.child_tasks) == 500:
                os.kill(os.getpid(), signal.SIGINT)
        print("whole", flush=True)
try:
    run_closing(main)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

# Swallows an interrupt, as a library may inside its import.
DEAF = """
import signal, sys
from swarm.cli.interrupts import leave_at_once
leave_at_once()
print("ready", flush=True)
while True:
    try:
        signal.pause()
    except BaseException:
        pass
"""

CLOSING = """
import trio
from swarm.cli.interrupts import run_closing
async def main():
    try:
        print("ready", flush=True)
        await trio.sleep_forever()
    finally:
        print("closed", flush=True)
try:
    run_closing(main)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def interrupted(code: str, number: signal.Signals, *prefix: str) -> tuple[int, str, str]:
    """The exit code and what was written after "ready", of a process that gets a signal when it is."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_something_to_close_it_ends_at_once_whatever_runs(number: signal.Signals) -> None:
    assert interrupted(DEAF, number) == (INTERRUPTED, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_afterwards_everything_is_closed_first(number: signal.Signals) -> None:
    assert interrupted(CLOSING, number) == (0, "closed\ninterrupted\n", "")


def test_a_second_interrupt_does_not_wait_any_longer() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in ("ready\n", "closing\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == INTERRUPTED


def test_it_arrives_where_code_waits() -> None:
    done = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\ninterrupted\n", "")


def test_what_it_runs_returns_and_raises_as_it_is() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def give() -> int:
        return 5

    assert run_closing(give) == 5
    with pytest.raises(ZeroDivisionError):
        run_closing(fail)


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    code = CLOSING.replace("await trio.sleep_forever()", "import signal; signal.raise_signal(signal.SIGHUP)")
    done = subprocess.run(
        ["nohup", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "ready\nclosed\n")


def test_an_interrupt_is_found_in_groups() -> None:
    assert is_interrupt(KeyboardInterrupt())
    assert is_interrupt(BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])]))
    assert not is_interrupt(BaseExceptionGroup("", [ValueError()]))
