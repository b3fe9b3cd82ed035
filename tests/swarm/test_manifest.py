from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import codec
from swarm.errors import ProtocolError, RemoteError, UsageError, VerificationError
from swarm.identity import Identity
from swarm.ids import ContentHash
from swarm.layout import ByteRange
from swarm.manifest import (
    MANIFEST_TAG,
    Manifest,
    ModelFile,
    SignedManifest,
    Unit,
    span_bytes,
    span_ranges,
    span_tiers,
    span_units,
    tensors_by_unit,
    tensors_of,
)
from swarm.metadata import TorrentFile, TorrentMetadata
from swarm.model_folder import hash_file, open_model_folder
from tests.tiny_models import write_model

PUBLISHER = Identity(bytes(range(32)))
PIECE = 32 * 1024


@pytest.fixture(scope="module")
def torrent_and_manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorrentMetadata, Manifest]:
    folder = open_model_folder(write_model(tmp_path_factory.mktemp("model"), shards=2))
    files = tuple(hash_file(folder, file, PIECE, lambda count: None) for file in folder.files)
    torrent = TorrentMetadata(files=files, piece_length=PIECE)
    manifest = Manifest.describe(
        name="tiny-1.0_b",
        revision=3,
        publisher=PUBLISHER.peer_id,
        config=folder.config,
        files=tuple(
            ModelFile(name=file.name, size=file.size, root=hashed.root, header=file.header)
            for file, hashed in zip(folder.files, files, strict=True)
        ),
        torrent=torrent,
        objects={"tokenizer.json": ContentHash(bytes(32)), "chat_template.jinja": ContentHash(bytes(32))},
        licence="apache-2.0",
        created=1_700_000_000,
    )
    return torrent, manifest


@pytest.fixture(scope="module")
def manifest(torrent_and_manifest: tuple[TorrentMetadata, Manifest]) -> Manifest:
    return torrent_and_manifest[1]


@pytest.fixture(scope="module")
def raw(manifest: Manifest) -> bytes:
    return manifest.sign(PUBLISHER).encode()


def resigned(manifest: Manifest, identity: Identity = PUBLISHER, **fields: Any) -> bytes:
    """The manifest with other bencoded fields, signed as it then is."""
    record: Any = codec.decode(manifest.encode(), limit=2**20)
    record |= {key.encode(): value for key, value in fields.items()}
    body = codec.encode(dict(sorted(record.items())))
    return codec.encode({b"manifest": body, b"signature": identity.sign_record(MANIFEST_TAG, body)})


def test_a_signed_manifest_is_read_back(manifest: Manifest, raw: bytes) -> None:
    signed = SignedManifest.decode(raw)
    assert signed.manifest == manifest
    assert signed.encode() == raw
    assert signed.manifest_id == hashlib.sha256(raw).digest()
    assert Manifest.decode(manifest.encode()) == manifest
    assert (manifest.dtype, manifest.wire_dtype, manifest.layers) == ("F32", "F32", 12)
    assert manifest.object_hash("tokenizer.json") == bytes(32)
    assert manifest.object_hash("generation_config.json") is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_refused(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    damaged[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((ProtocolError, VerificationError)):
        SignedManifest.decode(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_record_with_any_damage_gives_a_typed_error_even_if_signed(manifest: Manifest, data: st.DataObject) -> None:
    record = manifest.encode()
    at = data.draw(st.integers(0, len(record)))
    damaged = record[:at] + data.draw(st.binary(max_size=6)) + record[at + data.draw(st.integers(0, 6)) :]
    signature = PUBLISHER.sign_record(MANIFEST_TAG, damaged)
    try:
        read = SignedManifest.decode(codec.encode({b"manifest": damaged, b"signature": signature}))
    except RemoteError:
        return
    assert read.manifest.encode() == damaged


@given(st.binary(max_size=300))
def test_any_bytes_give_a_typed_error(junk: bytes) -> None:
    with pytest.raises(ProtocolError):
        SignedManifest.decode(junk)


def test_another_publishers_signature_is_refused(manifest: Manifest) -> None:
    stranger = Identity(bytes(32))
    with pytest.raises(VerificationError):
        SignedManifest.decode(resigned(manifest, stranger))
    with pytest.raises(UsageError):
        manifest.sign(stranger)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 11),
        ("hidden", 97),
        ("vocabulary", 1),
        ("context", 2048),
        ("dtype", b"BF16"),
        ("wire_dtype", b"BF16"),
        ("architecture", b"Qwen2ForCausalLM"),
        ("architecture", b"\xff"),
        ("name", b"../tiny"),
        ("name", b".."),
        ("name", b""),
        ("name", 7),
        ("licence", b"MIT\n"),
        ("revision", -1),
        ("revision", b"1"),
        ("created", 2**64),
        ("publisher", bytes(31)),
        ("info_hash", bytes(32)),
        ("torrent", bytes(31)),
        ("piece_length", 3),
        ("piece_length", 2 * PIECE),
        ("files", []),
        ("files", [[b"model.safetensors", 5]]),
        ("files", [7]),
        ("files", b"x"),
        ("units", []),
        ("units", {}),
        ("units", [[b"embed", [[0, 5, 4]]]]),
        ("objects", [[b"evil.py", bytes(32)]]),
        ("objects", [[b"tokenizer.json", bytes(32)], [b"chat_template.jinja", bytes(32)]]),
        ("config", b"{}"),
        ("config", b"{"),
        ("version", 2),
        ("extra", 1),
    ],
)
def test_a_signed_lie_is_refused(manifest: Manifest, field: str, value: Any) -> None:
    SignedManifest.decode(resigned(manifest))
    with pytest.raises(ProtocolError):
        SignedManifest.decode(resigned(manifest, **{field: value}))


