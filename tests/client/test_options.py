"""What can be asked for, and one line for what cannot."""

from __future__ import annotations

from typing import Any

import pytest

from client.options import GenerateOptions
from swarm.errors import UsageError
from swarm.messages import Sampling


def test_without_options_it_is_greedy() -> None:
    options = GenerateOptions()
    assert options.sampling() == Sampling()
    assert options.max_tokens == 128


def test_options_travel_as_given() -> None:
    options = GenerateOptions(
        temperature=1, top_p=0.5, top_k=3, min_p=0.1, seed=7, presence_penalty=1, logit_bias={5: -1}, logprobs=0
    )
    expected = Sampling(
        temperature=1.0, top_p=0.5, top_k=3, min_p=0.1, seed=7, presence_penalty=1.0, logit_bias={5: -1.0}, logprobs=0
    )
    assert options.sampling() == expected


def test_without_a_seed_every_call_has_another() -> None:
    options = GenerateOptions(temperature=1.0)
    assert options.sampling().seed != options.sampling().seed
    assert GenerateOptions(temperature=1.0, seed=0).sampling().seed == 0


def test_one_stop_string_or_several() -> None:
    assert GenerateOptions(stop="x").stop == ("x",)
    assert GenerateOptions(stop=["x", "yz"]).stop == ("x", "yz")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": -1},
        {"seed": 2**63},
        {"repetition_penalty": 0},
        {"presence_penalty": float("inf")},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": dict.fromkeys(range(2000), 1.0)},
        {"logprobs": 21},
        {"stop": ""},
        {"stop": ["x"] * 17},
        {"max_spend": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", ".") if "stop" not in wrong else "stop"):
        GenerateOptions(**wrong)
