from __future__ import annotations

import re
from collections.abc import Iterator

from swarm import errors
from swarm.ids import CallId, PeerId


def tree(kind: type[errors.SwarmError] = errors.SwarmError) -> Iterator[type[errors.SwarmError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"([│ ├└─]*)(\w+Error)\s+(\d+)\s+(\w+)", errors.__doc__ or "")
    assert [(name, int(code), word) for _, name, code, word in drawn] == [
        (kind.__name__, kind.exit_code, kind.code) for kind in tree() if kind is not errors.SwarmError
    ]
    for indent, name, _, _ in drawn:
        parents = [kind.__name__ for kind in getattr(errors, name).__mro__[1:]]
        depth = parents.index("SwarmError") + 1
        assert len(indent) == 4 + 4 * depth, name


def test_codes_are_distinct() -> None:
    codes = [kind.code for kind in tree()]
    assert len(codes) == len(set(codes))


def test_exit_codes_are_the_documented_ones() -> None:
    assert {kind.exit_code for kind in tree()} == {1, 2, 4, 5, 6, 7}


def test_an_error_carries_its_evidence() -> None:
    peer, call = PeerId(b"\1" * 32), CallId(b"\2" * 16)
    error = errors.RemoteError("peer 01010101 lied", peer_id=peer, call_id=call, receipt=b"record")
    assert (str(error), error.message) == ("peer 01010101 lied", "peer 01010101 lied")
    assert (error.peer_id, error.call_id, error.receipt) == (peer, call, b"record")


def test_a_busy_worker_says_when_and_a_gap_says_which() -> None:
    assert errors.BusyError("full", retry_after=1.5).retry_after == 1.5
    assert errors.MissingLayersError("layers 3 and 4 have no worker", layers=(3, 4)).layers == (3, 4)
