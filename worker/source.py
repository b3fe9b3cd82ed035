"""The units of a model out of a torrent's verified pieces."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.manifest import Manifest, tensors_by_unit
from swarm.torrent import Torrent
from swarm.units import TensorEntry


class TorrentSource:
    """A `worker.shards.UnitSource` over a torrent; reads raise `VerificationError` for bytes not yet verified."""

    def __init__(self, manifest: Manifest, torrent: Torrent) -> None:
        self._units = tensors_by_unit(manifest)
        self._torrent = torrent

    def tensors(self, unit: str) -> Sequence[TensorEntry]:
        """The tensors of ``unit``; empty when the model has no such unit."""
        return self._units.get(unit, ())

    def read(self, file: int, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)`` of file number ``file``."""
        return self._torrent.read(file, start, stop)
