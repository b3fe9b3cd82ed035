"""The greeting's two messages: the called side's fresh nonce, and the caller's proof of its key over it. Pure.

TLS has proven the called side's key already; its nonce keeps a proof from being shown twice, its key in what is
signed from being shown to somebody else.
"""

from __future__ import annotations

from swarm import messages
from swarm.errors import ProtocolError, VerificationError
from swarm.identity import Identity, domain_tag, verify_raw
from swarm.ids import PeerId
from swarm.messages import Hello, Proof

AGENT = "swarm-inference"
_CALLER_TAG = domain_tag("swarm-peer/v1")


def proof_message(server: PeerId, nonce: bytes) -> bytes:
    """What the caller signs: tag ‖ the called side's key ‖ its nonce."""
    return _CALLER_TAG + server + nonce


def prove(identity: Identity, server: PeerId, hello: Hello) -> Proof:
    """The caller's answer to the called side's ``hello``. Raises `ProtocolError` for another version."""
    _check_version(hello.version, server.short)
    return Proof(identity.peer_id, identity.sign_raw(proof_message(server, hello.nonce)), agent=AGENT)


def check_proof(proof: Proof, server: PeerId, nonce: bytes) -> PeerId:
    """The caller's proven key. Raises `VerificationError` for a proof that does not hold."""
    _check_version(proof.version, "(unknown)")
    if not verify_raw(proof.peer_id, proof_message(server, nonce), proof.signature):
        raise VerificationError(f"peer {proof.peer_id.short} did not prove its key")
    return proof.peer_id


def _check_version(version: int, name: str) -> None:
    if version != messages.VERSION:
        raise ProtocolError(
            f"peer {name} speaks version {version} of the peer protocol, this is {messages.VERSION}: "
            "upgrade the older one"
        )
