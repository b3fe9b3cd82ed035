"""A model folder in Hugging Face layout: what may be published from it, and the safetensors files it is made of.

Only safetensors are read. Pickle files are never opened: reading one runs whatever code its author put in it. Links
(a Hugging Face cache keeps blobs behind them) are followed for reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swarm.architecture import MAX_CONFIG, ModelConfig, parse_config
from swarm.errors import ModelFolderError, ProtocolError
from swarm.layout import LayoutError
from swarm.manifest import OBJECT_NAMES
from swarm.metadata import PieceHasher, TorrentFile, check_file_name
from swarm.safetensors_header import LENGTH_SIZE, header_size, parse_header
from swarm.strict_json import decode_object
from swarm.units import Layout, units_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_INDEX = 32 * 2**20
MAX_OBJECT = 32 * 2**20  # the limit of an object served by hash
READ_SIZE = 4 * 2**20  # bytes hashed between two reports of progress

_LICENCE_LINE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9.+_-]{1,64})[\"']?\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """One safetensors file with its header."""

    name: str
    size: int
    header: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder that can be published. Made by `open_model_folder`."""

    path: Path
    config: bytes
    model: ModelConfig
    files: tuple[FolderFile, ...]
    layout: Layout
    objects: dict[str, bytes]
    """Tokenizer and template files by name."""
    licence: str
    """From the front matter of README.md; ``unknown`` without one."""

    @property
    def size(self) -> int:
        """Bytes of all safetensors files."""
        return sum(file.size for file in self.files)

    @property
    def smallest_layer(self) -> int:
        """Bytes of the smallest layer: the least that is ever placed on a worker."""
        ranges = self.layout.ranges()
        return min(sum(item.size for item in ranges[f"layer.{index}"]) for index in range(self.model.layers))


def open_model_folder(path: Path) -> ModelFolder:
    """Read and check a model folder, without reading its tensors.

    Raises `ModelFolderError` naming the file and what to do.
    """
    if not path.is_dir():
        raise ModelFolderError(f"{path} is not a folder; name a model folder in Hugging Face layout")
    names = _weight_names(path)
    config = _read(path / "config.json", MAX_CONFIG)
    try:
        model = parse_config(config)
    except LayoutError as error:
        raise ModelFolderError(f"{path / 'config.json'} {error}") from error
    files = tuple(_folder_file(path / name) for name in names)
    try:
        layout = units_of(model, [parse_header(file.header, file_size=file.size) for file in files])
    except LayoutError as error:
        raise ModelFolderError(f"{path} {error}") from error
    return ModelFolder(
        path=path,
        config=config,
        model=model,
        files=files,
        layout=layout,
        objects={name: _read(path / name, MAX_OBJECT) for name in OBJECT_NAMES if (path / name).exists()},
        licence=_licence(path / "README.md"),
    )


def hash_file(folder: ModelFolder, file: FolderFile, piece_length: int, on_bytes: Callable[[int], None]) -> TorrentFile:
    """Hash one file for a torrent; ``on_bytes`` is told how many bytes each step did.

    Runs at about 1.4 GB/s per core and keeps no lock while it hashes: call it in a thread. Raises `ModelFolderError`
    if the file changed since the folder was opened.
    """
    path = folder.path / file.name
    hasher = PieceHasher(size=file.size, piece_length=piece_length)
    buffer = bytearray(READ_SIZE)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as stream:
            head = b""
            while count := stream.readinto(view):
                if len(head) < len(file.header):
                    head += bytes(view[: min(count, len(file.header) - len(head))])
                hasher.update(view[:count])
                on_bytes(count)
        root, layer = hasher.finish()
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelFolderError(f"{path} changed while it was published; try again when nobody writes to it") from error
    if head != file.header:
        raise ModelFolderError(f"{path} changed while it was published; try again when nobody writes to it")
    return TorrentFile(name=file.name, size=file.size, root=root, layer=layer)


def _weight_names(path: Path) -> list[str]:
    """The model's safetensors files in order of their names."""
    if (path / INDEX).exists():
        return _indexed_names(path / INDEX)
    found = sorted(item.name for item in path.iterdir() if item.suffix == ".safetensors")
    if SINGLE in found:
        return [SINGLE]
    if len(found) == 1:
        return [_checked_name(path, found[0])]
    if found:
        raise ModelFolderError(f"{path} has {len(found)} safetensors files but no {INDEX}; add the index")
    pickles = sorted(item.name for item in path.iterdir() if item.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelFolderError(
            f"{path} holds pickle files ({pickles[0]}), which are never opened; save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise ModelFolderError(f"{path} holds no .safetensors file; name a model folder in Hugging Face layout")


def _indexed_names(index: Path) -> list[str]:
    try:
        weights = decode_object(_read(index, MAX_INDEX), limit=MAX_INDEX).get("weight_map")
    except LayoutError as error:
        raise ModelFolderError(f"{index} {error}") from error
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise ModelFolderError(f"{index} has no weight_map from tensors to files; download it again")
    names = sorted(set(weights.values()))
    for name in names:
        _checked_name(index.parent, name)
        if not (index.parent / name).exists():
            raise ModelFolderError(f"{index.parent / name} is named in {INDEX} but missing; download it")
    return names


def _checked_name(path: Path, name: str) -> str:
    try:
        check_file_name(name)
    except ProtocolError as error:
        raise ModelFolderError(f"{path} names a file {name[:64]!r}; rename it like model.safetensors") from error
    return name


def _folder_file(path: Path) -> FolderFile:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = stream.read(LENGTH_SIZE)
            header = length + stream.read(header_size(length, file_size=size) - LENGTH_SIZE)
        parse_header(header, file_size=size)
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    except LayoutError as error:
        raise ModelFolderError(f"{path} {error}") from error
    return FolderFile(name=path.name, size=size, header=header)


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise ModelFolderError(f"{path} is over the limit of {limit} bytes")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path} is missing; name a model folder in Hugging Face layout") from error
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error


def _licence(readme: Path) -> str:
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")[:65536]
    except OSError:
        return "unknown"
    parts = text.split("---\n", 2)
    found = _LICENCE_LINE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return found.group(1) if found else "unknown"
