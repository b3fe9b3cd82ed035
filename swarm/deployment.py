"""The terms that the contracts are deployed with, fixed for good then, and their constructors' arguments. Pure.

Two contracts name each other: `Settlement` holds the money of channels and trusts one judge of batches, `Batches`
holds bonds and asks `Settlement` about channels. The first is deployed with the address that the second will have.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.errors import UsageError
from swarm.ids import Address

FEE_CAP_BPS = 500  # the contract refuses more
MAX_LAG = 255  # blocks whose hashes a contract can ask for
NO_POOL = Address(bytes(Address.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a deployment fixes. Times are in seconds, amounts in base units of the token."""

    close_window: int = 48 * 3600
    """From the request to close a channel to the refund."""
    challenge_window: int = 24 * 3600
    """In which a lie in a batch can be proven."""
    data_window: int = 6 * 3600
    """In which data that is demanded must be shown."""
    bond: int = 1_000_000_000
    """What a settler stakes on a batch."""
    deposit: int = 10_000_000
    """What a demand for data puts down; whoever shows the data gets it."""
    lag: int = 128
    """The most blocks that a batch's snapshot may lie back."""
    fee_bps: int = 100
    """The protocol's part of every payment for work, in basis points."""
    pool: Address = NO_POOL
    """Where the fee goes; needed unless it is zero."""

    def __post_init__(self) -> None:
        if not 0 <= self.fee_bps <= FEE_CAP_BPS:
            raise UsageError(f"a fee of {self.fee_bps} basis points is outside 0..{FEE_CAP_BPS}")
        if self.fee_bps and self.pool == NO_POOL:
            raise UsageError("a fee needs a pool to go to; name its account, or set the fee to 0")
        if not 0 < self.lag <= MAX_LAG:
            raise UsageError(f"a lag of {self.lag} blocks is outside 1..{MAX_LAG}")
        if self.bond <= 0 or self.deposit < 0:
            raise UsageError("a bond is above zero and a deposit not below")
        if min(self.close_window, self.challenge_window, self.data_window) < 0:
            raise UsageError("windows are not negative")

    def settlement_arguments(self, token: Address, batches: Address) -> bytes:
        """The constructor's arguments of `Settlement`, ABI-encoded: every one is a word."""
        return _words(token, self.close_window, batches, self.pool, self.fee_bps)

    def batches_arguments(self, settlement: Address, token: Address) -> bytes:
        """The constructor's arguments of `Batches`, ABI-encoded."""
        return _words(settlement, token, self.bond, self.deposit, self.challenge_window, self.data_window, self.lag)


def creation_record(creator: Address, nonce: int) -> bytes:
    """What the address of ``creator``'s next contract is the last 20 bytes of the Keccak-256 of: RLP of both."""
    encoded = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    if nonce == 0 or nonce > 0x7F:
        encoded = bytes([0x80 + len(encoded)]) + encoded
    body = b"\x94" + creator + encoded
    return bytes([0xC0 + len(body)]) + body


def _words(*values: Address | int) -> bytes:
    return b"".join(
        value.to_bytes(32, "big") if isinstance(value, int) else bytes(value).rjust(32, b"\0") for value in values
    )
