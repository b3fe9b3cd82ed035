"""The one error tree, split by whose fault it is.

    SwarmError                    exit  code
    ├── UsageError                  2   usage              the caller asked for something impossible
    │   └── ModelFolderError        2   bad_model          a model folder that cannot be published or loaded
    ├── ResourceError               7   local_resource     this machine: disk, port, permission, missing package
    ├── RemoteError                 1   remote_fault       a peer broke the rules; names it
    │   ├── ProtocolError           1   protocol           malformed, oversized or out of order on the wire
    │   └── VerificationError       1   verification       a signature, hash or proof that does not hold
    ├── UnavailableError            5   unavailable        nobody there, or nobody knows
    │   ├── UnknownModelError       5   unknown_model      the name resolves to nothing
    │   ├── UnreachableError        5   unreachable        an address that does not answer
    │   ├── BusyError               5   busy               a worker without room; says when to try again
    │   └── MissingLayersError      4   swarm_incomplete   layers that no worker serves; names them
    ├── PaymentError                6   payment            no funds, no allocation, a refused voucher
    └── ClosedError                 1   closed             used after it was closed, or closed while in use

Every message is one line that says what to do next. ``exit_code`` is what the command line exits with.
"""

from __future__ import annotations

from typing import ClassVar

from swarm.ids import CallId, PeerId


class SwarmError(Exception):
    """Base of every error raised on purpose. ``code`` is stable and safe to match on."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        peer_id: PeerId | None = None,
        call_id: CallId | None = None,
        receipt: bytes | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.peer_id = peer_id
        self.call_id = call_id
        self.receipt = receipt


class UsageError(SwarmError):
    """The caller asked for something that cannot be done as asked."""

    code = "usage"
    exit_code = 2


class ModelFolderError(UsageError):
    """A model folder that cannot be published or loaded."""

    code = "bad_model"


class ResourceError(SwarmError):
    """This machine lacks something: disk, a free port, a permission, an installed package."""

    code = "local_resource"
    exit_code = 7


class RemoteError(SwarmError):
    """A peer broke the rules; ``peer_id`` names it where it is known."""

    code = "remote_fault"


class ProtocolError(RemoteError):
    """Bytes or messages that the protocol does not allow."""

    code = "protocol"


class VerificationError(RemoteError):
    """A signature, hash or proof that does not hold."""

    code = "verification"


class UnavailableError(SwarmError):
    """Nobody answers, or nobody knows."""

    code = "unavailable"
    exit_code = 5


class UnknownModelError(UnavailableError):
    """A name that resolves to no manifest."""

    code = "unknown_model"


class UnreachableError(UnavailableError):
    """An address that does not answer."""

    code = "unreachable"


class BusyError(UnavailableError):
    """A worker without room. ``retry_after`` is in seconds."""

    code = "busy"

    def __init__(self, message: str, *, retry_after: float, peer_id: PeerId | None = None) -> None:
        super().__init__(message, peer_id=peer_id)
        self.retry_after = retry_after


class MissingLayersError(UnavailableError):
    """Layers that no reachable worker serves."""

    code = "swarm_incomplete"
    exit_code = 4

    def __init__(self, message: str, *, layers: tuple[int, ...]) -> None:
        super().__init__(message)
        self.layers = layers


class PaymentError(SwarmError):
    """No funds, no allocation, or a voucher that was refused."""

    code = "payment"
    exit_code = 6


class ClosedError(SwarmError):
    """Used after it was closed, or closed while in use."""

    code = "closed"