def test_units_that_differ_from_the_headers_are_refused(manifest: Manifest) -> None:
    first = manifest.units[1]
    moved = ByteRange(file=first.ranges[0].file, start=first.ranges[0].start + 4, stop=first.ranges[0].stop + 4)
    units = (manifest.units[0], Unit(name=first.name, ranges=(moved, *first.ranges[1:])), *manifest.units[2:])
    with pytest.raises(ProtocolError, match="units"):
        replace(manifest, units=units)
    with pytest.raises(ProtocolError, match="units"):
        replace(manifest, units=manifest.units[:-1])


def test_a_header_that_lies_is_refused(manifest: Manifest) -> None:
    file = manifest.files[0]
    lying = replace(file, header=file.header.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ProtocolError):
        replace(manifest, files=(lying, *manifest.files[1:]))
    with pytest.raises(ProtocolError):
        replace(manifest, files=(replace(file, size=file.size + 1), *manifest.files[1:]))


def test_spans_have_their_ends(manifest: Manifest) -> None:
    assert span_units(manifest, 0, 2) == ("embed", "layer.0", "layer.1")
    assert span_units(manifest, 3, 5) == ("layer.3", "layer.4")
    assert span_units(manifest, 10, 12) == ("layer.10", "layer.11", "norm", "head")
    assert span_units(manifest, 0, 12) == tuple(unit.name for unit in manifest.units)
    for start, stop in ((-1, 1), (0, 13), (4, 4), (5, 4)):
        with pytest.raises(UsageError):
            span_units(manifest, start, stop)


def test_span_bytes_add_up_to_the_model(manifest: Manifest) -> None:
    cuts = [(0, 4), (4, 9), (9, 12)]
    assert sum(span_bytes(manifest, *cut) for cut in cuts) == span_bytes(manifest, 0, 12)
    headers = sum(len(file.header) for file in manifest.files)
    assert span_bytes(manifest, 0, 12) == sum(file.size for file in manifest.files) - headers
    assert len(span_tiers(manifest, 4, 9)) == 5
    assert len(span_ranges(manifest, 1, 3)) == 2, "layers 10 and 11 lie between 1 and 2"


def test_tensors_lie_in_the_ranges_of_their_unit(manifest: Manifest) -> None:
    assert tensors_of(manifest, "layer.4") == tensors_by_unit(manifest)["layer.4"]
    for unit in manifest.units:
        for tensor in tensors_of(manifest, unit.name):
            assert any(
                item.file == tensor.file and item.start <= tensor.start and tensor.stop <= item.stop
                for item in unit.ranges
            )
    with pytest.raises(UsageError, match=r"layer\.12"):
        tensors_of(manifest, "layer.12")


def test_only_its_own_torrent_is_accepted(torrent_and_manifest: tuple[TorrentMetadata, Manifest]) -> None:
    torrent, manifest = torrent_and_manifest
    assert manifest.check_torrent(torrent.encode()) == torrent
    other = TorrentMetadata(
        files=(TorrentFile(name="a.safetensors", size=1, root=bytes(32), layer=b""),), piece_length=PIECE
    )
    with pytest.raises(ProtocolError, match="another hash"):
        manifest.check_torrent(other.encode())
    claimed = replace(manifest, torrent=other.content_hash)
    with pytest.raises(ProtocolError, match="info-hash"):
        claimed.check_torrent(other.encode())


def test_a_half_precision_model_is_wired_as_bf16(tmp_path: Path) -> None:
    folder = open_model_folder(write_model(tmp_path, dtype="F16", tie_word_embeddings=True, num_hidden_layers=1))
    assert folder.layout.dtype == "F16"
    files = tuple(hash_file(folder, file, PIECE, lambda count: None) for file in folder.files)
    manifest = Manifest.describe(
        name="half",
        revision=1,
        publisher=PUBLISHER.peer_id,
        config=folder.config,
        files=tuple(
            ModelFile(name=file.name, size=file.size, root=hashed.root, header=file.header)
            for file, hashed in zip(folder.files, files, strict=True)
        ),
        torrent=TorrentMetadata(files=files, piece_length=PIECE),
        objects={},
        licence="unknown",
        created=0,
    )
    assert manifest.wire_dtype == "BF16"
    assert manifest.unit("head").ranges == manifest.unit("embed").ranges
    assert json.loads(manifest.config)["tie_word_embeddings"] is True
