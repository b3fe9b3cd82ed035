"""What serving needs of an engine: stages that take steps, and what the device has room for. No torch here.

`worker.service` and `worker.ring` know engines by these protocols alone; `worker.engine` is the native one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.messages import Sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token; log-probabilities are those of the model's own distribution, before bias and temperature."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInput:
    """A step: ``count`` positions from ``position`` on, as token ids at the first stage, as activations elsewhere."""

    position: int
    count: int
    ids: tuple[int, ...] | None = None
    hidden: bytes | memoryview | None = None
    """[count, hidden] in the wire dtype, little-endian."""
    sample: bool = False
    """Draw the token that follows the last position; only where the model ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What goes to the next stage, or the draw. Both are None at the last stage of a step that draws nothing."""

    hidden: bytes | None = None
    draw: Draw | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the device is and has room for at this moment."""

    device: str
    """torch's name: cpu, cuda, mps, xpu."""
    device_name: str
    memory_bytes: int
    kv_positions_free: int
    """Positions of the whole span that still fit."""
    threads: int
    queue: int
    """Steps that wait or run."""


class Stage(Protocol):
    """Layers [start, stop) reserved for one session, until ``close``."""

    async def forward(self, step: StageInput) -> StageOutput:
        """Run one step; steps of one stage run in the order they were asked for. A position passed truncates to it.

        Raises ProtocolError for a step that breaks the rules, BusyError when the device is out of memory, ClosedError.
        """
        ...

    def close(self) -> None:
        """Free what the session held. Idempotent."""
        ...


class Engine(Protocol):
    """The device of one worker, serving stages of one span."""

    def open_stage(
        self,
        start: int,
        stop: int,
        max_positions: int,
        sampling: Sampling | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> Stage:
        """Reserve a stage of layers [start, stop) for one session.

        ``sampling`` is for the stage that ends the model; ``prompt_ids`` only matter to its penalties. Raises BusyError
        when ``max_positions`` do not fit, UsageError for a range or settings that cannot be served.
        """
        ...

    def capacity(self) -> Capacity:
        """A snapshot; costs microseconds."""
        ...
