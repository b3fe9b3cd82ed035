"""Receipts of calls that never were."""

from __future__ import annotations

from typing import Any

from swarm.ids import Address, CallId, SessionId
from swarm.merkle import EMPTY_ROOT
from swarm.receipts import Channel, Price, Receipt
from tests.client.quotes import MANIFEST, NOW, PRICE, identity

CLIENT = identity(1_000)
CALL = CallId(b"a" * 16)


def receipt(
    *,
    call: CallId = CALL,
    worker: int = 1,
    layers: int = 1,
    input_tokens: int = 0,
    output_tokens: int = 10,
    price: Price = PRICE,
    channel: Channel | None = None,
    **changes: Any,
) -> Receipt:
    """One stage's receipt, with an amount that adds up."""
    fields: dict[str, Any] = {
        "manifest_id": MANIFEST,
        "client": CLIENT.peer_id,
        "worker": identity(worker).peer_id,
        "session_id": SessionId(b"s" * 16),
        "call_id": call,
        "chain_epoch": 0,
        "start": 0,
        "stop": layers,
        "request_hash": b"r" * 32,
        "input_root": EMPTY_ROOT,
        "output_root": EMPTY_ROOT,
        "fingerprint_root": EMPTY_ROOT,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "rebuilt_tokens": 0,
        "price": price,
        "cumulative": 0,
        "client_account": channel.client if channel is not None else Address(bytes(20)),
        "worker_account": channel.worker if channel is not None else Address(bytes(20)),
        "channel_epoch": channel.epoch if channel is not None else 0,
        "started_ms": NOW * 1000,
        "finished_ms": NOW * 1000,
    }
    fields |= changes
    if "amount" not in fields:
        fields["amount"] = fields["price"].amount(
            layers=fields["stop"] - fields["start"],
            input_tokens=fields["input_tokens"] + fields["rebuilt_tokens"],
            output_tokens=fields["output_tokens"],
        )
    return Receipt(**fields)
