"""Streams in the client's nursery: errors, early ends and cancellation reach the right side."""

from __future__ import annotations

import pytest
import trio

from client.generate import Reply, TextDelta
from client.options import GenerateOptions
from client.streams import TextClient, TextRequest, TextStream, open_text_client
from client.testing import FakeNode, FakeScript, fake_model
from swarm.errors import ClosedError, UnknownModelError, UnreachableError
from tests.client.tokenizers_here import demo_objects

MODEL = fake_model(demo_objects())
REQUEST = TextRequest(model="demo", prompt="x", options=GenerateOptions())


async def _all(stream: TextStream) -> list[TextDelta | Reply]:
    items = [await stream.receive()]
    while not isinstance(items[-1], Reply):
        items.append(await stream.receive())
    return items


async def test_a_stream_ends_with_its_reply() -> None:
    node = FakeNode(MODEL, FakeScript(text="one two"))
    async with open_text_client(node.open) as client:
        *deltas, reply = await _all(client.start(REQUEST))
        assert isinstance(reply, Reply)
        assert reply.text == "one two" == "".join(item.text for item in deltas)
        assert (await client.generate(REQUEST)).text == "one two"
    assert node.opened == 0


async def test_nothing_is_read_ahead() -> None:
    node = FakeNode(MODEL, FakeScript(text="one", endless=True))
    async with open_text_client(node.open) as client:
        stream = client.start(REQUEST)
        await stream.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert len(node.calls[0].sent) <= 3  # one shown, one offered, one asked for
        await stream.aclose()
        assert node.calls[0].cancelled
        with pytest.raises(ClosedError):
            await stream.receive()


async def test_a_cancelled_consumer_ends_the_call_before_it_goes_on() -> None:
    node = FakeNode(MODEL, FakeScript(text="one two", hang=True))
    async with open_text_client(node.open) as client:
        stream = client.start(REQUEST)
        await stream.receive()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_all, stream)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert node.calls[0].cancelled


async def test_an_error_goes_to_its_consumer_and_other_streams_go_on() -> None:
    node = FakeNode(MODEL, FakeScript(text="one two"))
    async with open_text_client(node.open) as client:
        fine = client.start(REQUEST)
        await fine.receive()
        unknown = client.start(TextRequest(model="nothing", prompt="x", options=GenerateOptions()))
        for _ in range(2):
            with pytest.raises(UnknownModelError):
                await unknown.receive()
        node.script = FakeScript(text="one", error=UnreachableError("gone"))
        broken = client.start(REQUEST)
        with pytest.raises(UnreachableError, match="gone"):
            await _all(broken)
        assert isinstance((await _all(fine))[-1], Reply)


async def test_streams_end_with_their_client() -> None:
    node = FakeNode(MODEL, FakeScript(text="one", endless=True))
    async with open_text_client(node.open) as client:
        stream = client.start(REQUEST)
        await stream.receive()
    assert node.calls[0].cancelled
    with pytest.raises(ClosedError):
        await stream.receive()


async def test_many_streams_at_once_do_not_mix() -> None:
    node = FakeNode(MODEL, FakeScript(text="one two three four"))
    replies: list[Reply] = []

    async def consume(client: TextClient) -> None:
        reply = (await _all(client.start(REQUEST)))[-1]
        assert isinstance(reply, Reply)
        replies.append(reply)

    async with open_text_client(node.open) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(consume, client)
    assert {reply.text for reply in replies} == {"one two three four"}
    assert len({reply.call_id for reply in replies}) == 20


async def test_a_tokenizer_is_loaded_once() -> None:
    node = FakeNode(MODEL, FakeScript(text="one"))
    async with open_text_client(node.open) as client:
        assert (await client.model("demo")).tokenizer is (await client.model("demo")).tokenizer


async def test_an_error_of_the_block_comes_out_as_itself() -> None:
    node = FakeNode(MODEL, FakeScript(text="one", endless=True))

    async def block() -> None:
        async with open_text_client(node.open) as client:
            client.start(REQUEST)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await block()
