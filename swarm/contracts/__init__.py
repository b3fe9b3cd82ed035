"""The settlement contract: Vyper sources, and their ABI and bytecode as committed.

Settlement.vy    channels, redemption of vouchers, closing
Batches.vy       batches of vouchers: bonds, proofs of lies, claims, closes of batched channels
ed25519.vy       the signature check that it imports
Reservations.vy  capacity that is paid for in advance
TestToken.vy     an ERC-20 for demonstrations and tests
*.json           what `python -m swarm.contracts.build` made of them; a test compiles again and compares
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A contract's interface and creation code."""

    abi: list[dict[str, Any]]
    bytecode: bytes


def load(name: str) -> Compiled:
    """The committed build of ``name``: ``Settlement``, ``Batches``, ``Reservations`` or ``TestToken``."""
    data = json.loads(files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return Compiled(abi=data["abi"], bytecode=bytes.fromhex(data["bytecode"]))
