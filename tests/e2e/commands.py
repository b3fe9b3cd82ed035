"""The command line as a user has it: commands as processes, and a whole swarm made of them by hand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from client.bridge import Job, TrioThread
from swarm.cli.roles import Role, Roles, open_roles
from swarm.demo import model_folder

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "swarm")
PATIENCE = 120.0  # seconds for anything here, on a machine that is busy
MARK = "SWARM_TESTS_MARK"
PRICES = ("--price-input", "1000", "--price-output", "3000")


def environment(**given: str) -> dict[str, str]:
    """This process's, without what would steer the command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **given}


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    cwd: Path = ROOT,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """``swarm ARGUMENTS`` to its end."""
    return subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=dict(env or environment()),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def run_all(commands: Sequence[tuple[str | Path, ...]]) -> list[subprocess.CompletedProcess[str]]:
    """Several commands that do not get in each other's way, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arguments: run(*arguments), commands))


def refused(code: int, done: subprocess.CompletedProcess[str], *words: str) -> str:
    """The one line on stderr with which a command was refused; checks that it is one, and that it has these words."""
    lines = done.stderr.splitlines()
    told = [line for line in lines if line.startswith("swarm: ")]
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert len(told) == 1, done.stderr
    assert lines[-1] == told[0], done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in told[0]
    assert len(told[0]) < 400
    for word in words:
        assert word in told[0]
    return told[0]


@dataclass(slots=True)
class Started:
    """A command under way, in a process group of its own, and found again by a mark in its environment."""

    process: subprocess.Popen[str]
    mark: str

    def line(self) -> str:
        """Its next line on stdout; empty when it ended."""
        return _stream(self.process.stdout).readline()

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Its exit code and what else it wrote, after a signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def left(self) -> list[str]:
        """Command lines of processes that it started, itself included, and that are still there."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"{folder.name} {command}")
            except OSError:
                continue  # it ended, or is not ours
        return found


@contextmanager
def started(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Started]:
    """``swarm ARGUMENTS``, killed with everything it started when the block is left."""
    mark = uuid4().hex
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env={**(env or environment()), MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        running = Started(process, mark)
        try:
            yield running
        finally:
            for line in running.left():
                os.kill(int(line.split()[0]), signal.SIGKILL)


def without(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these packages cannot be imported, as if they were not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n")
    return environment(PYTHONPATH=str(folder))


@dataclass(slots=True)
class HandMade:
    """A chain, a publisher and workers that were started one by one, and a client's home."""

    folder: Path
    thread: TrioThread[Roles]
    chain: dict[str, Any] = field(default_factory=dict)
    publisher: dict[str, Any] = field(default_factory=dict)
    workers: list[Role] = field(default_factory=list)

    @property
    def model(self) -> str:
        """PUBLISHER/NAME of the model whose workers ask a price."""
        return str(self.publisher["model"])

    @property
    def join(self) -> tuple[str, str]:
        """How to join."""
        return ("--bootstrap", self.publisher["bootstrap"])

    @property
    def pay(self) -> tuple[str, ...]:
        """How to pay and be paid."""
        return ("--chain", self.chain["rpc_url"], "--contract", self.chain["contract"])

    def home(self, name: str) -> tuple[str, str]:
        """The home of this name."""
        return ("--home", str(self.folder / name))

    def begin(self, name: str, *arguments: str) -> Job[Role]:
        """A role that runs until the end."""
        return self.thread.submit(partial(self.thread.opened.result().start, name, *arguments))

    def begin_work(self, name: str, span: str, *arguments: str, model: str | None = None) -> Job[Role]:
        """A worker."""
        where = (*self.home(name), *self.join, "--span", span, "--threads", "1")
        return self.begin(name, "work", model or self.model, *where, *arguments)

    def work(self, name: str, span: str, *arguments: str, model: str | None = None) -> Role:
        """A worker that serves."""
        return self.begin_work(name, span, *arguments, model=model).future.result()

    def publish(self, name: str, home: str, *arguments: str) -> str:
        """Publish the bundled model under another name by another publisher; PUBLISHER/NAME."""
        join = self.join if self.publisher else ()
        where = (*self.home(home), *join)
        ready = (
            self.begin(home, "publish", str(model_folder()), "--name", name, *where, *arguments).future.result().ready
        )
        if not self.publisher:
            self.publisher = ready
        return str(ready["model"])

    def kill(self, role: Role) -> None:
        """End a role as the system does when memory runs out, and wait until it has ended."""
        os.kill(role.process.pid, signal.SIGKILL)
        self.thread.submit(role.process.wait).future.result()


@contextmanager
def open_hand_made(folder: Path) -> Iterator[HandMade]:
    """A development chain and a publisher of the bundled model; no workers yet."""
    thread = TrioThread(lambda: open_roles(folder))
    thread.start()
    try:
        swarm = HandMade(folder, thread)
        chain = swarm.begin("chain", "chain", "--port", "0", "--close-window", "0")
        swarm.publish("demo", "publisher")
        swarm.chain = chain.future.result().ready
        yield swarm
    finally:
        thread.stop()
        thread.ended.result()


def broken_model(folder: Path) -> Path:
    """A copy of the bundled model to damage."""
    shutil.copytree(model_folder(), folder)
    return folder


def files(folder: Path) -> set[str]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def plain(text: str) -> str:
    """``text`` without colours and other sequences for terminals."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
