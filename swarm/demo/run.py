"""What one training run is told, and what it counts (no torch)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from swarm.demo.shape import Shape
from swarm.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. ``steps`` fixes the schedule by count; without it ``minutes`` of wall time do.

    ``corpus`` is a folder of ``.py`` files, by default the standard library; ``start`` a folder that an earlier
    run wrote, whose tokenizer and weights this one goes on from; ``bf16`` and ``compiled`` make a step faster.
    """

    out: Path
    minutes: float = 25.0
    steps: int | None = None
    corpus: Path | None = None
    start: Path | None = None
    seed: int = 1
    batch_tokens: int = 8_192
    threads: int = 2
    bf16: bool = True
    compiled: bool = True
    shape: Shape = field(default_factory=Shape)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What training has done so far; ``loss`` is a running mean in nats per token."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    @classmethod
    def of(cls, folder: Path | None) -> Tally:
        """The tally that an earlier run left in ``folder``, or an empty one."""
        if folder is None:
            return cls()
        try:
            record = json.loads((folder / "TRAINING.json").read_text(encoding="utf-8"))
            return cls(steps=record["steps"], tokens=record["tokens_seen"], seconds=record["seconds"])
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} holds no finished training run; name a folder this script wrote") from error
