"""One stage of one session: a step's bytes in, a step's bytes or a drawn token out. No trio, no threads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from swarm.errors import ProtocolError
from worker.config import DtypeName
from worker.kv import KvCache
from worker.model import SpanModel
from worker.sampling import Sampler
from worker.stage import Draw, StageInput, StageOutput

MAX_STEP_POSITIONS: Final = 8192  # a larger chunk holds the device for seconds and its scores fill the memory

_PROBE_PREFILL: Final = 64  # positions; enough to leave the one-token regime, short on a slow CPU
_PROBE_DECODE: Final = 8

_ITEM_BYTES: Final[dict[DtypeName, int]] = {"F32": 4, "BF16": 2, "F16": 2}
_EXPONENTS: Final[dict[DtypeName, int]] = {"BF16": 0x7F80, "F16": 0x7C00}  # all ones: infinity or not a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Measured tokens per second of the whole span, one session."""

    decode: float
    prefill: float


class StageRunner:
    """Layers [start, stop) of a span for one session. Belongs to the thread that owns the device."""

    def __init__(self, model: SpanModel, start: int, stop: int, cache: KvCache, sampler: Sampler | None) -> None:
        self._model = model
        self._start = start
        self._stop = stop
        self._cache = cache
        self._sampler = sampler
        self._first = start == 0
        self._last = stop == model.config.layers

    @property
    def length(self) -> int:
        """Positions held."""
        return self._cache.length

    def forward(self, step: StageInput) -> StageOutput:
        """Run one step under ``torch.inference_mode``.

        A position that was passed truncates to it. Raises ProtocolError for input that breaks the rules, before any
        state changes.
        """
        model = self._model
        x = self._enter(step)
        x = model.run(x, self._cache, self._start, self._stop, step.position)
        if not self._last:
            return StageOutput(hidden=encode(x, model.wire_dtype))
        if self._sampler is None:
            return StageOutput()
        if step.ids is not None:
            self._sampler.observe(step.position, step.ids)
        if not step.sample:
            return StageOutput()
        logits = model.logits(x[-1:])[0]
        if self._sampler.plain:
            token = int(logits.argmax())
            if not np.isfinite(float(logits[token])):
                raise ProtocolError("the activations overflow at the last stage; open a new session elsewhere")
            return StageOutput(draw=Draw(token))
        numbers: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return StageOutput(draw=self._sampler.draw(numbers, step.position + step.count))

    def truncate(self, position: int) -> None:
        """Forget what follows ``position``."""
        self._cache.truncate(position)

    def _enter(self, step: StageInput) -> torch.Tensor:
        """Check a step and turn its input into [count, hidden] of the model's dtype."""
        if not 1 <= step.count <= MAX_STEP_POSITIONS:
            raise ProtocolError(f"a step has {step.count} positions; send 1 to {MAX_STEP_POSITIONS}")
        if not 0 <= step.position <= self._cache.length:
            raise ProtocolError(f"position {step.position} is ahead of the {self._cache.length} held; replay the gap")
        if step.position + step.count > self._cache.positions:
            raise ProtocolError(f"a step beyond the {self._cache.positions} positions reserved; open a new session")
        if step.sample and (self._sampler is None or not self._last):
            raise ProtocolError("this stage does not draw tokens; ask the stage that ends the model")
        if self._first:
            return self._enter_ids(step)
        model = self._model
        if step.hidden is None or step.ids is not None:
            raise ProtocolError(f"a stage from layer {self._start} takes activations, not token ids")
        expected = step.count * model.config.hidden * _ITEM_BYTES[model.wire_dtype]
        if len(step.hidden) != expected:
            raise ProtocolError(f"activations of {len(step.hidden)} bytes; {step.count} positions take {expected}")
        return decode(step.hidden, model.wire_dtype, model.config.hidden).to(model.device, model.dtype)

    def _enter_ids(self, step: StageInput) -> torch.Tensor:
        if step.ids is None or step.hidden is not None:
            raise ProtocolError("a stage from layer 0 takes token ids, not activations")
        if len(step.ids) != step.count:
            raise ProtocolError(f"{len(step.ids)} token ids for a step of {step.count} positions")
        vocabulary = self._model.config.vocabulary
        if min(step.ids) < 0 or max(step.ids) >= vocabulary:
            raise ProtocolError(f"a token id lies outside the vocabulary of {vocabulary}")
        return self._model.embed(torch.tensor(step.ids, dtype=torch.int64, device=self._model.device))


def encode(x: torch.Tensor, dtype: DtypeName) -> bytes:
    """[count, hidden] activations as raw little-endian bytes of the wire dtype."""
    if dtype == "F32":
        return x.float().cpu().numpy().tobytes()
    return x.to(torch.bfloat16 if dtype == "BF16" else torch.float16).view(torch.int16).cpu().numpy().tobytes()


def decode(data: bytes | memoryview, dtype: DtypeName, hidden: int) -> torch.Tensor:
    """Raw activations as a tensor of its own memory; raises ProtocolError when a value is infinite or not a number."""
    if dtype == "F32":
        floats = np.frombuffer(data, "<f4").reshape(-1, hidden).copy()
        finite = bool(np.isfinite(floats).all())
        tensor = torch.from_numpy(floats)
    else:
        words = np.frombuffer(data, "<i2").reshape(-1, hidden).copy()
        exponent = _EXPONENTS[dtype]
        finite = not bool(((words & exponent) == exponent).any())
        tensor = torch.from_numpy(words).view(torch.bfloat16 if dtype == "BF16" else torch.float16)
    if not finite:
        raise ProtocolError("the activations hold values that are not finite; the stage before is at fault")
    return tensor


def probe_positions(model: SpanModel) -> int:
    """Positions that ``measure`` needs."""
    return min(_PROBE_PREFILL + _PROBE_DECODE, model.config.context)


def measure(model: SpanModel, runner: StageRunner) -> Rates:
    """Run a short prefill and some decode steps of the whole span, twice; the second, warm run counts."""
    stop = probe_positions(model)
    prefill = max(1, stop - _PROBE_DECODE)
    rates = Rates(decode=0.0, prefill=0.0)
    for _ in range(2):
        begun = time.perf_counter()
        runner.forward(_probe_step(model, 0, prefill))
        filled = time.perf_counter()
        for position in range(prefill, stop):
            runner.forward(_probe_step(model, position, 1))
        ended = time.perf_counter()
        rates = Rates(decode=max(1, stop - prefill) / (ended - filled), prefill=prefill / (filled - begun))
    return rates


def _probe_step(model: SpanModel, position: int, count: int) -> StageInput:
    if model.start == 0:
        return StageInput(position=position, count=count, ids=(1 % model.config.vocabulary,) * count)
    values = np.random.Philox(key=position).random_raw(count * model.config.hidden)
    hidden = torch.from_numpy(values.astype(np.float64) * 2.0**-64 - 0.5).view(count, -1)
    return StageInput(position=position, count=count, hidden=encode(hidden.float(), model.wire_dtype))
