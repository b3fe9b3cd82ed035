"""Trio and the device thread: sessions side by side, memory, cancellation, failures."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
import trio
import trio.testing

from swarm.errors import BusyError, ClosedError, ProtocolError, ResourceError, UsageError
from swarm.messages import Sampling
from tests.worker.tiny_models import TinyModel, prompt_of
from worker.engine import NativeEngine, NativeStage, open_engine
from worker.stage import StageInput

Tiny = Callable[[str], TinyModel]
BUDGET = 1 << 22


async def generate(stage: NativeStage, prompt: list[int], count: int) -> list[int]:
    """Greedy or seeded tokens from one stage that holds the whole model."""
    tokens: list[int] = []
    ids, position = tuple(prompt), 0
    for _ in range(count):
        output = await stage.forward(StageInput(position=position, count=len(ids), ids=ids, sample=True))
        assert output.draw is not None
        position += len(ids)
        ids = (output.draw.token,)
        tokens += ids
    return tokens


class Gate:
    """Holds the device thread inside a step until it is opened."""

    def __init__(self, engine: NativeEngine, stage: NativeStage) -> None:
        self.entered, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        self._opened = threading.Event()
        self._engine, self._stage = engine, stage

    def open(self) -> None:
        self._opened.set()

    async def hold(self) -> None:
        def wait() -> None:
            self._token.run_sync_soon(self.entered.set)
            assert self._opened.wait(30)

        await self._engine._call(self._stage, wait)


async def test_sessions_side_by_side_equal_transformers(tiny: Tiny) -> None:
    model = tiny("llama-tied")
    prompts = [prompt_of(length, seed=length) for length in (3, 9, 14)]
    results: dict[int, list[int]] = {}
    async with open_engine(model.span(0, 6), kv_budget_bytes=BUDGET, threads=1) as engine:

        async def session(index: int) -> None:
            stage = engine.open_stage(0, 6, 64, Sampling(), prompts[index])
            results[index] = await generate(stage, prompts[index], 24)
            stage.close()

        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(session, index)
    assert [results[index] for index in range(3)] == [model.greedy(prompt, 24) for prompt in prompts]


async def test_two_stages_in_two_engines_are_one_model(tiny: Tiny) -> None:
    model = tiny("qwen2")
    prompt = prompt_of(10, seed=20)
    async with (
        open_engine(model.span(0, 3), kv_budget_bytes=BUDGET, threads=1) as first,
        open_engine(model.span(2, 4), kv_budget_bytes=BUDGET, threads=1) as second,
    ):
        head = first.open_stage(0, 2, 64)
        tail = second.open_stage(2, 4, 64, Sampling(), prompt)
        tokens: list[int] = []
        ids, position = tuple(prompt), 0
        for _ in range(16):
            middle = await head.forward(StageInput(position=position, count=len(ids), ids=ids))
            step = StageInput(position=position, count=len(ids), hidden=middle.hidden, sample=True)
            output = await tail.forward(step)
            assert output.draw is not None
            position += len(ids)
            ids = (output.draw.token,)
            tokens += ids
        assert (head.length, tail.length) == (position, position)
    assert tokens == model.greedy(prompt, 16)


async def test_memory_is_reserved_and_returned_at_once(tiny: Tiny) -> None:
    span = tiny("qwen2").span(1, 3)
    per_position = 2 * span.config.kv_elements_per_position * 4
    async with open_engine(span, kv_budget_bytes=per_position * 100, threads=1) as engine:
        assert engine.capacity().kv_positions_free == 100
        first = engine.open_stage(1, 3, 60)
        half = engine.open_stage(2, 3, 60)  # one layer takes half
        with pytest.raises(BusyError) as caught:
            engine.open_stage(1, 3, 11)
        assert caught.value.retry_after > 0
        first.close()
        first.close()
        assert engine.capacity().kv_positions_free == 70
        half.close()
        assert engine.capacity().kv_positions_free == 100


@pytest.mark.parametrize(
    ("start", "stop", "positions", "sampling", "words"),
    [
        (0, 2, 10, None, "not within the span"),
        (1, 4, 10, None, "not within the span"),
        (2, 2, 10, None, "not within the span"),
        (1, 3, 257, None, "context is 256"),
        (1, 3, 0, None, "context is 256"),
        (1, 3, 10, Sampling(), "does not end the model"),
    ],
)
async def test_stages_that_cannot_be_served_are_refused(
    tiny: Tiny, start: int, stop: int, positions: int, sampling: Sampling | None, words: str
) -> None:
    async with open_engine(tiny("qwen2").span(1, 3), kv_budget_bytes=BUDGET, threads=1) as engine:
        with pytest.raises(UsageError, match=words):
            engine.open_stage(start, stop, positions, sampling)


async def test_a_cancelled_step_leaves_the_others_and_its_session_sound(tiny: Tiny) -> None:
    model = tiny("qwen2")
    prompt = prompt_of(6, seed=21)
    expected = model.greedy(prompt, 8)
    async with open_engine(model.span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        blocked = engine.open_stage(0, 4, 64, Sampling())
        victim = engine.open_stage(0, 4, 64, Sampling())
        gate = Gate(engine, blocked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.hold)
            await gate.entered.wait()
            with trio.CancelScope() as scope:
                scope.cancel()
                await generate(victim, prompt, 1)  # waits behind the gate, leaves at once
            assert scope.cancelled_caught
            assert engine.capacity().queue == 2
            gate.open()
        assert await generate(victim, prompt, 8) == expected
        assert await generate(blocked, prompt, 8) == expected
        assert engine.capacity().queue == 0


async def test_a_running_step_that_is_cancelled_ends_before_its_memory_is_free(tiny: Tiny) -> None:
    async with open_engine(tiny("qwen2").span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        free = engine.capacity().kv_positions_free
        stage = engine.open_stage(0, 4, 64, Sampling())
        other = engine.open_stage(0, 4, 1, Sampling())
        gate = Gate(engine, stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.hold)
            await gate.entered.wait()
            nursery.cancel_scope.cancel()
        stage.close()
        assert engine.capacity().kv_positions_free == free - 65
        gate.open()
        await other.forward(StageInput(position=0, count=1, ids=(1,)))
        other.close()
        assert engine.capacity().kv_positions_free == free


async def test_closing_a_stage_ends_the_steps_that_wait_for_it(tiny: Tiny) -> None:
    async with open_engine(tiny("qwen2").span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        blocked, stage = engine.open_stage(0, 4, 8), engine.open_stage(0, 4, 8)
        gate = Gate(engine, blocked)

        async def waits() -> None:
            with pytest.raises(ClosedError):
                await stage.forward(StageInput(position=0, count=1, ids=(1,)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.hold)
            await gate.entered.wait()
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            stage.close()
            gate.open()
        with pytest.raises(ClosedError):
            await stage.forward(StageInput(position=0, count=1, ids=(1,)))
        with pytest.raises(ClosedError):
            stage.truncate(0)


async def test_truncation_goes_back(tiny: Tiny) -> None:
    model = tiny("qwen2")
    prompt = prompt_of(6, seed=22)
    async with open_engine(model.span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        stage = engine.open_stage(0, 4, 64, Sampling())
        await generate(stage, prompt_of(20, seed=23), 1)
        stage.truncate(0)
        assert stage.length == 0
        assert await generate(stage, prompt, 8) == model.greedy(prompt, 8)
        with pytest.raises(ProtocolError):
            stage.truncate(60)


@pytest.mark.parametrize(
    ("raised", "mapped"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), BusyError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] can't allocate memory: you tried"), BusyError),
        (RuntimeError("device-side assert\nmore lines"), ResourceError),
        (ProtocolError("as it is"), ProtocolError),
        (KeyError("a mistake of ours"), KeyError),
    ],
    ids=str,
)
async def test_failures_in_the_thread_reach_their_session_only(
    tiny: Tiny, raised: Exception, mapped: type[Exception]
) -> None:
    def fail() -> None:
        raise raised

    async with open_engine(tiny("qwen2").span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        stage, other = engine.open_stage(0, 4, 8), engine.open_stage(0, 4, 8)
        with pytest.raises(mapped) as caught:
            await engine._call(stage, fail)
        assert "\n" not in str(caught.value)
        await other.forward(StageInput(position=0, count=1, ids=(1,)))
        await stage.forward(StageInput(position=0, count=1, ids=(1,)))


async def test_the_thread_ends_with_the_block(tiny: Tiny) -> None:
    before = threading.active_count()
    async with open_engine(tiny("qwen2").span(0, 4), kv_budget_bytes=BUDGET, threads=1) as engine:
        stage = engine.open_stage(0, 4, 8)
        assert "swarm-device" in {thread.name for thread in threading.enumerate()}
    assert "swarm-device" not in {thread.name for thread in threading.enumerate()}
    assert threading.active_count() <= before + 1  # trio keeps a worker thread for a while
    with pytest.raises(ClosedError):
        await stage.forward(StageInput(position=0, count=1, ids=(1,)))
    with pytest.raises(ClosedError):
        engine.open_stage(0, 4, 8)


async def test_steps_that_wait_when_the_engine_ends_are_refused(tiny: Tiny) -> None:
    span = tiny("qwen2").span(0, 4)
    refused = trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_engine(span, kv_budget_bytes=BUDGET, threads=1) as engine:
            blocked, stage = engine.open_stage(0, 4, 8), engine.open_stage(0, 4, 8)
            gate = Gate(engine, blocked)

            async def waits() -> None:
                with pytest.raises(ClosedError):
                    await stage.forward(StageInput(position=0, count=1, ids=(1,)))
                refused.set()

            nursery.start_soon(gate.hold)
            await gate.entered.wait()
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            engine._closed = True
            gate.open()
        await refused.wait()


async def test_capacity_and_probe(tiny: Tiny) -> None:
    async with open_engine(tiny("qwen2").span(1, 3), kv_budget_bytes=BUDGET, threads=1) as engine:
        rates = await engine.probe()
        capacity = engine.capacity()
    assert rates.decode > 0
    assert rates.prefill > 0
    assert (capacity.device, capacity.threads, capacity.queue) == ("cpu", 1, 0)
    assert capacity.device_name
    assert capacity.memory_bytes > 1 << 28
    assert capacity.kv_positions_free == BUDGET // (2 * 2 * 2 * 16 * 4)


def test_a_worker_does_not_import_transformers() -> None:
    code = "import sys, worker.engine; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
