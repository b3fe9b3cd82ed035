"""How others see us: the address that most answers name (BEP 42's ``ip``)."""

from __future__ import annotations

from collections import Counter, OrderedDict

from dht.contacts import Endpoint

MAX_VOTERS = 32  # enough that a few liars do not decide, few enough to follow a change of address soon


class AddressVotes:
    """The last vote of each of the last voters."""

    def __init__(self) -> None:
        self._votes: OrderedDict[str, str] = OrderedDict()

    def add(self, voter: Endpoint, seen: Endpoint) -> None:
        """Note that ``voter`` saw us at ``seen``. One vote per voter's host; ports change behind a NAT."""
        self._votes[voter.host] = seen.host
        self._votes.move_to_end(voter.host)
        if len(self._votes) > MAX_VOTERS:
            self._votes.popitem(last=False)

    @property
    def host(self) -> str | None:
        """The address with most votes, None before the first."""
        counts = Counter(self._votes.values()).most_common(1)
        return counts[0][0] if counts else None
