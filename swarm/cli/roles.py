"""Other roles of a swarm as processes of their own, started through the command line as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from swarm.errors import ResourceError

START_TIMEOUT = 60.0  # seconds until a role says that it is ready; torch alone takes several to import
STOP_TIMEOUT = 5.0
MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Role:
    """A running role: its command, what it said when it was ready, and where it logs."""

    command: tuple[str, ...]
    process: trio.Process
    ready: dict[str, Any]
    log: Path


class Roles:
    """The roles started so far. Made by `open_roles`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[trio.Process] = []
        self.started: list[Role] = []

    async def start(self, name: str, *arguments: str) -> Role:
        """Run ``swarm ARGUMENTS --json`` and wait for its line of JSON.

        Raises `ResourceError` with the last line of its log when it ends or says nothing.
        """
        command = (sys.executable, "-m", "swarm", *arguments, "--json")
        log = self._folder / f"{name}.log"
        process = await self.spawn(command, log)
        with trio.move_on_after(START_TIMEOUT):
            line = await read_line(process)
            if line:
                role = Role(("swarm", *arguments), process, json.loads(line), log)
                self.started.append(role)
                return role
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ResourceError(f"{name} did not start: {lines[-1] if lines else 'it said nothing'}; see {log}")

    async def spawn(self, command: tuple[str, ...], log: Path, *, stdin: int = subprocess.DEVNULL) -> trio.Process:
        """Start a process that is ended with the others; its stdout is a pipe."""
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                process_group=0,  # Ctrl-C is for us, who end them in order
            )
        self._processes.append(process)
        return process

    async def stop(self) -> None:
        """End every process, in the reverse order of their start."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        with trio.move_on_after(STOP_TIMEOUT):
            for process in self._processes:
                await process.wait()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                await process.wait()


async def read_line(process: trio.Process) -> str:
    """The process's next line on stdout; "" when it ends without one."""
    line = bytearray()
    if process.stdout is None:
        return ""
    while not line.endswith(b"\n") and len(line) < MAX_LINE:
        data = await process.stdout.receive_some(MAX_LINE)
        if not data:
            break
        line += data
    return line.decode("utf-8", "replace").strip()


@asynccontextmanager
async def open_roles(folder: Path) -> AsyncIterator[Roles]:
    """Roles that end when the block is left, whatever ends it. Their logs go to ``folder``."""
    roles = Roles(folder)
    try:
        yield roles
    finally:
        with trio.CancelScope(shield=True):
            await roles.stop()
