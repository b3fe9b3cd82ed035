"""Trio on one side, the one thread that owns the device on the other.

Steps of all sessions wait in one queue, first come, first served. A caller that is cancelled leaves at once: a step
that waits is skipped, one that runs ends in the thread and its result is dropped. The session stays sound either way,
since its next step says from which position it continues.
"""

from __future__ import annotations

import platform
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import outcome
import psutil  # type: ignore[import-untyped]
import torch
import trio

from swarm.errors import BusyError, ClosedError, ResourceError, SwarmError, UsageError
from swarm.messages import Sampling
from worker.kv import RETRY_AFTER_SECONDS, KvCache, KvPool
from worker.model import SpanModel
from worker.runner import Rates, StageRunner, measure, probe_positions
from worker.sampling import Sampler
from worker.stage import Capacity, StageInput, StageOutput

__all__ = ["NativeEngine", "NativeStage", "Rates", "open_engine"]

T = TypeVar("T")

SMALL_SPAN_BYTES: Final = 32 << 20  # weights that stay in a CPU's caches: more threads cost more than they bring


class _Job(Generic[T]):
    """One call on its way to the device thread and back."""

    __slots__ = ("abandoned", "call", "stage", "task")

    def __init__(self, stage: NativeStage, call: Callable[[], T], task: trio.lowlevel.Task) -> None:
        self.stage = stage
        self.call = call
        self.task = task
        self.abandoned = False


