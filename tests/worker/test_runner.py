"""Steps that break the rules, and activations on the wire."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from swarm.errors import ProtocolError
from swarm.messages import Sampling
from tests.worker.tiny_models import Chain, TinyModel, prompt_of
from worker.config import DtypeName
from worker.kv import KvPool
from worker.runner import (
    MAX_STEP_POSITIONS,
    StageRunner,
    decode,
    encode,
    measure,
    probe_positions,
)
from worker.sampling import Sampler
from worker.stage import StageInput, StageOutput

Tiny = Callable[[str], TinyModel]
HIDDEN = 64


def runner_of(model: TinyModel, start: int, stop: int, sampling: Sampling | None = None) -> StageRunner:
    span = model.span(start, stop)
    pool = KvPool(span.config, budget_bytes=1 << 24, dtype=span.dtype, device=span.device)
    sampler = None if sampling is None else Sampler(sampling, span.config.vocabulary)
    return StageRunner(span, start, stop, pool.lease(stop - start, 32), sampler)


def forward(runner: StageRunner, **fields: Any) -> StageOutput:
    with torch.inference_mode():
        return runner.forward(StageInput(**fields))


def activations(count: int, fill: float = 0.5) -> bytes:
    return np.full((count, HIDDEN), fill, "<f4").tobytes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"position": 0, "count": 0, "ids": ()}, "0 positions"),
        ({"position": 0, "count": MAX_STEP_POSITIONS + 1, "ids": (1,)}, "positions; send"),
        ({"position": 5, "count": 1, "ids": (1,)}, "ahead of the 4"),
        ({"position": -1, "count": 1, "ids": (1,)}, "ahead of the 4"),
        ({"position": 4, "count": 29, "ids": (1,) * 29}, "beyond the 32"),
        ({"position": 4, "count": 2, "ids": (1,)}, "1 token ids"),
        ({"position": 4, "count": 1, "ids": (199,)}, "vocabulary of 199"),
        ({"position": 4, "count": 1, "ids": (-1,)}, "vocabulary of 199"),
        ({"position": 4, "count": 1}, "takes token ids"),
        ({"position": 4, "count": 1, "hidden": activations(1)}, "takes token ids"),
        ({"position": 4, "count": 1, "ids": (1,), "sample": True}, "does not draw"),
    ],
)
def test_first_stage_refuses(tiny: Tiny, fields: dict[str, Any], words: str) -> None:
    runner = runner_of(tiny("qwen2"), 0, 2)
    before = forward(runner, position=0, count=4, ids=(1, 2, 3, 4))
    with pytest.raises(ProtocolError, match=words):
        forward(runner, **fields)
    assert runner.length == 4
    assert forward(runner, position=0, count=4, ids=(1, 2, 3, 4)) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"count": 1, "ids": (1,)}, "takes activations"),
        ({"count": 1, "ids": (1,), "hidden": activations(1)}, "takes activations"),
        ({"count": 2, "hidden": activations(1)}, "256 bytes; 2 positions take 512"),
        ({"count": 1, "hidden": activations(1)[:-1]}, "255 bytes"),
        ({"count": 1, "hidden": b""}, "0 bytes"),
        ({"count": 1, "hidden": activations(1, float("nan"))}, "not finite"),
        ({"count": 1, "hidden": activations(1, float("-inf"))}, "not finite"),
    ],
)
def test_later_stage_refuses(tiny: Tiny, fields: dict[str, Any], words: str) -> None:
    runner = runner_of(tiny("qwen2"), 1, 3)
    with pytest.raises(ProtocolError, match=words):
        forward(runner, position=0, **fields)
    assert runner.length == 0


def test_a_stage_that_ends_the_model_answers_with_a_draw_or_nothing(tiny: Tiny) -> None:
    runner = runner_of(tiny("qwen2"), 2, 4, Sampling(logprobs=2))
    assert forward(runner, position=0, count=2, hidden=activations(2)) == StageOutput()
    output = forward(runner, position=2, count=1, hidden=memoryview(activations(1)), sample=True)
    assert output.hidden is None
    assert output.draw is not None
    assert len(output.draw.top) == 2
    assert output.draw.logprob == output.draw.top[0][1]


def test_a_middle_stage_answers_with_activations(tiny: Tiny) -> None:
    output = forward(runner_of(tiny("qwen2"), 1, 3), position=0, count=3, hidden=activations(3))
    assert output.hidden is not None
    assert len(output.hidden) == 3 * HIDDEN * 4


def test_overflow_at_the_last_stage_is_reported(tiny: Tiny) -> None:
    runner = runner_of(tiny("qwen2"), 2, 4, Sampling())
    runner._model._norm.fill_(float("inf"))
    with pytest.raises(ProtocolError, match="overflow"):
        forward(runner, position=0, count=1, hidden=activations(1), sample=True)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_activations_survive_the_wire(dtype: DtypeName) -> None:
    x = torch.tensor([[1.0, -2.5, 0.0], [65280.0, 2.0**-14, -0.125]])
    data = encode(x, dtype)
    assert len(data) == x.numel() * (4 if dtype == "F32" else 2)
    assert torch.equal(decode(data, dtype, 3).float(), x)


def test_activations_are_little_endian() -> None:
    assert encode(torch.tensor([[1.0]]), "F32") == bytes.fromhex("0000803f")
    assert encode(torch.tensor([[1.0]]), "BF16") == bytes.fromhex("803f")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(dtype: DtypeName, value: float) -> None:
    data = encode(torch.tensor([[1.0, value, 2.0]]), dtype)
    with pytest.raises(ProtocolError, match="not finite"):
        decode(data, dtype, 3)


@pytest.mark.parametrize("cuts", [[], [1], [3], [1, 2]], ids=str)
def test_seeded_draws_are_the_same_at_every_cut(tiny: Tiny, cuts: list[int]) -> None:
    model = tiny("llama3-biased")
    settings = Sampling(
        temperature=0.9,
        top_p=0.95,
        seed=11,
        frequency_penalty=0.4,
        repetition_penalty=1.1,
        presence_penalty=0.2,
    )
    prompt = prompt_of(8, seed=9)
    whole = model.span(0, 4)

    def generate(edges: list[int]) -> list[int]:
        sampler = Sampler(settings, model.config.vocabulary, prompt)
        spans = [(whole, start, stop) for start, stop in itertools.pairwise(edges)]
        return Chain(spans, 48, sampler).generate(prompt, 32)

    assert generate([0, *cuts, 4]) == generate([0, 2, 4])


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (3, 4)])
def test_measuring_gives_rates_for_any_span(tiny: Tiny, start: int, stop: int) -> None:
    span = tiny("qwen2").span(start, stop)
    pool = KvPool(span.config, budget_bytes=1 << 24, dtype=span.dtype, device=span.device)
    runner = StageRunner(span, start, stop, pool.lease(stop - start, probe_positions(span)), None)
    with torch.inference_mode():
        rates = measure(span, runner)
    assert rates.decode > 0
    assert rates.prefill > 0
