"""`Swarm` and `AsyncSwarm` as programs use them: plain code, trio, asyncio, uvloop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from client import AsyncSwarm, Chat, Swarm
from client.generate import Node
from client.testing import FakeNode, FakeScript, fake_model
from swarm.errors import ClosedError, SwarmError, UnknownModelError, UnreachableError, UsageError
from tests.client.tokenizers_here import demo_objects

MODEL = fake_model(demo_objects())
TEXT = "    return n\n"
PATIENCE = 10  # seconds until a test that hangs fails
CHAT = [{"role": "user", "content": "Why?"}]


def _asyncio(main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    asyncio.run(run())


def _uvloop(main: Callable[[], Awaitable[None]]) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


LOOPS: dict[str, Callable[[Callable[[], Awaitable[None]]], Any]] = {
    "trio": trio.run,
    "asyncio": _asyncio,
    "uvloop": _uvloop,
}
on_every_loop = pytest.mark.parametrize("run", LOOPS.values(), ids=LOOPS)
Run = Callable[[Callable[[], Awaitable[None]]], Any]


def _node(**script: Any) -> FakeNode:
    return FakeNode(MODEL, FakeScript(**({"text": TEXT} | script)))


# ---- plain code ---------------------------------------------------------------------------------------------------


def test_plain_code_generates_streams_and_chats() -> None:
    node = _node()
    with Swarm(open_node=node.open) as swarm:
        assert node.opened == 1
        reply = swarm.generate("demo", "def f(n):", max_tokens=64)
        assert (reply.text, reply.finish_reason) == (TEXT, "stop")
        assert reply.cost > 0
        assert reply.receipts
        stream = swarm.stream("demo", "def f(n):", stop="n\n")
        assert "".join(delta.text for delta in stream) == "    return "
        assert stream.reply is not None
        assert stream.reply.text == "    return "
        assert next(stream, None) is None
        stream.close()
        assert swarm.chat("demo", CHAT).text == TEXT
        assert "".join(delta.text for delta in swarm.stream("demo", Chat(messages=CHAT))) == TEXT
        assert swarm.model("demo") is MODEL
    assert node.opened == 0
    assert not any(call.cancelled for call in node.calls)


def test_closing_a_plain_stream_stops_the_call() -> None:
    node = _node(endless=True)
    with Swarm(open_node=node.open) as swarm:
        with swarm.stream("demo", "x") as stream:
            next(stream)
        assert node.calls[0].cancelled
        assert list(stream) == []


def test_a_plain_stream_that_is_dropped_stops_the_call() -> None:
    node = _node(endless=True)
    with Swarm(open_node=node.open) as swarm:
        for _ in swarm.stream("demo", "x"):
            break
        gc.collect()
        swarm.generate("demo", "x", max_tokens=1)  # a round trip through the thread
        assert node.calls[0].cancelled


def test_one_swarm_serves_many_threads() -> None:
    node = _node()
    texts: list[str] = []
    with Swarm(open_node=node.open) as swarm:
        threads = [threading.Thread(target=lambda: texts.append(swarm.generate("demo", "x").text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == [TEXT] * 8


def test_errors_keep_their_type_and_what_they_know() -> None:
    with Swarm(open_node=_node().open) as swarm:
        with pytest.raises(UnknownModelError, match="nobody publishes other"):
            swarm.generate("other", "x")
        with pytest.raises(UnknownModelError):
            next(swarm.stream("other", "x"))
        with pytest.raises(UsageError, match="temperature"):
            swarm.stream("demo", "x", temperature=-1)
        with pytest.raises(TypeError, match="tempo"):
            swarm.generate("demo", "x", tempo=3)  # type: ignore[call-arg]
    node = _node(ids=(300,))
    with Swarm(open_node=node.open) as swarm, pytest.raises(ClosedError) as caught:
        swarm.generate("demo", "x")
    assert caught.value.call_id == node.calls[0].call_id


def test_a_swarm_that_is_not_open_says_how_to_open_it() -> None:
    swarm = Swarm(open_node=_node().open)
    with pytest.raises(ClosedError, match="with Swarm"):
        swarm.generate("demo", "x")
    with swarm:
        stream = swarm.stream("demo", "x")
        next(stream)
    with pytest.raises(ClosedError):
        next(stream)
    with swarm:  # again
        assert swarm.generate("demo", "x").text == TEXT


@asynccontextmanager
async def _nobody() -> AsyncIterator[Node]:
    raise UnreachableError("no bootstrap node answers")
    yield


def test_a_swarm_that_cannot_be_joined_says_why() -> None:
    with pytest.raises(UnreachableError, match="no bootstrap"), Swarm(open_node=_nobody):
        raise AssertionError("it is not open")


def test_an_interrupt_cancels_the_call() -> None:
    node = _node(hang=True)
    main = threading.get_ident()

    def interrupt() -> None:
        if node.hanging.wait(PATIENCE):
            signal.pthread_kill(main, signal.SIGINT)

    with Swarm(open_node=node.open) as swarm:
        for streaming in (False, True):
            node.hanging.clear()
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                _ = list(swarm.stream("demo", "x")) if streaming else swarm.generate("demo", "x")
            assert node.calls[-1].cancelled
            thread.join()


# ---- every loop ---------------------------------------------------------------------------------------------------


@on_every_loop
def test_async_code_generates_streams_and_chats(run: Run) -> None:
    node = _node()

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm:
            assert (await swarm.generate("demo", "x")).text == TEXT
            assert (await swarm.chat("demo", CHAT)).text == TEXT
            assert await swarm.model("demo") is MODEL
            stream = swarm.stream("demo", "x")
            assert "".join([delta.text async for delta in stream]) == TEXT
            assert stream.reply is not None
            assert stream.reply.text == TEXT
            assert [delta async for delta in stream] == []
            await stream.aclose()

    run(main)
    assert node.opened == 0
    assert not any(call.cancelled for call in node.calls)


@on_every_loop
def test_closing_an_async_stream_stops_the_call(run: Run) -> None:
    node = _node(endless=True)

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm:
            async with aclosing(swarm.stream("demo", "x")) as stream:
                async for _ in stream:
                    break
            assert node.calls[0].cancelled
            async with swarm.stream("demo", "x") as other:
                await anext(other)
            assert node.calls[1].cancelled

    run(main)


@on_every_loop
def test_an_async_stream_that_is_dropped_stops_the_call(run: Run) -> None:
    node = _node(endless=True)

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm:
            async for _ in swarm.stream("demo", "x"):
                break
            gc.collect()
            await swarm.generate("demo", "x", max_tokens=1)
            assert node.calls[0].cancelled

    run(main)


@on_every_loop
def test_a_cancelled_scope_cancels_the_call(run: Run) -> None:
    """With anyio's scopes, whose cancellation comes again and again, on every loop."""
    node = _node(hang=True)

    async def consume(swarm: AsyncSwarm, streaming: bool) -> None:
        if streaming:
            async for _ in swarm.stream("demo", "x"):
                pass
        else:
            await swarm.generate("demo", "x")

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm:
            for streaming in (False, True):
                async with anyio.create_task_group() as group:
                    node.hanging.clear()
                    group.start_soon(consume, swarm, streaming)
                    assert await anyio.to_thread.run_sync(node.hanging.wait, PATIENCE)
                    group.cancel_scope.cancel()
                assert node.calls[-1].cancelled, "the call is over when the task is"

    run(main)


