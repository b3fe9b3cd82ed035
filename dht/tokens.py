"""Write tokens: proof that whoever stores under a target was asked from its own address (BEP 5).

A token is 8 bytes of keyed BLAKE2b over address and target. It is bound to the address without its port, as BEP 5
has it, and holds for one rotation more than the secret it was made with.
"""

from __future__ import annotations

import hashlib
import hmac

from dht.contacts import Endpoint
from dht.keys import Target

TOKEN_SIZE = 8  # 2^63 guesses on average; short enough to cost nothing in a datagram
SECRET_SIZE = 16
ROTATION = 300.0  # seconds: BEP 5 accepts tokens up to ten minutes old


class Tokens:
    """Issues and checks tokens with the current and the previous secret."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` is `SECRET_SIZE` random bytes."""
        self._secrets = (secret, secret)

    def rotate(self, secret: bytes) -> None:
        """Issue with a new secret; tokens of the one before stay good until the next rotation."""
        self._secrets = (secret, self._secrets[0])

    def issue(self, endpoint: Endpoint, target: Target) -> bytes:
        """The token that ``endpoint``'s host needs to store under ``target``."""
        return _token(self._secrets[0], endpoint, target)

    def accepts(self, token: bytes, endpoint: Endpoint, target: Target) -> bool:
        """Whether ``token`` was issued to this host for this target, compared in constant time."""
        matches = [hmac.compare_digest(token, _token(secret, endpoint, target)) for secret in self._secrets]
        return any(matches)


def _token(secret: bytes, endpoint: Endpoint, target: Target) -> bytes:
    return hashlib.blake2b(endpoint.packed_host + target, digest_size=TOKEN_SIZE, key=secret).digest()
