"""The draw: reproducible by (seed, position), true to the distribution, equal to a plain reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from swarm.errors import ProtocolError, UsageError
from swarm.messages import Sampling
from worker.sampling import Logits, Sampler, gumbel_noise, kept_tokens

VOCABULARY = 64


def logits_of(seed: int, size: int = VOCABULARY) -> Logits:
    return (np.random.default_rng(seed).normal(size=size) * 2).astype(np.float32)


def sampler(prompt: tuple[int, ...] = (), **settings: Any) -> Sampler:
    return Sampler(Sampling(**settings), VOCABULARY, prompt)


def reference_kept(scores: list[float], top_k: int, top_p: float, min_p: float) -> list[int]:
    """The specification: filters applied one after the other to a sorted list."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if top_k:
        order = order[:top_k]
    weights = [math.exp(scores[token] - scores[order[0]]) for token in order]
    total = sum(weights)
    kept: list[int] = []
    reached = 0.0
    for token, weight in zip(order, weights, strict=True):
        if kept and (reached >= top_p * total or weight < min_p):
            break
        kept.append(token)
        reached += weight
    return kept


def reference_penalised(logits: Logits, prompt: list[int], generated: list[int], settings: Sampling) -> list[float]:
    scores = [float(value) for value in logits]
    for token, bias in settings.logit_bias.items():
        scores[token] += bias
    for token in set(prompt) | set(generated):
        factor = settings.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(generated):
        scores[token] -= settings.presence_penalty + settings.frequency_penalty * generated.count(token)
    return scores


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[9, 5]] = 3.0
    assert sampler().draw(logits, 4).token == 5
    assert sampler().plain


@pytest.mark.parametrize("top_k", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-9])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.9])
def test_filters_keep_what_the_reference_keeps(top_k: int, top_p: float, min_p: float) -> None:
    for seed in range(5):
        scores = logits_of(seed).astype(np.float64)
        scores[3:7] = scores[3]  # ties
        kept = kept_tokens(scores, top_k=top_k, top_p=top_p, min_p=min_p)
        expected = reference_kept(scores.tolist(), top_k, top_p, min_p)
        assert (list(range(VOCABULARY)) if kept is None else kept.tolist()) == (
            sorted(expected) if kept is None else expected
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"logit_bias": {3: 4.0, 11: -100.0}},
        {
            "presence_penalty": -0.5,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.3,
            "logit_bias": {0: 1.0, 63: -2.0},
        },
    ],
    ids=lambda settings: ",".join(settings),
)
def test_penalties_and_bias_equal_the_reference(settings: dict[str, Any]) -> None:
    prompt = [1, 2, 3, 3]
    drawn: list[int] = []
    stage = sampler(tuple(prompt), **settings)
    changed = False
    for at in range(40):
        logits = logits_of(at // 4)
        expected = reference_penalised(logits, prompt, drawn, Sampling(**settings))
        token = stage.draw(logits, len(prompt) + at).token
        assert token == max(range(VOCABULARY), key=lambda token: (expected[token], -token))
        changed |= token != int(logits.argmax())
        drawn.append(token)
    assert changed


def test_penalties_forget_what_was_truncated() -> None:
    stage = sampler((1,), frequency_penalty=5.0)
    logits = logits_of(1)
    first = [stage.draw(logits, position).token for position in (1, 2, 3)]
    assert [stage.draw(logits, position).token for position in (1, 2, 3)] == first
    stage.observe(1, [first[0], 40])
    assert stage.draw(logits, 3).token == first[1]  # 40 stands where the second choice stood


def test_penalties_refuse_unknown_history() -> None:
    with pytest.raises(ProtocolError, match="penalties need"):
        sampler((1, 2), presence_penalty=1.0).draw(logits_of(0), 5)
    sampler((1, 2)).draw(logits_of(0), 5)


def test_a_seeded_draw_depends_on_seed_position_and_logits_alone() -> None:
    logits = [logits_of(seed) for seed in range(30)]
    once = [sampler(temperature=1.0, seed=5).draw(row, at).token for at, row in enumerate(logits)]
    stage = sampler(temperature=1.0, seed=5)
    backwards = [stage.draw(logits[at], at).token for at in reversed(range(30))]
    assert once == backwards[::-1]
    assert once != [sampler(temperature=1.0, seed=6).draw(row, at).token for at, row in enumerate(logits)]
    assert once != [sampler(temperature=1.0, seed=5).draw(row, at + 1).token for at, row in enumerate(logits)]


def test_draws_are_pinned() -> None:
    """These never change: an auditor on another machine and version must draw the same."""
    logits = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)
    stage = sampler(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, seed=1234)
    assert [stage.draw(logits, position).token for position in range(8)] == [30, 55, 38, 60, 41, 63, 62, 51]
    assert gumbel_noise(1234, 7, 3).tolist() == [0xE708C74F606173D3, 0x10C7F0971CB49AB1, 0xFC185A23B7C50880]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = logits_of(3, 16)
    stage = Sampler(Sampling(temperature=temperature, seed=99), 16)
    draws = 20_000
    counts = np.bincount([stage.draw(logits, position).token for position in range(draws)], minlength=16)
    weights = np.exp(logits.astype(np.float64) / temperature)
    expected = draws * weights / weights.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 37.7  # chi-square, 15 degrees of freedom: exceeded once in a thousand


def test_filtered_draws_stay_inside_and_keep_their_ratios() -> None:
    logits = logits_of(4)
    stage = sampler(temperature=1.0, top_k=3, seed=7)
    drawn = [stage.draw(logits, position).token for position in range(6000)]
    kept = reference_kept(logits.tolist(), 3, 1.0, 0.0)
    assert set(drawn) == set(kept)
    weights = np.exp(logits[kept].astype(np.float64))
    shares = np.array([drawn.count(token) for token in kept]) / len(drawn)
    assert np.abs(shares - weights / weights.sum()).max() < 0.02


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model(temperature: float) -> None:
    logits = logits_of(5)
    draw = sampler(temperature=temperature, logprobs=4, logit_bias={8: 50.0}, seed=1).draw(logits, 3)
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    order = sorted(range(VOCABULARY), key=lambda token: -expected[token])[:4]
    assert draw.token == 8
    assert draw.logprob == pytest.approx(expected[8])
    assert [token for token, _ in draw.top] == order
    assert [value for _, value in draw.top] == pytest.approx(expected[order])
    assert sampler(logprobs=0).draw(logits, 3).top == ()
    assert sampler().draw(logits, 3).logprob is None


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 3}, {"logit_bias": {1: 1.0}}])
def test_logits_that_are_not_numbers_draw_nothing(settings: dict[str, Any]) -> None:
    logits = logits_of(6)
    logits[7] = np.nan
    with pytest.raises(ProtocolError, match="overflow"):
        sampler(**settings).draw(logits, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"presence_penalty": math.inf},
        {"repetition_penalty": 0.0},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"logprobs": 21},
        {"logit_bias": {VOCABULARY: 1.0}},
        {"logit_bias": {1: math.nan}},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        sampler(**settings)


def test_prompts_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(UsageError, match="vocabulary"):
        sampler((1, VOCABULARY))