def test_a_cancelled_asyncio_task_cancels_the_call() -> None:
    node = _node(hang=True)

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm:
            task = asyncio.create_task(swarm.generate("demo", "x"))
            assert await asyncio.to_thread(node.hanging.wait, PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert node.calls[0].cancelled

    asyncio.run(main())


@on_every_loop
def test_errors_come_out_as_themselves(run: Run) -> None:
    async def main() -> None:
        async with AsyncSwarm(open_node=_node(error=UnreachableError("gone")).open) as swarm:
            with pytest.raises(UnreachableError, match="gone"):
                await swarm.generate("demo", "x")
            with pytest.raises(UnreachableError, match="gone"):
                async for _ in swarm.stream("demo", "x"):
                    pass
            with pytest.raises(UnknownModelError):
                await swarm.generate("other", "x")
        with pytest.raises(ClosedError, match="async with"):
            swarm.stream("demo", "x")
        with pytest.raises(UnreachableError, match="no bootstrap"):
            async with AsyncSwarm(open_node=_nobody):
                raise AssertionError("it is not open")
        with pytest.raises(KeyError, match="mine"):
            async with AsyncSwarm(open_node=_node().open):
                raise KeyError("mine")

    run(main)


@on_every_loop
def test_many_streams_at_once(run: Run) -> None:
    node = _node()
    texts: list[str] = []

    async def consume(swarm: AsyncSwarm) -> None:
        texts.append("".join([delta.text async for delta in swarm.stream("demo", "x")]))

    async def main() -> None:
        async with AsyncSwarm(open_node=node.open) as swarm, anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(consume, swarm)

    run(main)
    assert texts == [TEXT] * 10


# ---- what both are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate", "chat", "stream", "model"])
def test_the_twins_take_the_same_arguments(name: str) -> None:
    plain, other = (inspect.signature(getattr(kind, name)).parameters for kind in (Swarm, AsyncSwarm))
    assert plain == other


def test_settings_come_from_the_home_unless_given(tmp_path: Path) -> None:
    (tmp_path / "swarm.toml").write_text('bootstrap = ["nonsense"]\n')
    with pytest.raises(UsageError, match="nonsense"), Swarm(home=tmp_path):
        raise AssertionError("it is not open")
    with pytest.raises(UsageError, match="HOST:PORT"), Swarm(home=tmp_path, bootstrap=["elsewhere"]):
        raise AssertionError("it is not open")


def test_a_chain_needs_its_contract(tmp_path: Path) -> None:
    with (
        pytest.raises(SwarmError, match="contract"),
        Swarm(home=tmp_path, bootstrap=["127.0.0.1:1"], chain="http://127.0.0.1:1"),
    ):
        raise AssertionError("it is not open")


def test_importing_it_brings_in_nothing_heavy() -> None:
    heavy = ("torch", "libtorrent", "web3", "tokenizers", "jinja2", "transformers", "numpy", "cryptography", "apsw")
    code = (
        f"import sys; from client import Swarm, AsyncSwarm; print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_not_there_is_an_attribute_error() -> None:
    import client

    assert set(client.__all__) <= {name for names in client._HOMES.values() for name in names}
    with pytest.raises(AttributeError, match="nothing"):
        _ = client.nothing
