from __future__ import annotations

from dht.operations import DirectQuery
from dht.queries import Ping
from tests.dht.answers import node


def test_ping() -> None:
    operation = DirectQuery(node(1).endpoint, Ping())
    (request,) = operation.requests()
    assert (request.endpoint, request.query) == (node(1).endpoint, Ping())
    assert operation.requests() == []
    operation.timed_out(node(1).endpoint, 1)
    assert not operation.finished
    operation.failed(node(1).endpoint, None)
    assert operation.finished
    assert operation.outcome is not None
    assert (operation.outcome.asked, operation.outcome.answered) == (1, 0)
