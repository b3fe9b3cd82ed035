"""Keys and values of sessions: one contiguous block per session and stage, leased from a byte budget.

The seam is narrow on purpose (``lease``, ``window``, ``truncate``, ``close``): paged blocks can take its place without
the model or the engine noticing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from swarm.errors import BusyError, ProtocolError
from worker.config import ModelConfig

RETRY_AFTER_SECONDS: Final = 2.0  # a session ends every few seconds on a busy worker


@dataclass(frozen=True, slots=True)
class KvWindow:
    """Views for one step, one entry per layer of the stage. K is kv_heads, D is head_dim, n the length after it."""

    writes: tuple[torch.Tensor, ...]
    """[2, K, count, D]: where the step's keys and values go."""
    keys: tuple[torch.Tensor, ...]
    """[K, D, n]: all keys, transposed."""
    values: tuple[torch.Tensor, ...]
    """[K, n, D]: all values."""


class KvPool:
    """The budget, in bytes, that all caches of one worker share. Belongs to one thread."""

    def __init__(self, config: ModelConfig, *, budget_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self.budget_bytes = budget_bytes
        self.used_bytes = 0

    def bytes_per_position(self, layers: int) -> int:
        """What one position of a stage with so many layers takes."""
        return layers * self._config.kv_elements_per_position * self._dtype.itemsize

    def positions_free(self, layers: int) -> int:
        """How many more positions of such a stage fit."""
        return max(0, self.budget_bytes - self.used_bytes) // self.bytes_per_position(layers)

    def lease(self, layers: int, positions: int) -> KvCache:
        """Room for ``positions``; raises BusyError when the budget, or the device itself, has none left."""
        size = self.bytes_per_position(layers) * positions
        if self.used_bytes + size > self.budget_bytes:
            raise BusyError(
                f"no room for {positions} positions: {self.positions_free(layers)} are free; "
                "ask for fewer tokens or try again later",
                retry_after=RETRY_AFTER_SECONDS,
            )
        shape = (layers, 2, self._config.kv_heads, positions, self._config.head_dim)
        try:
            data = torch.empty(shape, dtype=self._dtype, device=self._device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises it bare
            raise BusyError(
                "the device is out of memory for a new session; try again later", retry_after=RETRY_AFTER_SECONDS
            ) from error
        self.used_bytes += size
        return KvCache(self, data, size)

    def _give_back(self, size: int) -> None:
        self.used_bytes -= size


class KvCache:
    """Keys and values of one session at one stage. ``length`` positions are valid."""

    def __init__(self, pool: KvPool, data: torch.Tensor, size: int) -> None:
        self._pool: KvPool | None = pool
        self._size = size
        self._data = data
        self._keys = data[:, 0].transpose(-1, -2)
        self._values = data[:, 1]
        self.positions: int = data.shape[3]
        self.length = 0

    def window(self, position: int, count: int) -> KvWindow:
        """The views for ``count`` positions from ``position`` on; positions beyond are forgotten.

        Raises ProtocolError when the step leaves a gap or goes beyond the lease.
        """
        stop = position + count
        if count < 1 or not 0 <= position <= self.length:
            raise ProtocolError(f"a step of {count} at position {position} does not follow {self.length} positions")
        if stop > self.positions:
            raise ProtocolError(f"position {stop} is beyond the {self.positions} reserved; open a new session")
        self.length = position
        return KvWindow(
            self._data[:, :, :, position:stop].unbind(0),
            self._keys[:, :, :, :stop].unbind(0),
            self._values[:, :, :stop].unbind(0),
        )

    def truncate(self, position: int) -> None:
        """Forget what follows ``position``."""
        if not 0 <= position <= self.length:
            raise ProtocolError(f"cannot truncate to position {position}: only {self.length} are held")
        self.length = position

    def close(self) -> None:
        """Give the memory back. Views that a running step holds stay valid until it ends."""
        if self._pool is not None:
            self._pool._give_back(self._size)
            self._pool = None
            self._data = self._keys = self._values = torch.empty(0)
            self.length = self.positions = 0
