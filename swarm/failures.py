"""Errors on the wire: a `Failure` for an error, and the error that a peer's failure stands for."""

from __future__ import annotations

from swarm.errors import (
    BusyError,
    ClosedError,
    PaymentError,
    ProtocolError,
    RemoteError,
    SwarmError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
    UsageError,
    VerificationError,
)
from swarm.ids import PeerId
from swarm.messages import MAX_RETRY_AFTER, Failure

_MAX_TEXT = 1024  # characters, as `Failure.message` allows

# What a peer lacks is no lack of this machine: its local_resource is unavailable to us, as are its missing layers.
_BY_CODE: dict[str, type[SwarmError]] = {
    "local_resource": UnavailableError,
    "swarm_incomplete": UnavailableError,
}
_BY_CODE |= {
    kind.code: kind
    for kind in (
        UsageError,
        RemoteError,
        ProtocolError,
        VerificationError,
        UnavailableError,
        UnknownModelError,
        UnreachableError,
        PaymentError,
        ClosedError,
    )
}


def failure_of(error: SwarmError) -> Failure:
    """The wire form of an error."""
    retry_after = error.retry_after if isinstance(error, BusyError) else 0.0
    return Failure(
        error.code,
        error.message[:_MAX_TEXT].encode("utf-8", "replace").decode(),  # a file name may hold what UTF-8 cannot
        retry_after=min(max(0.0, retry_after), MAX_RETRY_AFTER),
        culprit=bytes(error.peer_id or b""),
    )


def error_of(failure: Failure, sender: PeerId) -> SwarmError:
    """The error that a peer's failure stands for; blames the culprit it names, else its sender."""
    culprit = PeerId(failure.culprit) if len(failure.culprit) == PeerId.size else sender
    text = "".join(c if c.isprintable() else "?" for c in failure.message)
    message = f"peer {sender.short}: {text}"
    if failure.code == BusyError.code:
        return BusyError(message, retry_after=failure.retry_after, peer_id=culprit)
    return _BY_CODE.get(failure.code, RemoteError)(message, peer_id=culprit)
