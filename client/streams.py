"""A text being generated for somebody who may stop listening at any time.

`TextClient` keeps one nursery beside its node. Each stream is a task in it, so that a consumer needs no block around
its loop, may be in another thread, and may simply drop the stream: the call then ends with its task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from client.generate import Node, Prompt, Reply, TextDelta, TextModel, load_text_model, stream_text
from client.options import GenerateOptions
from swarm.errors import ClosedError
from swarm.ids import ManifestId
from swarm.nurseries import open_nursery

MAX_LOADED = 16  # tokenizers kept; a large one takes some 100 MB

Item = TextDelta | Reply
Send = Callable[[Item], Awaitable[None]]
OpenNode = Callable[[], AbstractAsyncContextManager[Node]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What to generate with which model."""

    model: str
    """PUBLISHER/NAME."""
    prompt: Prompt
    options: GenerateOptions


class TextStream:
    """One generation in progress. Pieces wait for `receive`; nothing is read ahead."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Item](0)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def run(self, produce: Callable[[Send], Awaitable[None]]) -> None:
        """The stream's task: hands over what ``produce`` sends; errors go to the consumer."""
        try:
            with self._scope, self._send:
                await produce(self._send.send)
        except Exception as error:  # noqa: BLE001 - the consumer gets it; the other streams go on
            self._error = error
        finally:
            self._ended.set()

    async def receive(self) -> Item:
        """The next piece, at the end the `Reply`. Cancelling it closes the stream.

        Raises what the generation raised, `ClosedError` once the stream was closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            await self._ended.wait()
        except trio.Cancelled:
            await self.aclose()
            raise
        if self._error is not None:
            raise self._error
        raise ClosedError("this stream is closed; start another")

    def cancel(self) -> None:
        """Stop the work and the bill, without waiting for it."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Stop the work and the bill, and wait until it has stopped."""
        self.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()


class TextClient:
    """Text from a node. Made by `open_text_client`; runs in one trio loop."""

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self.node = node
        self._nursery = nursery
        self._loaded: dict[ManifestId, TextModel] = {}

    async def model(self, reference: str) -> TextModel:
        """The model with its tokenizer, loaded once. Raises what the node and `load_text_model` raise."""
        model = await self.node.model(reference)
        if model.manifest_id not in self._loaded:
            loaded = await load_text_model(model)
            while len(self._loaded) >= MAX_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[model.manifest_id] = loaded
        return self._loaded[model.manifest_id]

    async def generate(self, request: TextRequest) -> Reply:
        """The whole reply at once."""
        text_model = await self.model(request.model)
        async with stream_text(self.node, text_model, request.prompt, request.options) as channel:
            async for item in channel:
                if isinstance(item, Reply):
                    return item
        raise ClosedError("the call ended without a reply; call again")

    def start(self, request: TextRequest) -> TextStream:
        """Begin a stream; finding the model and the workers is part of it, and so are their errors."""
        stream = TextStream()

        async def produce(send: Send) -> None:
            text_model = await self.model(request.model)
            async with stream_text(self.node, text_model, request.prompt, request.options) as channel:
                async for item in channel:
                    await send(item)

        self._nursery.start_soon(stream.run, produce)
        return stream


@asynccontextmanager
async def open_text_client(open_node: OpenNode) -> AsyncIterator[TextClient]:
    """A client on the node that ``open_node`` opens; streams end with the block."""
    async with open_node() as node, open_nursery() as nursery:
        yield TextClient(node, nursery)
        nursery.cancel_scope.cancel()
