"""`Swarm` and `AsyncSwarm`: the public face, one for plain code, one for trio, asyncio and uvloop.

Both are thin around `client.streams.TextClient`. On trio it runs in the caller's loop; for everybody else in one
thread (`client.bridge`), and cancellation crosses over: a cancelled task or an interrupted wait cancels the work
there, and goes on when that has ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack

import trio

from client.bridge import Job, TrioThread
from client.generate import Chat, Node, Prompt, Reply, TextDelta
from client.options import GenerateOptions, Options
from client.streams import OpenNode, TextClient, TextRequest, TextStream, open_text_client
from swarm.errors import ClosedError

if TYPE_CHECKING:
    from client.node import Model

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class _Settings:
    """Where the swarm is, as both faces are told it."""

    def __init__(
        self,
        *,
        bootstrap: Sequence[str] | None = None,
        home: Path | str | None = None,
        chain: str | None = None,
        contract: str | None = None,
        open_node: OpenNode | None = None,
    ) -> None:
        """``bootstrap``: addresses (``host:port``) to join through. ``home``: the folder with keys and ledger.
        ``chain``, ``contract``: JSON-RPC URL and settlement contract that calls are paid on. What is not given comes
        from ``swarm.toml`` in the home and from ``SWARM_*``. ``open_node`` takes the place of all of them, for tests
        (`client.testing`). Raises nothing before it is opened."""
        self._bootstrap = bootstrap
        self._home = home
        self._chain = chain
        self._contract = contract
        self._open_node = open_node

    def _opener(self) -> AbstractAsyncContextManager[TextClient]:
        return open_text_client(self._open_node or self._open_configured)

    @asynccontextmanager
    async def _open_configured(self) -> AsyncIterator[Node]:
        from client.node import ClientConfig, open_client  # what finds and pays workers: not needed before
        from swarm.config import Home, Settings

        home = Home.find(None if self._home is None else Path(self._home))
        settings = await trio.to_thread.run_sync(Settings.load, home)
        settings = settings.override(
            bootstrap=None if self._bootstrap is None else tuple(self._bootstrap),
            chain_rpc=self._chain,
            chain_contract=self._contract,
        )
        config = ClientConfig(
            home=home.path,
            bootstrap=settings.bootstrap_addresses,
            chain_rpc=settings.chain_rpc or None,
            contract=settings.contract,
        )
        async with open_client(config) as node:
            yield node


# ---- plain code ---------------------------------------------------------------------------------------------------


class Stream:
    """A text being generated: an iterator of `TextDelta`. Closing or dropping it stops the work and the bill."""

    def __init__(self, thread: TrioThread[TextClient], client: TextClient, request: TextRequest) -> None:
        self.reply: Reply | None = None
        """The whole reply, once the iteration has ended."""
        self._thread = thread
        self._client = client
        self._request = request
        self._stream: TextStream | None = None
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextDelta:
        if self.reply is not None or self._closed:
            raise StopIteration
        try:
            item = _wait(self._thread.submit(self._next))
        except Exception:
            raise
        except BaseException:  # interrupted: a piece may be lost, so there is no going on
            self.close()
            raise
        if isinstance(item, Reply):
            self.reply = item
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the work and the bill, and wait until they have stopped. A stream that has ended is left as it is."""
        self._closed = True
        if self._stream is not None and self.reply is None:
            with contextlib.suppress(ClosedError):
                _wait(self._thread.submit(self._stream.aclose))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._stream is not None and self.reply is None and not self._closed:
            with contextlib.suppress(ClosedError):
                self._thread.post(self._stream.cancel)

    async def _next(self) -> TextDelta | Reply:
        if self._stream is None:
            self._stream = self._client.start(self._request)
        return await self._stream.receive()


class Swarm(_Settings):
    """A client of the swarm, for plain code: ``with Swarm() as swarm: swarm.generate(...)``.

    May be used from several threads at once. Raises what is in `swarm.errors`.
    """

    _thread: TrioThread[TextClient] | None = None

    def generate(self, model: str, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """The reply to ``prompt`` (text, token ids or a `Chat`) by ``model`` (PUBLISHER/NAME)."""
        return self._generate(TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options)))

    def chat(self, model: str, messages: Messages, *, tools: Tools | None = None, **options: Unpack[Options]) -> Reply:
        """The reply to a conversation, written out by the model's own chat template."""
        prompt = Chat(messages=messages, tools=tools)
        return self._generate(TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options)))

    def stream(self, model: str, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """The reply piece by piece; a `Chat` as the prompt streams a conversation."""
        thread, client = self._opened()
        return Stream(thread, client, TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options)))

    def model(self, reference: str) -> Model:
        """The model that ``PUBLISHER/NAME`` means."""
        thread, client = self._opened()
        return _wait(thread.submit(lambda: client.node.model(reference)))

    def __enter__(self) -> Self:
        self._thread = TrioThread(self._opener)
        self._thread.start()
        try:
            self._thread.opened.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the swarm: streams end, keys and ledger are free again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
            thread.ended.result()

    def _generate(self, request: TextRequest) -> Reply:
        thread, client = self._opened()
        return _wait(thread.submit(lambda: client.generate(request)))

    def _opened(self) -> tuple[TrioThread[TextClient], TextClient]:
        if self._thread is None:
            raise ClosedError("the swarm is not open; write: with Swarm() as swarm")
        return self._thread, self._thread.opened.result()


