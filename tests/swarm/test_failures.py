from __future__ import annotations

import math

import pytest

from swarm import errors
from swarm.errors import BusyError, MissingLayersError, RemoteError, SwarmError, UnavailableError
from swarm.failures import error_of, failure_of
from swarm.ids import PeerId
from swarm.messages import Failure, decode, encode

SENDER, CULPRIT = PeerId(b"s" * 32), PeerId(b"c" * 32)

# What another peer's error is to us, wherever it is not the same.
TRANSLATED: dict[type[SwarmError], type[SwarmError]] = {
    SwarmError: RemoteError,
    errors.ModelFolderError: RemoteError,
    errors.ResourceError: UnavailableError,
    MissingLayersError: UnavailableError,
}


def all_errors(kind: type[SwarmError] = SwarmError) -> list[type[SwarmError]]:
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(error for child in children for error in all_errors(child))]


def made(kind: type[SwarmError], message: str = "text", peer_id: PeerId | None = None) -> SwarmError:
    if kind is MissingLayersError:
        return MissingLayersError(message, layers=(1,))
    if kind is BusyError:
        return BusyError(message, retry_after=2.5, peer_id=peer_id)
    return kind(message, peer_id=peer_id)


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_crosses_the_wire(kind: type[SwarmError]) -> None:
    failure = decode(encode(failure_of(made(kind, "it is full", CULPRIT))))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == (kind.code, "it is full")
    error = error_of(failure, SENDER)
    assert type(error) is TRANSLATED.get(kind, kind)
    assert error.message == f"peer {SENDER.short}: it is full"
    assert error.peer_id == (SENDER if kind is MissingLayersError else CULPRIT)
    if isinstance(error, BusyError):
        assert error.retry_after == 2.5


def test_a_failure_that_names_nobody_is_its_senders() -> None:
    assert error_of(failure_of(RemoteError("x")), SENDER).peer_id == SENDER
    assert error_of(Failure("busy", "x", culprit=b"short"), SENDER).peer_id == SENDER


@pytest.mark.parametrize("code", ["", "internal", "bad_model", "no_such_code", "usage\n"])
def test_a_code_that_means_nothing_here_is_a_remote_fault(code: str) -> None:
    assert type(error_of(Failure(code, "x"), SENDER)) is RemoteError


def test_what_a_peer_says_stays_on_one_printable_line() -> None:
    error = error_of(Failure("usage", "a\nb\x1b[31m\u2028c"), SENDER)
    assert error.message == f"peer {SENDER.short}: a?b?[31m?c"


@pytest.mark.parametrize("message", ["x" * 5000, "€" * 5000, "/tmp/\udcff", ""])  # noqa: S108 - text, not a file
def test_any_message_fits_the_wire(message: str) -> None:
    failure = decode(encode(failure_of(RemoteError(message))))
    assert isinstance(failure, Failure)
    assert failure.message == message[:1024].replace("\udcff", "?")


@pytest.mark.parametrize(
    ("wait", "sent"), [(-1.0, 0.0), (0.5, 0.5), (1e9, 3600.0), (math.inf, 3600.0), (math.nan, 0.0)]
)
def test_any_wait_fits_the_wire(wait: float, sent: float) -> None:
    failure = decode(encode(failure_of(BusyError("full", retry_after=wait))))
    assert isinstance(failure, Failure)
    assert failure.retry_after == sent
