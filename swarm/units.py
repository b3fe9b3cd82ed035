"""Units of placement: what a worker's span is made of, and where their bytes lie.

In order: ``embed``, ``layer.0`` … ``layer.N-1``, ``norm``, ``head``. With tied embeddings the head is the embedding's
bytes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.architecture import EMBEDDING, HEAD, IGNORED_IN_LAYER, LAYER_PREFIX, NORM, ModelConfig, layer_shapes
from swarm.layout import ByteRange, LayoutError, merge_ranges
from swarm.safetensors_header import Header

EMBED_UNIT = "embed"
NORM_UNIT = "norm"
HEAD_UNIT = "head"
WEIGHT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a model: bytes ``[start, stop)`` of file number ``file``, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model's tensors sorted into units."""

    dtype: str
    """The one dtype of all weights."""
    tensors: dict[str, tuple[TensorEntry, ...]]
    """Unit name → its tensors in the order of their bytes; units in their order of placement."""

    def ranges(self) -> dict[str, tuple[ByteRange, ...]]:
        """Unit name → its bytes, merged."""
        return {
            unit: merge_ranges(ByteRange(file=entry.file, start=entry.start, stop=entry.stop) for entry in entries)
            for unit, entries in self.tensors.items()
        }


def unit_names(layers: int) -> tuple[str, ...]:
    """All units of a model with this many layers, in order."""
    return (EMBED_UNIT, *(f"layer.{index}" for index in range(layers)), NORM_UNIT, HEAD_UNIT)


def units_of(config: ModelConfig, headers: Sequence[Header]) -> Layout:
    """Sort the tensors of all files into units.

    Raises `LayoutError` if a tensor is missing, there twice, has another shape than the config gives, has no place in
    the architecture, or if the weights have more than one dtype.
    """
    found = _collect(headers)
    tensors: dict[str, tuple[TensorEntry, ...]] = {}
    dtypes: set[str] = set()
    for unit, shapes in _expected(config).items():
        entries = []
        for name, shape in shapes.items():
            entry = found.get(name)
            if entry is None:
                raise LayoutError(f"lacks tensor {name}, which a {config.architecture} needs")
            if entry.shape != shape:
                raise LayoutError(f"has {name} of shape {list(entry.shape)} where config.json says {list(shape)}")
            entries.append(entry)
            dtypes.add(entry.dtype)
        tensors[unit] = tuple(sorted(entries, key=lambda entry: (entry.file, entry.start)))
    placed = {entry.name for entries in tensors.values() for entry in entries}
    for name in found.keys() - placed:
        if not (name == HEAD and config.tied) and not _ignored(name, config.layers):
            raise LayoutError(f"has tensor {name}, which has no place in a {config.architecture}")
    if len(dtypes) != 1 or not dtypes <= set(WEIGHT_DTYPES):
        raise LayoutError(f"has weights of dtype {', '.join(sorted(dtypes))}; all of one of {', '.join(WEIGHT_DTYPES)}")
    return Layout(dtype=dtypes.pop(), tensors=tensors)


def _collect(headers: Sequence[Header]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for file, header in enumerate(headers):
        for entry in header.entries:
            if entry.name in found:
                raise LayoutError(f"has tensor {entry.name} twice")
            found[entry.name] = TensorEntry(
                name=entry.name,
                dtype=entry.dtype,
                shape=entry.shape,
                file=file,
                start=entry.start,
                stop=entry.stop,
            )
    return found


def _expected(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Unit → full tensor name → shape."""
    table = (config.vocabulary, config.hidden)
    shapes = layer_shapes(config)
    units: dict[str, dict[str, tuple[int, ...]]] = {EMBED_UNIT: {EMBEDDING: table}}
    for index in range(config.layers):
        units[f"layer.{index}"] = {f"{LAYER_PREFIX}{index}.{name}": shape for name, shape in shapes.items()}
    units[NORM_UNIT] = {NORM: (config.hidden,)}
    units[HEAD_UNIT] = {EMBEDDING if config.tied else HEAD: table}
    return units


def _ignored(name: str, layers: int) -> bool:
    """Whether it is a tensor of a layer that follows from the configuration."""
    if not name.startswith(LAYER_PREFIX):
        return False
    index, _, rest = name.removeprefix(LAYER_PREFIX).partition(".")
    return rest in IGNORED_IN_LAYER and index.isdecimal() and int(index) < layers
