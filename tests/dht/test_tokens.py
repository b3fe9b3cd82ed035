from __future__ import annotations

from dht.contacts import Endpoint
from dht.keys import Target
from dht.tokens import TOKEN_SIZE, Tokens

HERE = Endpoint("10.0.0.1", 1000)
THERE = Endpoint("10.0.0.2", 1000)
ONE, TWO = Target(b"1" * 20), Target(b"2" * 20)


def test_a_token_is_bound_to_host_and_target_but_not_to_the_port() -> None:
    tokens = Tokens(b"secret")
    token = tokens.issue(HERE, ONE)
    assert len(token) == TOKEN_SIZE
    assert tokens.accepts(token, HERE, ONE)
    assert tokens.accepts(token, Endpoint(HERE.host, 2000), ONE)
    assert not tokens.accepts(token, THERE, ONE)
    assert not tokens.accepts(token, HERE, TWO)
    assert not tokens.accepts(token[:-1], HERE, ONE)
    assert not tokens.accepts(b"", HERE, ONE)


def test_a_token_outlives_one_rotation_only() -> None:
    tokens = Tokens(b"first")
    token = tokens.issue(HERE, ONE)
    tokens.rotate(b"second")
    assert tokens.issue(HERE, ONE) != token
    assert tokens.accepts(token, HERE, ONE)
    tokens.rotate(b"third")
    assert not tokens.accepts(token, HERE, ONE)


def test_another_nodes_token_is_worth_nothing() -> None:
    assert not Tokens(b"ours").accepts(Tokens(b"theirs").issue(HERE, ONE), HERE, ONE)
