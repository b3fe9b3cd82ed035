"""What a call asks for and what may come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from client.request import CallRequest
from swarm.errors import ProtocolError
from swarm.ids import ManifestId
from swarm.messages import Sampling, Tokens
from tests.client.quotes import MANIFEST, identity

WORKER = identity(1).peer_id
REQUEST = CallRequest(prompt_ids=(1, 2, 3), max_tokens=4, stop_ids=(99,))


@pytest.mark.parametrize(
    ("tokens", "received"),
    [
        (Tokens(0, 3, (7,)), 0),
        (Tokens(0, 4, (7, 8)), 1),
        (Tokens(0, 6, (7,), "length"), 3),
        (Tokens(0, 4, (99,), "stop"), 1),
        (Tokens(0, 6, (99,), "stop"), 3),
    ],
)
def test_tokens_in_turn(tokens: Tokens, received: int) -> None:
    REQUEST.check_tokens(tokens, received, WORKER)


@pytest.mark.parametrize(
    ("tokens", "received", "what"),
    [
        (Tokens(0, 4, (7,)), 0, "out of turn"),
        (Tokens(0, 3, (7,)), 1, "out of turn"),
        (Tokens(1, 3, (7,)), 0, "out of turn"),
        (Tokens(0, 3, ()), 0, "0 tokens at once"),
        (Tokens(0, 3, (5, 6, 7, 8, 9)), 0, "5 tokens at once"),
        (Tokens(0, 6, (7,), ""), 3, "wrong token"),  # the client would wait for ever
        (Tokens(0, 4, (7,), "length"), 1, "wrong token"),
        (Tokens(0, 4, (7,), "stop"), 1, "wrong token"),
        (Tokens(0, 4, (99,), ""), 1, "wrong token"),
        (Tokens(0, 6, (99,), "length"), 3, "wrong token"),
        (Tokens(0, 4, (99, 7), ""), 1, "wrong token"),
        (Tokens(0, 4, (7,), "because"), 1, "wrong token"),
        (Tokens(0, 4, (7,), "", ((0.0, ()),)), 1, "log-probabilities"),
    ],
)
def test_tokens_that_break_the_rules_name_the_last_stage(tokens: Tokens, received: int, what: str) -> None:
    with pytest.raises(ProtocolError, match=what) as caught:
        REQUEST.check_tokens(tokens, received, WORKER)
    assert caught.value.peer_id == WORKER


def test_log_probabilities_come_when_asked_for() -> None:
    asked = replace(REQUEST, sampling=Sampling(logprobs=0))
    asked.check_tokens(Tokens(0, 3, (7,), "", ((-0.5, ()),)), 0, WORKER)
    with pytest.raises(ProtocolError, match="log-probabilities"):
        asked.check_tokens(Tokens(0, 3, (7,)), 0, WORKER)


@pytest.mark.parametrize(
    "changes",
    [{"prompt_ids": (1, 2)}, {"max_tokens": 5}, {"stop_ids": ()}, {"sampling": Sampling(seed=1)}],
)
def test_the_hash_is_of_everything_that_was_asked(changes: dict[str, Any]) -> None:
    assert replace(REQUEST, **changes).hash(MANIFEST) != REQUEST.hash(MANIFEST)
    assert REQUEST.hash(ManifestId(b"x" * 32)) != REQUEST.hash(MANIFEST)
    assert replace(REQUEST, max_spend=5).hash(MANIFEST) == REQUEST.hash(MANIFEST)