class NativeEngine:
    """`worker.stage.Engine` on torch. Made by ``open_engine``; used from its trio thread."""

    def __init__(self, model: SpanModel, *, kv_budget_bytes: int, threads: int | None) -> None:
        self.model = model
        self._pool = KvPool(model.config, budget_bytes=kv_budget_bytes, dtype=model.dtype, device=model.device)
        small = model.device.type == "cpu" and model.weight_bytes <= SMALL_SPAN_BYTES
        self._threads = threads or (1 if small else torch.get_num_threads())
        self._device_name, self._memory_bytes = _describe(model.device)
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._pending = 0
        self._running: NativeStage | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._own_device, name="swarm-device", daemon=True)

    def open_stage(
        self,
        start: int,
        stop: int,
        max_positions: int,
        sampling: Sampling | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> NativeStage:
        """Reserve a stage of layers [start, stop) for one session.

        ``sampling`` is for the stage that ends the model; ``prompt_ids`` only matter to its penalties. Raises BusyError
        when keys and values of ``max_positions`` do not fit, UsageError for a range or settings that cannot be served.
        """
        model = self.model
        if self._closed:
            raise ClosedError("the engine is closed")
        if not model.start <= start < stop <= model.stop:
            raise UsageError(f"stage {start}:{stop} is not within the span {model.start}:{model.stop} of this worker")
        if not 1 <= max_positions <= model.config.context:
            raise UsageError(f"{max_positions} positions; the model's context is {model.config.context}, ask for less")
        if sampling is not None and stop != model.config.layers:
            raise UsageError(f"stage {start}:{stop} does not end the model; sampling belongs to the stage that does")
        sampler = None if sampling is None else Sampler(sampling, model.config.vocabulary, prompt_ids)
        cache = self._pool.lease(stop - start, max_positions)
        return NativeStage(self, cache, StageRunner(model, start, stop, cache, sampler))

    def capacity(self) -> Capacity:
        """A snapshot; costs microseconds."""
        model = self.model
        return Capacity(
            device=model.device.type,
            device_name=self._device_name,
            memory_bytes=self._memory_bytes,
            kv_positions_free=self._pool.positions_free(model.stop - model.start),
            threads=self._threads,
            queue=self._pending,
        )

    async def probe(self) -> Rates:
        """Measure tokens per second of the whole span; takes about a hundred tokens' time of the device.

        Raises BusyError when keys and values for it do not fit.
        """
        model = self.model
        stage = self.open_stage(model.start, model.stop, probe_positions(model))
        try:
            return await self._call(stage, lambda: measure(model, stage.runner))
        finally:
            stage.close()

    async def _call(self, stage: NativeStage, call: Callable[[], T]) -> T:
        if self._closed or stage.closed:
            raise ClosedError("the session's stage is closed")
        job = _Job(stage, call, trio.lowlevel.current_task())
        self._pending += 1
        self._jobs.put(job)

        def leave(_: Callable[[], object]) -> trio.lowlevel.Abort:
            job.abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(leave)
        return result

    def _deliver(self, job: _Job[Any], result: outcome.Outcome[Any]) -> None:
        """On the trio thread: wake the caller, and free a stage that was closed while its step ran."""
        self._pending -= 1
        if job.stage.closed:
            job.stage.release()
        if not job.abandoned:
            trio.lowlevel.reschedule(job.task, result)

    def is_running(self, stage: NativeStage) -> bool:
        """Whether the device thread may be inside a step of ``stage``."""
        return self._running is stage

    def _own_device(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                self._running = job.stage  # before the look at `closed`: close() looks in the opposite order
                if job.abandoned or job.stage.closed or self._closed:
                    result: outcome.Outcome[Any] = outcome.Error(ClosedError("the session's stage was closed"))
                else:
                    result = outcome.capture(job.call)
                self._running = None
                if isinstance(result, outcome.Error):
                    result = outcome.Error(_typed(result.error))
                self._token.run_sync_soon(self._deliver, job, result)


class NativeStage:
    """`worker.stage.Stage`: layers [start, stop) reserved for one session, until ``close``."""

    def __init__(self, engine: NativeEngine, cache: KvCache, runner: StageRunner) -> None:
        self._engine = engine
        self._cache = cache
        self.runner = runner
        self.closed = False

    @property
    def length(self) -> int:
        """Positions held."""
        return self._cache.length

    async def forward(self, step: StageInput) -> StageOutput:
        """Run one step; steps of one stage run in the order they were asked for.

        Raises ProtocolError for a step that breaks the rules, BusyError when the device is out of memory, ClosedError.
        """
        return await self._engine._call(self, lambda: self.runner.forward(step))

    def truncate(self, position: int) -> None:
        """Forget what follows ``position``; not while a step is under way."""
        if self.closed:
            raise ClosedError("the session's stage is closed")
        self.runner.truncate(position)

    def close(self) -> None:
        """Free keys and values: at once, or as soon as the step that is running ends. Idempotent."""
        self.closed = True
        if not self._engine.is_running(self):
            self.release()

    def release(self) -> None:
        """Give the memory back; for the engine."""
        self._cache.close()


@asynccontextmanager
async def open_engine(
    model: SpanModel, *, kv_budget_bytes: int, threads: int | None = None
) -> AsyncIterator[NativeEngine]:
    """Start the device thread; ends it, after the step it is in, when the block is left.

    ``kv_budget_bytes`` bounds the keys and values of all sessions; ``threads`` is for torch on a CPU: by
    default one for a small span, else all that torch sees.
    """
    engine = NativeEngine(model, kv_budget_bytes=kv_budget_bytes, threads=threads)
    engine._thread.start()
    try:
        yield engine
    finally:
        engine._closed = True
        engine._jobs.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(engine._thread.join)


def _typed(error: BaseException) -> BaseException:
    """Map what torch raises; mistakes of our own stay what they are."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        busy = BusyError("the device ran out of memory; try again later", retry_after=RETRY_AFTER_SECONDS)
        busy.__cause__ = error
        return busy
    if isinstance(error, RuntimeError) and not isinstance(error, SwarmError):
        failed = ResourceError(f"the device failed: {str(error).splitlines()[0]}; restart the worker")
        failed.__cause__ = error
        return failed
    return error


def _describe(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return str(properties.name), int(properties.total_memory)
    return _cpu_name(), int(psutil.virtual_memory().total)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