def _wait(job: Job[T]) -> T:
    """A job's result; an interrupt (Ctrl-C) cancels it and goes on when it has ended."""
    try:
        return job.future.result()
    except BaseException:
        if not job.future.done():
            job.cancel()
            concurrent.futures.wait([job.future])
        raise


# ---- async code ---------------------------------------------------------------------------------------------------


class _Loop(Protocol):
    """Where the client runs, seen from the caller's loop."""

    client: TextClient

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run ``function`` where the client is."""

    def post(self, function: Callable[[], object]) -> None:
        """Run ``function`` there soon, from whatever thread; nothing if it has ended."""


class _SameLoop:
    """The caller is on trio: so is the client."""

    def __init__(self, client: TextClient) -> None:
        self.client = client
        self._token = trio.lowlevel.current_trio_token()

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        return await function()

    def post(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)


class _OtherThread:
    """The caller is on asyncio or uvloop: the client is in a thread."""

    def __init__(self, thread: TrioThread[TextClient], client: TextClient) -> None:
        self.client = client
        self._thread = thread

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        job = self._thread.submit(function)
        await _until(job.future, job.cancel)
        return job.future.result()

    def post(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(ClosedError):
            self._thread.post(function)


class AsyncStream:
    """A text being generated: an async iterator of `TextDelta`.

    Closing, dropping or cancelling it stops the work and the bill. ``async with`` closes it in every case.
    """

    def __init__(self, loop: _Loop, request: TextRequest) -> None:
        self.reply: Reply | None = None
        """The whole reply, once the iteration has ended."""
        self._loop = loop
        self._request = request
        self._stream: TextStream | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        if self.reply is not None or self._closed:
            raise StopAsyncIteration
        try:
            item = await self._loop.call(self._next)
        except Exception:
            raise
        except BaseException:  # cancelled: a piece may be lost, so there is no going on
            await self.aclose()
            raise
        if isinstance(item, Reply):
            self.reply = item
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Stop the work and the bill, and wait until they have stopped. A stream that has ended is left as it is."""
        self._closed = True
        if self._stream is not None and self.reply is None:
            with contextlib.suppress(ClosedError):
                await self._loop.call(self._stream.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._stream is not None and self.reply is None and not self._closed:
            self._loop.post(self._stream.cancel)

    async def _next(self) -> TextDelta | Reply:
        if self._stream is None:
            self._stream = self._loop.client.start(self._request)
        return await self._stream.receive()


class AsyncSwarm(_Settings):
    """A client of the swarm, for trio, asyncio and uvloop: ``async with AsyncSwarm() as swarm: ...``.

    What `Swarm` does, with ``await``. Cancelling a call, with the caller's own means, ends its work and its bill.
    """

    _loop: _Loop | None = None
    _stack: AsyncExitStack | None = None

    async def generate(self, model: str, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """The reply to ``prompt`` (text, token ids or a `Chat`) by ``model`` (PUBLISHER/NAME)."""
        return await self._generate(TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options)))

    async def chat(
        self, model: str, messages: Messages, *, tools: Tools | None = None, **options: Unpack[Options]
    ) -> Reply:
        """The reply to a conversation, written out by the model's own chat template."""
        prompt = Chat(messages=messages, tools=tools)
        return await self._generate(TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options)))

    def stream(self, model: str, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """The reply piece by piece; a `Chat` as the prompt streams a conversation."""
        request = TextRequest(model=model, prompt=prompt, options=GenerateOptions(**options))
        return AsyncStream(self._opened(), request)

    async def model(self, reference: str) -> Model:
        """The model that ``PUBLISHER/NAME`` means."""
        loop = self._opened()
        return await loop.call(lambda: loop.client.node.model(reference))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if trio.lowlevel.in_trio_task():
                self._loop = _SameLoop(await stack.enter_async_context(self._opener()))
            else:
                self._loop = await stack.enter_async_context(_open_thread(self._opener))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack, self._loop = self._stack, None, None
        if stack is not None:
            await stack.__aexit__(kind, error, traceback)

    async def _generate(self, request: TextRequest) -> Reply:
        loop = self._opened()
        return await loop.call(lambda: loop.client.generate(request))

    def _opened(self) -> _Loop:
        if self._loop is None:
            raise ClosedError("the swarm is not open; write: async with AsyncSwarm() as swarm")
        return self._loop


@asynccontextmanager
async def _open_thread(opener: Callable[[], AbstractAsyncContextManager[TextClient]]) -> AsyncIterator[_OtherThread]:
    """The client in a thread, for a caller on asyncio."""
    thread = TrioThread(opener)
    thread.start()
    try:
        await _until(thread.opened, thread.stop)
        yield _OtherThread(thread, thread.opened.result())
    finally:
        thread.stop()
        await _until(thread.ended, lambda: None)  # it ends by itself
    thread.ended.result()


async def _until(future: concurrent.futures.Future[T], cancel: Callable[[], None]) -> None:
    """Wait, on asyncio, until ``future`` is set; when cancelled, call ``cancel`` and still wait for it."""
    import anyio

    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    try:
        await done.wait()
    except asyncio.CancelledError:
        cancel()
        with anyio.CancelScope(shield=True):  # anyio cancels again and again until the task has ended
            await done.wait()
        raise
