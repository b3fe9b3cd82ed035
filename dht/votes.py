"""How others see us: the address that most answers name (BEP 42's ``ip``)."""

from __future__ import annotations

from collections import Counter, OrderedDict

from dht.contacts import Endpoint
from dht.prefixes import prefix_of

MAX_VOTERS = 32  # enough that a few liars do not decide, few enough to follow a change of address soon
MIN_VOTERS = 4  # before we act on what they say


class AddressVotes:
    """The last vote of each of the last voters. A /24 or /48 is one voter; so is each local address."""

    def __init__(self) -> None:
        self._votes: OrderedDict[bytes | str, str] = OrderedDict()

    def add(self, voter: Endpoint, seen: Endpoint) -> None:
        """Note that ``voter`` saw us at ``seen``; ports change behind a NAT and do not count."""
        key = prefix_of(voter.host) or voter.host
        self._votes[key] = seen.host
        self._votes.move_to_end(key)
        if len(self._votes) > MAX_VOTERS:
            self._votes.popitem(last=False)

    @property
    def host(self) -> str | None:
        """The address with most votes, None before the first."""
        counts = Counter(self._votes.values()).most_common(1)
        return counts[0][0] if counts else None

    @property
    def agreed(self) -> str | None:
        """The address that more than half of at least `MIN_VOTERS` name: enough to change our id for."""
        host = self.host
        if host is None or len(self._votes) < MIN_VOTERS:
            return None
        return host if sum(vote == host for vote in self._votes.values()) * 2 > len(self._votes) else None
