"""What the DHT adds to the one error tree.

SwarmError
├── UsageError
│   └── ConflictError          2   conflict           the network holds a newer item; carries its seq
└── RemoteError
    └── ProtocolError
        └── RejectedQuery      1   protocol           a query that earns an error answer; carries its code
"""

from __future__ import annotations

from swarm.errors import ProtocolError, UsageError


class ConflictError(UsageError):
    """A put that lost: a stale sequence number or a compare-and-swap that failed (BEP 44's 301 and 302)."""

    code = "conflict"

    def __init__(self, message: str, *, current_seq: int | None) -> None:
        super().__init__(message)
        self.current_seq = current_seq


class RejectedQuery(ProtocolError):
    """A query that is understood well enough to be answered with an error."""

    def __init__(self, message: str, *, krpc_code: int, transaction: bytes = b"") -> None:
        super().__init__(message)
        self.krpc_code = krpc_code
        self.transaction = transaction
