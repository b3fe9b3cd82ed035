"""A walk over the whole network: every node that can be found is asked once what info-hashes it keeps (BEP 51).

Each answer names nodes near a random point, so that the walk spreads over the key space and not around one key.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import trio

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, Target
from dht.node import Node
from dht.outcomes import SampledInfohashes
from swarm.errors import UnavailableError

AT_ONCE = 16  # nodes asked at the same time
MAX_WAITING = 10_000  # nodes remembered to be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Crawl:
    """What a walk met."""

    nodes: tuple[Contact, ...]
    """Nodes that answered."""

    silent: int
    """How many did not."""

    info_hashes: tuple[Target, ...]
    """All that any of them showed."""

    total: int
    """How many they say they keep, added up; an info-hash kept by several counts for each."""


class _Walk:
    def __init__(self, node: Node, most: int, seed: int | None) -> None:
        self._node = node
        self._most = most
        self._rng = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
        self._waiting: deque[Contact] = deque()
        self._met: set[Endpoint] = set()
        self._info_hashes: dict[Target, None] = {}
        self._nodes: list[Contact] = []
        self._silent = self._total = self._asked = 0

    async def run(self) -> Crawl:
        self._meet(await self._node.find_node(self._point()))
        while self._waiting and self._asked < self._most:
            async with trio.open_nursery() as nursery:
                for _ in range(min(AT_ONCE, len(self._waiting), self._most - self._asked)):
                    self._asked += 1
                    nursery.start_soon(self._ask, self._waiting.popleft())
        return Crawl(
            nodes=tuple(self._nodes), silent=self._silent, info_hashes=tuple(self._info_hashes), total=self._total
        )

    async def _ask(self, contact: Contact) -> None:
        try:
            told = await self._node.sample_infohashes(contact.endpoint, self._point())
        except UnavailableError:  # silent, or one that does not speak BEP 51
            try:
                await self._node.ping(contact.endpoint)
            except UnavailableError:
                self._silent += 1
                return
            told = SampledInfohashes(info_hashes=(), total=0, interval=0, contacts=())
        self._nodes.append(contact)
        self._info_hashes.update(dict.fromkeys(told.info_hashes))
        self._total += told.total
        self._meet(list(told.contacts))

    def _meet(self, contacts: list[Contact]) -> None:
        for contact in contacts:
            if contact.endpoint not in self._met and len(self._waiting) < MAX_WAITING:
                self._met.add(contact.endpoint)
                self._waiting.append(contact)

    def _point(self) -> Target:
        return Target(self._rng.randbytes(NodeId.size))


async def crawl(node: Node, *, most: int = 1000, seed: int | None = None) -> Crawl:
    """Ask up to ``most`` nodes; ``seed`` repeats the same walk. Raises `UnreachableError` if nobody answers."""
    return await _Walk(node, most, seed).run()
