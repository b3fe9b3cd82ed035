"""Figures of a node for operators."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What the engine counts as it goes."""

    received: int = 0
    sent: int = 0
    answered: int = 0
    malformed: int = 0
    timeouts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A snapshot. Counts of datagrams, queries and timeouts run from the start of the node."""

    contacts: int
    """Nodes in the routing table."""

    peers_stored: int
    """Peers kept for others, over all info-hashes."""

    items_stored: int
    """BEP 44 items kept, own ones included."""

    publications: int
    """Announcements and items that this node keeps alive."""

    operations: int
    """Operations in progress."""

    calls_in_flight: int
    """Queries that wait for an answer."""

    datagrams_received: int
    """Datagrams that arrived."""

    datagrams_sent: int
    """Datagrams that were handed to the socket."""

    queries_answered: int
    """Queries that were answered, refusals included."""

    malformed: int
    """Datagrams that were no KRPC packet, or a query that broke the rules."""

    timeouts: int
    """Queries of ours that were given up."""
