"""The manifest: a publisher's signed description of one model, canonical to the byte (bencode, BEP 3).

It carries what a client or worker needs before it fetches a byte of weights: the configuration, every file's size,
BEP 52 pieces root and safetensors header, and so where each unit of placement lies. All of it is derived again from
the headers and the configuration when a manifest is read, so a publisher cannot sign a layout that lies.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from swarm import codec
from swarm.architecture import ModelConfig, parse_config
from swarm.errors import ProtocolError, UsageError
from swarm.identity import SIGNATURE_SIZE, Identity, domain_tag, verify_record
from swarm.ids import ContentHash, InfoHash, ManifestId, PeerId
from swarm.layout import ByteRange, LayoutError, merge_ranges
from swarm.metadata import HASH_SIZE, MAX_FILES, TorrentMetadata, check_file_name, info_hash, is_piece_length
from swarm.safetensors_header import MAX_FILE, parse_header
from swarm.units import EMBED_UNIT, HEAD_UNIT, NORM_UNIT, Layout, TensorEntry, unit_names, units_of

MANIFEST_TAG = domain_tag("swarm-model/v1")
MAX_MANIFEST = 32 * 2**20  # an object served by hash is at most this; headers of large models take a few MB
MANIFEST_VERSION = 1
WIRE_VERSION = 1
MAX_OBJECTS = 16
UINT64_MAX = 2**64 - 1

OBJECT_NAMES = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

_NAME = re.compile(r"(?=[._-]*[a-z0-9])[a-z0-9._-]{1,64}")  # never "." or "..": it becomes part of a path
_LICENCE = re.compile(r"[A-Za-z0-9.+ ()_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One safetensors file: its BEP 52 pieces root, and its first bytes (8-byte length and JSON header)."""

    name: str
    size: int
    root: bytes
    header: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of placement and where its bytes lie: merged ranges, offsets from each file's first byte."""

    name: str
    ranges: tuple[ByteRange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model as published. Raises `ProtocolError` when any two of its parts do not agree."""

    name: str
    revision: int
    """Rises with every change that is published under the same name."""
    publisher: PeerId
    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    context: int
    dtype: str
    wire_dtype: str
    """Activations between workers: F32 for an F32 model, BF16 for others."""
    config: bytes
    """The raw bytes of config.json; the only place where floats live."""
    files: tuple[ModelFile, ...]
    """In order of their names, as in the torrent."""
    units: tuple[Unit, ...]
    piece_length: int
    info_hash: InfoHash
    torrent: ContentHash
    """SHA-256 of the .torrent file, which is served by hash."""
    objects: tuple[tuple[str, ContentHash], ...]
    """File name → SHA-256 of tokenizer and template files served by hash, in order of their names."""
    licence: str
    created: int
    """Unix time in seconds."""
    wire_version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        if not is_model_name(self.name):
            raise ProtocolError("a model's name is 1 to 64 of a-z, 0-9, dot, dash and underscore")
        if not _LICENCE.fullmatch(self.licence):
            raise ProtocolError("a licence is an identifier of 1 to 64 characters, such as apache-2.0")
        for key in ("revision", "created", "wire_version"):
            if not 0 <= getattr(self, key) <= UINT64_MAX:
                raise ProtocolError(f"a manifest's {key} is outside 0..{UINT64_MAX}")
        if [name for name, _ in self.objects] != sorted({name for name, _ in self.objects} & set(OBJECT_NAMES)):
            raise ProtocolError(f"a manifest's objects are in order and among {', '.join(OBJECT_NAMES)}")
        self._check_files()
        try:
            config, layout = parse_config(self.config), _layout(self.config, self.files)
        except LayoutError as error:
            raise ProtocolError(f"the manifest of {self.name} {error}") from error
        for key, value in _facts(config, layout).items():
            if getattr(self, key) != value:
                raise ProtocolError(f"the manifest of {self.name} has a {key} that its own files do not give")

    @classmethod
    def describe(
        cls,
        *,
        name: str,
        revision: int,
        publisher: PeerId,
        config: bytes,
        files: tuple[ModelFile, ...],
        torrent: TorrentMetadata,
        objects: dict[str, ContentHash],
        licence: str,
        created: int,
    ) -> Manifest:
        """The manifest of these files: everything that follows from them is filled in."""
        try:
            facts = _facts(parse_config(config), _layout(config, files))
        except LayoutError as error:
            raise ProtocolError(f"the manifest of {name} {error}") from error
        return cls(
            name=name,
            revision=revision,
            publisher=publisher,
            config=config,
            files=files,
            piece_length=torrent.piece_length,
            info_hash=torrent.info_hash,
            torrent=torrent.content_hash,
            objects=tuple(sorted(objects.items())),
            licence=licence,
            created=created,
            **facts,
        )

    def encode(self) -> bytes:
        """The canonical record that is signed."""
        record: dict[bytes, Any] = {b"version": MANIFEST_VERSION}
        for name in _READ:
            record[name.encode("ascii")] = _plain(getattr(self, name))
        return codec.encode(dict(sorted(record.items())))

    @classmethod
    def decode(cls, record: bytes) -> Manifest:
        """Read a record. Raises `ProtocolError` unless it is exactly what `encode` writes."""
        return cls._read(record, _fields(record))

    @classmethod
    def _read(cls, record: bytes, values: dict[bytes, Any]) -> Manifest:
        try:
            manifest = cls(**{name: read(values[name.encode("ascii")]) for name, read in _READ.items()})
        except (ValueError, TypeError) as error:  # a wrong type or size somewhere inside
            raise ProtocolError("a manifest's field has another type or size than its name asks for") from error
        if manifest.encode() != record:
            raise ProtocolError("a manifest is not in canonical form")
        return manifest

    def sign(self, identity: Identity) -> SignedManifest:
        """Sign as the publisher it names. Raises `UsageError` for anybody else's key."""
        if identity.peer_id != self.publisher:
            raise UsageError("a manifest is signed with the key of the publisher it names")
        record = self.encode()
        signed = SignedManifest(manifest=self, signature=identity.sign_record(MANIFEST_TAG, record))
        if len(signed.encode()) > MAX_MANIFEST:
            raise UsageError(f"the manifest of {self.name} is over {MAX_MANIFEST} bytes: it has too many tensors")
        return signed

    @property
    def row_bytes(self) -> int:
        """One position's activations on the wire."""
        return self.hidden * (4 if self.wire_dtype == "F32" else 2)

    def unit(self, name: str) -> Unit:
        """The unit called ``name``. Raises `UsageError` if there is none."""
        for unit in self.units:
            if unit.name == name:
                return unit
        raise UsageError(f"{self.name} has no unit {name}; it has {self.layers} layers")

    def object_hash(self, name: str) -> ContentHash | None:
        """The hash under which the file ``name`` is served, or None if the model has none."""
        return dict(self.objects).get(name)

    def check_torrent(self, raw: bytes) -> TorrentMetadata:
        """The torrent, from bytes a peer served. Raises `ProtocolError` unless it is the one of this manifest."""
        if hashlib.sha256(raw).digest() != self.torrent:
            raise ProtocolError(f"a torrent for {self.name} has another hash than its manifest gives")
        metadata = TorrentMetadata.decode(raw)
        if metadata.info_hash != self.info_hash:
            raise ProtocolError(f"the torrent of {self.name} has another info-hash than its manifest gives")
        return metadata

    def _check_files(self) -> None:
        names = [file.name for file in self.files]
        if not 1 <= len(names) <= MAX_FILES or names != sorted(set(names)):
            raise ProtocolError(f"a manifest has 1 to {MAX_FILES} files in order of their names, each once")
        for file in self.files:
            check_file_name(file.name)
            if not 1 <= file.size <= MAX_FILE or len(file.root) != HASH_SIZE:
                raise ProtocolError(f"file {file.name} has a size outside 1..{MAX_FILE} or a root that is no hash")
        if not is_piece_length(self.piece_length):
            raise ProtocolError(f"piece length {self.piece_length} is not one that a model's torrent may have")
        if self.info_hash != info_hash(tuple((f.name, f.size, f.root) for f in self.files), self.piece_length):
            raise ProtocolError(f"the info-hash of {self.name} does not follow from its files")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedManifest:
    """A manifest with its publisher's signature: the bytes that are served under the manifest id."""

    manifest: Manifest
    signature: bytes

    def encode(self) -> bytes:
        """The canonical bytes."""
        return codec.encode({b"manifest": self.manifest.encode(), b"signature": self.signature})

    @property
    def manifest_id(self) -> ManifestId:
        """SHA-256 of `encode`."""
        return ManifestId(hashlib.sha256(self.encode()).digest())

    @classmethod
    def decode(cls, raw: bytes) -> SignedManifest:
        """Read and verify. Raises `VerificationError` if the publisher it names did not sign it, `ProtocolError` if
        it is malformed, too large, or describes files that do not add up."""
        values = codec.decode(raw, limit=MAX_MANIFEST)
        if not isinstance(values, dict) or values.keys() != {b"manifest", b"signature"}:
            raise ProtocolError("not a signed manifest")
        record, signature = values[b"manifest"], values[b"signature"]
        if not isinstance(record, bytes) or not isinstance(signature, bytes) or len(signature) != SIGNATURE_SIZE:
            raise ProtocolError(f"a signed manifest is a record and a signature of {SIGNATURE_SIZE} bytes")
        opened = _fields(record)
        publisher = opened[b"publisher"]
        if not isinstance(publisher, bytes) or len(publisher) != PeerId.size:
            raise ProtocolError(f"a publisher is a key of {PeerId.size} bytes")
        verify_record(PeerId(publisher), MANIFEST_TAG, record, signature)  # before anything costly is read
        return cls(manifest=Manifest._read(record, opened), signature=signature)


def is_model_name(name: str) -> bool:
    """Whether it can name a model: 1 to 64 of a-z, 0-9, dot, dash and underscore; not only dots."""
    return _NAME.fullmatch(name) is not None


def span_units(manifest: Manifest, start: int, stop: int) -> tuple[str, ...]:
    """The units that layers ``[start, stop)`` need: the first stage also embeds, the last also has norm and head."""
    if not 0 <= start < stop <= manifest.layers:
        raise UsageError(f"{manifest.name} has layers 0 to {manifest.layers}; [{start}, {stop}) is not a span of them")
    layers = unit_names(manifest.layers)[1 + start : 1 + stop]
    first = (EMBED_UNIT,) if start == 0 else ()
    last = (NORM_UNIT, HEAD_UNIT) if stop == manifest.layers else ()
    return (*first, *layers, *last)


def span_tiers(manifest: Manifest, start: int, stop: int) -> tuple[tuple[ByteRange, ...], ...]:
    """The span's byte ranges unit by unit, in the order in which a worker loads them."""
    return tuple(manifest.unit(name).ranges for name in span_units(manifest, start, stop))


def span_ranges(manifest: Manifest, start: int, stop: int) -> tuple[ByteRange, ...]:
    """The span's bytes, merged."""
    return merge_ranges(item for tier in span_tiers(manifest, start, stop) for item in tier)


def span_bytes(manifest: Manifest, start: int, stop: int) -> int:
    """Bytes of weights that the span needs."""
    return sum(item.size for item in span_ranges(manifest, start, stop))


def tensors_of(manifest: Manifest, unit: str) -> tuple[TensorEntry, ...]:
    """The tensors of one unit in the order of their bytes. Raises `UsageError` for an unknown unit."""
    return tensors_by_unit(manifest)[manifest.unit(unit).name]


def tensors_by_unit(manifest: Manifest) -> dict[str, tuple[TensorEntry, ...]]:
    """Every unit's tensors; reads all headers once."""
    return _layout(manifest.config, manifest.files).tensors


def _layout(config: bytes, files: tuple[ModelFile, ...]) -> Layout:
    headers = [parse_header(file.header, file_size=file.size) for file in files]
    return units_of(parse_config(config), headers)


def _facts(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """The fields that follow from configuration and headers."""
    return {
        "architecture": config.architecture,
        "layers": config.layers,
        "hidden": config.hidden,
        "vocabulary": config.vocabulary,
        "context": config.context,
        "dtype": layout.dtype,
        "wire_dtype": "F32" if layout.dtype == "F32" else "BF16",
        "units": tuple(Unit(name=name, ranges=ranges) for name, ranges in layout.ranges().items()),
    }


def _fields(record: bytes) -> dict[bytes, Any]:
    values = codec.decode(record, limit=MAX_MANIFEST)
    names = {name.encode("ascii") for name in _READ} | {b"version"}
    if not isinstance(values, dict) or values.keys() != names or values[b"version"] != MANIFEST_VERSION:
        raise ProtocolError(f"not a manifest of version {MANIFEST_VERSION}; a newer release may read it")
    return values


def _plain(value: Any) -> codec.Value:
    """A field as bencode: records become lists of their fields in order."""
    if isinstance(value, str):
        return value.encode("ascii")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, ModelFile):
        return [value.name.encode("ascii"), value.size, value.root, value.header]
    if isinstance(value, Unit):
        return [value.name.encode("ascii"), _plain(value.ranges)]
    if isinstance(value, ByteRange):
        return [value.file, value.start, value.stop]
    return bytes(value) if isinstance(value, bytes) else int(value)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not an integer")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("not a byte string")
    return value


def _text(value: Any) -> str:
    return _bytes(value).decode("ascii")


def _file(value: Any) -> ModelFile:
    name, size, root, header = value
    return ModelFile(name=_text(name), size=_integer(size), root=_bytes(root), header=_bytes(header))


def _range(value: Any) -> ByteRange:
    file, start, stop = value
    return ByteRange(file=_integer(file), start=_integer(start), stop=_integer(stop))


def _unit(value: Any) -> Unit:
    name, ranges = value
    return Unit(name=_text(name), ranges=tuple(_range(item) for item in _list(ranges)))


def _object(value: Any) -> tuple[str, ContentHash]:
    name, content = value
    return _text(name), ContentHash(_bytes(content))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


_READ: dict[str, Any] = {
    "name": _text,
    "revision": _integer,
    "publisher": lambda value: PeerId(_bytes(value)),
    "architecture": _text,
    "layers": _integer,
    "hidden": _integer,
    "vocabulary": _integer,
    "context": _integer,
    "dtype": _text,
    "wire_dtype": _text,
    "config": _bytes,
    "files": lambda value: tuple(_file(item) for item in _list(value)),
    "units": lambda value: tuple(_unit(item) for item in _list(value)),
    "piece_length": _integer,
    "info_hash": lambda value: InfoHash(_bytes(value)),
    "torrent": lambda value: ContentHash(_bytes(value)),
    "objects": lambda value: tuple(_object(item) for item in _list(value)),
    "licence": _text,
    "created": _integer,
    "wire_version": _integer,
}
