"""Processes that a benchmark measures: each reads lines of JSON and answers each with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from swarm.errors import ResourceError

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TIMEOUT = 300.0  # seconds; a slow machine takes its time to load half a gigabyte
STOP_TIMEOUT = 5.0
_READ_SIZE = 1 << 16


class Child:
    """One such process. Made by `open_child`."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log
        self._read = bytearray()

    async def ask(self, question: object) -> dict[str, Any]:
        """Send one line, take one. Raises ResourceError with the end of the process's log when none comes."""
        if self.process.stdin is None or self.process.stdout is None:
            raise ResourceError(f"{self.name} was started without pipes")
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                await self.process.stdin.send_all(json.dumps(question).encode() + b"\n")
                while b"\n" not in self._read:
                    data = await self.process.stdout.receive_some(_READ_SIZE)
                    if not data:
                        raise ResourceError(f"{self.name} ended: {self._last_words()}")
                    self._read += data
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            raise ResourceError(f"{self.name} does not answer: {self._last_words()}") from error
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@asynccontextmanager
async def open_child(name: str, *arguments: str, log: Path, **environment: str) -> AsyncIterator[Child]:
    """Run ``python ARGUMENTS`` in the project's root until the block is left; its stderr goes to ``log``."""
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            (sys.executable, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
    try:
        yield Child(name, process, log)
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(STOP_TIMEOUT) as scope:
                await process.wait()
            if scope.cancelled_caught:
                process.kill()
                await process.wait()


@asynccontextmanager
async def open_children(names: list[str], *arguments: str, folder: Path) -> AsyncIterator[list[Child]]:
    """Several processes of the same command."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_child(name, *arguments, log=folder / f"{name}.log")) for name in names
        ]
