"""Network prefixes: what one owner of addresses is likely to hold. An IPv4 /24, an IPv6 /48.

Addresses of local networks (loopback, private, link-local) have no prefix: limits per prefix do not count them, since
nobody gains an outsider's influence with them and a laboratory has nothing else.
"""

from __future__ import annotations

from functools import lru_cache

from dht.contacts import Endpoint
from dht.keys import is_local

V4_PREFIX = 3  # bytes: a /24
V6_PREFIX = 6  # bytes: a /48, what a site is given


@lru_cache(maxsize=1 << 14)
def prefix_of(host: str) -> bytes | None:
    """The /24 or /48 that ``host`` belongs to, None for a local address."""
    if is_local(host):
        return None
    packed = Endpoint(host, 0).packed_host
    return packed[: V4_PREFIX if len(packed) == 4 else V6_PREFIX]
