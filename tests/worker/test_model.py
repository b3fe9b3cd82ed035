"""The decoder against transformers: every kind of model, whole and cut anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm.errors import ModelFolderError, ResourceError, UsageError
from swarm.messages import Sampling
from tests.worker.tiny_models import KINDS, Chain, TinyModel, prompt_of
from worker.kv import KvPool
from worker.model import SpanModel
from worker.sampling import Sampler

Tiny = Callable[[str], TinyModel]
TOLERANCE = 1e-4


def pool_of(model: SpanModel) -> KvPool:
    return KvPool(model.config, budget_bytes=1 << 24, dtype=model.dtype, device=model.device)


def cut_logits(tiny_model: TinyModel, cuts: list[int], ids: list[int], chunk: int) -> torch.Tensor:
    """[len(ids), vocabulary] through separately loaded spans, in chunks."""
    layers = tiny_model.config.layers
    edges = [0, *cuts, layers]
    spans = [tiny_model.span(start, stop) for start, stop in itertools.pairwise(edges)]
    caches = [pool_of(span).lease(span.stop - span.start, len(ids)) for span in spans]
    rows = []
    with torch.inference_mode():
        for at in range(0, len(ids), chunk):
            x = spans[0].embed(torch.tensor(ids[at : at + chunk]))
            for span, cache in zip(spans, caches, strict=True):
                x = span.run(x, cache, span.start, span.stop, at)
            rows.append(spans[-1].logits(x))
    return torch.cat(rows)


def error_of(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())


def cuts_of(layers: int) -> list[list[int]]:
    two = [[cut] for cut in range(1, layers)]
    return [[], *two, [1, 2], [1, layers - 1], [2, layers - 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_at_every_cut_equal_transformers(tiny: Tiny, kind: str) -> None:
    model = tiny(kind)
    ids = prompt_of(40)
    expected = model.logits(ids)
    for cuts in cuts_of(model.config.layers):
        assert error_of(cut_logits(model, cuts, ids, 40), expected) < TOLERANCE, cuts


@pytest.mark.parametrize("chunk", [1, 2, 7, 39])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_in_chunks_equals_prefill_in_one(tiny: Tiny, kind: str, chunk: int) -> None:
    model = tiny(kind)
    ids = prompt_of(40, seed=1)
    assert error_of(cut_logits(model, [2], ids, chunk), model.logits(ids)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_at_every_cut_equal_transformers(tiny: Tiny, kind: str) -> None:
    model = tiny(kind)
    layers, prompt = model.config.layers, prompt_of(9, seed=2)
    expected = model.greedy(prompt, 48)
    assert len(set(expected)) > 8  # a model that repeats one token would prove little
    whole = model.span(0, layers)
    for cuts in cuts_of(layers):
        edges = [0, *cuts, layers]
        spans = [(whole, start, stop) for start, stop in itertools.pairwise(edges)]
        sampler = Sampler(Sampling(), model.config.vocabulary)
        assert Chain(spans, 64, sampler).generate(prompt, 48) == expected, cuts


def test_stages_inside_overlapping_spans_give_the_same_tokens(tiny: Tiny) -> None:
    model = tiny("llama-tied")
    prompt = prompt_of(12, seed=3)
    head, middle, tail = model.span(0, 4), model.span(1, 5), model.span(3, 6)
    sampler = Sampler(Sampling(), model.config.vocabulary)
    chain = Chain([(head, 0, 2), (middle, 2, 3), (head, 3, 4), (tail, 4, 6)], 64, sampler)
    assert chain.generate(prompt, 48, chunk=5) == model.greedy(prompt, 48)


def test_truncated_session_equals_a_fresh_one(tiny: Tiny) -> None:
    model = tiny("qwen2")
    whole = model.span(0, 4)
    sampler = Sampler(Sampling(), model.config.vocabulary)
    chain = Chain([(whole, 0, 2), (whole, 2, 4)], 80, sampler)
    chain.generate(prompt_of(20, seed=4), 20)
    other = prompt_of(20, seed=4)[:10] + prompt_of(10, seed=5)
    token = chain.step(10, other[10:])  # a passed position truncates to it
    again = Chain([(whole, 0, 2), (whole, 2, 4)], 80, sampler)
    assert token == again.step(0, other)
    assert [runner.length for runner in chain.runners] == [20, 20]


def test_interleaved_sessions_do_not_disturb_each_other(tiny: Tiny) -> None:
    model = tiny("mistral")
    whole = model.span(0, 4)
    prompts = [prompt_of(6, seed=6), prompt_of(11, seed=7)]
    chains = [Chain([(whole, 0, 4)], 64, Sampler(Sampling(), model.config.vocabulary)) for _ in prompts]
    tokens = [[chain.step(0, prompt)] for chain, prompt in zip(chains, prompts, strict=True)]
    for at in range(15):
        for chain, prompt, drawn in zip(chains, prompts, tokens, strict=True):
            last = drawn[-1]
            assert last is not None
            drawn.append(chain.step(len(prompt) + at, [last]))
    assert tokens == [model.greedy(prompt, 16) for prompt in prompts]


def test_only_the_units_of_the_span_are_read(tiny: Tiny) -> None:
    model = tiny("llama-tied")
    heard: list[str] = []
    SpanModel.load(model.config, model.source(), 2, 4, progress=heard.append)
    assert heard == ["layer.2", "layer.3"]
    order: list[str] = []
    SpanModel.load(
        model.config,
        model.source(),
        2,
        4,
        arrive=lambda unit: order.append(f"wait {unit}"),
        progress=lambda unit: order.append(f"have {unit}"),
    )
    assert order == ["wait layer.2", "have layer.2", "wait layer.3", "have layer.3"], "one unit after the other"
    assert model.span(4, 6).units() == ["layer.4", "layer.5", "norm", "head"]
    assert model.span(0, 1).units() == ["embed", "layer.0"]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 7), (4, 1)])
def test_a_span_outside_the_model_is_refused(tiny: Tiny, start: int, stop: int) -> None:
    with pytest.raises(UsageError, match="not within the model's layers 0:6"):
        tiny("llama-tied").span(start, stop)


def test_bf16_weights_are_computed_in_float32_on_a_cpu(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("qwen2").reference
    half = type(model)(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(tmp_path)
    saved = TinyModel(tmp_path, type(model).from_pretrained(tmp_path, dtype=torch.float32).eval())
    ids = prompt_of(20, seed=8)
    span = saved.span(0, 1)
    assert (span.dtype, span.wire_dtype) == (torch.float32, "BF16")
    assert tiny("qwen2").span(0, 1).wire_dtype == "F32"
    assert error_of(cut_logits(saved, [2], ids, 20), saved.logits(ids)) < TOLERANCE


def test_tensors_of_another_shape_are_refused(tiny: Tiny) -> None:
    model = tiny("mistral")
    wrong = tiny("llama3-biased").config
    with pytest.raises(ModelFolderError, match=r"lack the tensor|has shape"):
        SpanModel.load(wrong, model.source(), 0, 1)


@pytest.mark.parametrize("device", ["xla", "toaster"])
def test_a_device_that_is_not_there_is_refused(tiny: Tiny, device: str) -> None:
    model = tiny("qwen2")
    with pytest.raises(ResourceError, match="cannot be used") as caught:
        SpanModel.load(model.config, model.source(), 0, 1, device=device)
    assert "\n" not in caught.value.message
