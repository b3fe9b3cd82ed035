"""From verified bytes to tensors, one unit of a model at a time, always through the safetensors library.

A *unit* is the least that is placed on a worker: ``embed``, ``layer.0`` … ``layer.N-1``, ``norm``, ``head``. A source
says which tensors a unit has and hands out byte ranges that it has already checked; here a small safetensors file is
composed from those ranges and parsed by the library, so no tensor is ever built from bytes by hand or from a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import safetensors
import safetensors.torch
import torch

from swarm.architecture import parse_config
from swarm.errors import ModelFolderError
from swarm.layout import LayoutError
from swarm.safetensors_header import LENGTH_SIZE, Header, header_size, parse_header
from swarm.units import TensorEntry, units_of

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


class UnitSource(Protocol):
    """The tensors of a model by unit, and their verified bytes."""

    def tensors(self, unit: str) -> Sequence[TensorEntry]:
        """The tensors of ``unit``; empty when the model has no such unit."""
        ...

    def read(self, file: int, start: int, stop: int) -> bytes | memoryview:
        """Exactly ``stop - start`` bytes of file number ``file``; may block; raises a SwarmError without them."""
        ...


class FolderSource:
    """The units of a local folder in Hugging Face layout: for tests, benchmarks and workers that own the files.

    Raises ModelFolderError for a folder that lacks files or whose files do not fit its configuration.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._files = sorted(self._folder.glob("*.safetensors"))
        if not self._files:
            raise ModelFolderError(f"{self._folder} has no .safetensors file; convert the model to safetensors first")
        headers = [_header(path) for path in self._files]
        try:
            self._units = units_of(parse_config(self.config()), headers).tensors
        except LayoutError as error:
            raise ModelFolderError(f"{self._folder} {error}") from error

    def config(self) -> bytes:
        """The bytes of ``config.json``."""
        try:
            return (self._folder / "config.json").read_bytes()
        except OSError as error:
            raise ModelFolderError(f"{self._folder} has no readable config.json: {error.strerror}") from error

    def tensors(self, unit: str) -> Sequence[TensorEntry]:
        return self._units.get(unit, ())

    def read(self, file: int, start: int, stop: int) -> bytes:
        path = self._files[file]
        try:
            with path.open("rb") as opened:
                opened.seek(start)
                data = opened.read(stop - start)
        except OSError as error:
            raise ModelFolderError(f"cannot read {path.name}: {error.strerror}") from error
        if len(data) != stop - start:
            raise ModelFolderError(f"{path.name} is truncated: it ends before byte {stop}; fetch it again")
        return data


def load_unit(
    source: UnitSource, unit: str, dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """The tensors of one unit by their full names, on ``device``; in ``dtype``, or as stored when it is None.

    Raises ModelFolderError when the unit is missing, has a tensor type that is not supported, or does not parse.
    """
    entries = source.tensors(unit)
    if not entries:
        raise ModelFolderError(f"the model has no tensors for unit {unit!r}; its files are incomplete")
    header: dict[str, Any] = {}
    parts: list[bytes | memoryview] = []
    offset = 0
    for entry in entries:
        if entry.dtype not in TORCH_DTYPES:
            raise ModelFolderError(f"{entry.name} is stored as {entry.dtype}; supported are {', '.join(TORCH_DTYPES)}")
        data = source.read(entry.file, entry.start, entry.stop)
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        parts.append(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors start aligned
    try:
        loaded = safetensors.torch.load(b"".join([len(head).to_bytes(8, "little"), head, *parts]))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ModelFolderError(f"unit {unit!r} is not valid safetensors: {error}") from error
    if len(loaded) != len(entries):
        raise ModelFolderError(f"unit {unit!r} names a tensor twice; its files are malformed")
    return {name: tensor.to(device=device, dtype=dtype or tensor.dtype) for name, tensor in loaded.items()}


def _header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            prefix = opened.read(LENGTH_SIZE)
            prefix += opened.read(header_size(prefix, file_size=size) - LENGTH_SIZE)
        return parse_header(prefix, file_size=size)
    except LayoutError as error:
        raise ModelFolderError(f"{path.name} {error}") from error
    except OSError as error:
        raise ModelFolderError(f"cannot read {path.name}: {error.strerror}") from error
