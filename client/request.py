"""What a call asks for, what may come back, and what it came to. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from swarm.errors import ProtocolError
from swarm.ids import CallId, ManifestId, PeerId
from swarm.messages import Sampling, Tokens, pack_ids
from swarm.receipts import SignedReceipt

GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """What to generate. ``max_spend`` is in base units and stops the call before the payment, not after."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    max_spend: int | None = None

    def hash(self, manifest_id: ManifestId) -> bytes:
        """What was asked, 32 bytes: SHA-256 of the model, the prompt and the settings as they travel."""
        settings = msgspec.msgpack.encode((self.max_tokens, self.stop_ids, self.sampling))
        return hashlib.sha256(manifest_id + pack_ids(self.prompt_ids) + settings).digest()

    def check_tokens(self, tokens: Tokens, received: int, sender: PeerId) -> None:
        """Whether ``tokens`` may follow the ``received`` ones. Raises `ProtocolError` naming the last stage.

        A call ends at its first stop token or at ``max_tokens``, neither sooner nor later.
        """
        count = received + len(tokens.ids)
        finish = "length" if count == self.max_tokens else ""
        wrong = ""
        if (tokens.chain_epoch, tokens.position) != (0, len(self.prompt_ids) + received):
            wrong = "sent tokens out of turn"
        elif not tokens.ids or count > self.max_tokens:
            wrong = f"sent {len(tokens.ids)} tokens at once"
        elif any(token in self.stop_ids for token in tokens.ids[:-1]) or tokens.finish != (
            "stop" if tokens.ids[-1] in self.stop_ids else finish
        ):
            wrong = "ended the call at the wrong token"
        elif len(tokens.logprobs) != (len(tokens.ids) if self.sampling.logprobs >= 0 else 0):
            wrong = "sent other log-probabilities than were asked for"
        if wrong:
            raise ProtocolError(f"peer {sender.short} {wrong}", peer_id=sender)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One stage of a call as the client saw it."""

    peer_id: PeerId
    host: str
    port: int
    start: int
    stop: int
    earned: int = 0
    """Base units, from the receipt; 0 until there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """A finished call."""

    call_id: CallId
    prompt_tokens: int
    output_tokens: int
    cost: int
    receipts: tuple[SignedReceipt, ...]
    stages: tuple[StageSummary, ...]
    seconds: float
    """From the start to the last receipt."""
    first_token_seconds: float | None
    seconds_to_last_token: float
