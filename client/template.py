"""A model's chat template, rendered in a limited process (`client.template_process`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from swarm.errors import RemoteError, ResourceError, UsageError
from swarm.ids import PeerId
from swarm.nurseries import open_nursery

MAX_TEMPLATE = 64 << 10  # bytes; the longest in use has about 20 KiB
MAX_MESSAGES = 16 << 20  # bytes of messages and tools as JSON; a context holds less
MAX_RENDERED = 4 << 20  # characters of prompt that may come back: a million tokens
MAX_ANSWER = 12 * MAX_RENDERED + 4096  # bytes of JSON for them; a character outside the BMP takes twelve

_PROCESS = Path(__file__).with_name("template_process.py")
_FAULTS = {
    "memory": "needs too much memory",
    "size": "writes more than a prompt may have",
    "template": "does not work",
}

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderLimits:
    """What one rendering may take."""

    memory: int = 256 << 20
    """Bytes of address space, the interpreter included."""
    cpu: int = 3
    """Seconds of processor time, the start of the interpreter included."""
    seconds: float = 20.0
    """Seconds in all, on a machine that does other things too."""


DEFAULT_LIMITS = RenderLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """One template with what it may know of its tokenizer."""

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """Named special tokens, such as ``bos_token``."""
    publisher: PeerId | None = None
    """Who is to blame for a template that does not work."""
    limits: RenderLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        size = len(self.source.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE:
            raise self._blame(f"has {size} bytes, over the limit of {MAX_TEMPLATE}")

    async def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for ``messages``: objects with ``role`` and ``content``.

        Raises `UsageError` for messages that are no JSON or that the template refuses, `RemoteError` naming the
        publisher for a template that does not work within its limits.
        """
        request = self._request(messages, tools, add_generation_prompt)
        try:
            with trio.fail_after(self.limits.seconds):
                returncode, output = await _run_process(request)
        except trio.TooSlowError:
            raise self._blame(f"takes more than {self.limits.seconds:g} s") from None
        except OSError as error:
            raise ResourceError(f"cannot start {sys.executable} to render a template: {error.strerror}") from error
        if output is None:
            raise self._blame(_FAULTS["size"])
        return self._read(returncode, output)

    def _request(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool
    ) -> bytes:
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise UsageError("a chat is one or more messages with role and content; give at least one")
        variables = {
            **self.variables,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        request = {
            "template": self.source,
            "variables": variables,
            "memory": self.limits.memory,
            "cpu": self.limits.cpu,
            "most": MAX_RENDERED,
        }
        try:
            encoded = json.dumps(request, allow_nan=False).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"messages and tools must be plain JSON: {error}") from error
        if len(encoded) > MAX_MESSAGES:
            raise UsageError(f"{len(encoded)} bytes of messages are over the limit of {MAX_MESSAGES}; shorten the chat")
        return encoded

    def _read(self, returncode: int, output: bytes) -> str:
        """The text in what the process answered."""
        if returncode < 0 and not output:
            raise self._blame(f"takes more than {self.limits.cpu} s of processor time or {self.limits.memory} bytes")
        try:
            answer = json.loads(output)
        except (ValueError, RecursionError) as error:
            raise self._blame(f"broke its process (exit code {returncode})") from error
        if not isinstance(answer, dict):
            raise self._blame("answered with something else than text")
        text, message = answer.get("text"), _printable(str(answer.get("message", "")))
        if isinstance(text, str):
            return text
        if answer.get("fault") == "messages":
            raise UsageError(f"the model's chat template refuses these messages: {message}")
        raise self._blame(": ".join(filter(None, (_FAULTS.get(str(answer.get("fault")), "does not work"), message))))

    def _blame(self, what: str) -> RemoteError:
        return RemoteError(
            f"the model's chat template {what}; give a prompt of your own instead of a chat", peer_id=self.publisher
        )


def _printable(text: str) -> str:
    """A stranger's words as part of one line."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:300])


async def _run_process(request: bytes) -> tuple[int, bytes | None]:
    """(exit code, output) of one rendering; the output is None if it is over `MAX_ANSWER`. Killed when cancelled."""
    output = bytearray()
    async with open_nursery() as nursery:
        process = await nursery.start(_start_process)
        nursery.start_soon(_feed, process.stdin, request)
        async for part in process.stdout:
            output += part
            if len(output) > MAX_ANSWER:
                nursery.cancel_scope.cancel()
        await process.wait()
    return process.returncode, None if len(output) > MAX_ANSWER else bytes(output)


async def _start_process(task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        [sys.executable, "-I", "-X", "utf8", str(_PROCESS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},  # nothing of ours is its business
        check=False,
        deliver_cancel=_kill,
        task_status=task_status,
    )


async def _feed(stdin: trio.abc.SendStream, request: bytes) -> None:
    async with stdin:
        try:
            await stdin.send_all(request)
        except trio.BrokenResourceError:
            return  # it ended first; its exit code says why


async def _kill(process: trio.Process) -> None:
    process.kill()
