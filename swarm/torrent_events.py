"""What a BitTorrent session tells a torrent, and what a torrent asks of the session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swarm.ids import InfoHash
from swarm.sharing import Neighbour


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The session took the torrent; ``problem`` says why not."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is on disk has been checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceFinished:
    """A piece came and its hash holds."""

    piece: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRefused:
    """A piece came and its hash does not hold."""

    piece: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBanned:
    """A peer that sent what no hash holds for is not talked to any more."""

    peer_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushingItself:
    """The session will flush without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """A flush is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A file could not be read or written."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The session let go of the torrent and its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters of the transfer. ``pieces`` are all whose hash holds, or None if they were not asked for."""

    checking: bool
    downloaded_payload: int
    uploaded_payload: int
    peers: int
    rate: int
    problem: str
    pieces: frozenset[int] | None


Event = (
    Added | Checked | PieceFinished | PieceRefused | PeerBanned | FlushingItself | Flushed | Failed | Removed | Stats
)


class Engine(Protocol):
    """What a torrent asks of the session. What is not async does not block; its answers come as events."""

    peer_id: bytes
    """What others know this session by."""

    def flush(self, info_hash: InfoHash) -> None: ...
    def ask_stats(self, info_hash: InfoHash, *, pieces: bool) -> None: ...
    def prioritise(self, info_hash: InfoHash, priorities: list[int]) -> None: ...
    def connect(self, info_hash: InfoHash, host: str, port: int) -> None: ...
    async def neighbours(self, info_hash: InfoHash) -> list[Neighbour]: ...
    def crowded(self, info_hash: InfoHash, *, crowded: bool) -> None: ...
    def pause(self, info_hash: InfoHash) -> None: ...
