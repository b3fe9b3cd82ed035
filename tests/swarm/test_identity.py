from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ResourceError, VerificationError
from swarm.identity import Identity, domain_tag, record_message, verify_raw, verify_record
from swarm.ids import PeerId

# RFC 8032, section 7.1, test 3.
SEED = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
PUBLIC = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)
TAG = domain_tag("swarm-test/v1")


def test_keys_and_raw_signatures_are_those_of_rfc_8032() -> None:
    identity = Identity(SEED)
    assert (identity.peer_id, identity.seed) == (PUBLIC, SEED)
    assert identity.sign_raw(b"\xaf\x82") == SIGNATURE
    assert verify_raw(PUBLIC, b"\xaf\x82", SIGNATURE)


def test_a_record_is_signed_as_tag_and_hash() -> None:
    message = record_message(TAG, b"record")
    assert message == b"swarm-test/v1\0\0" + hashlib.sha256(b"record").digest()
    assert len(message) == 47
    assert Identity(SEED).sign_record(TAG, b"record") == Identity(SEED).sign_raw(message)


@given(st.binary(max_size=100), st.integers(0, 511))
def test_one_changed_bit_is_refused(record: bytes, bit: int) -> None:
    identity = Identity(SEED)
    signature = bytearray(identity.sign_record(TAG, record))
    verify_record(identity.peer_id, TAG, record, bytes(signature))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VerificationError, match="did not sign this swarm-test/v1 record") as caught:
        verify_record(identity.peer_id, TAG, record, bytes(signature))
    assert caught.value.peer_id == identity.peer_id


def test_a_signature_counts_under_its_own_tag_and_key_only() -> None:
    identity = Identity(SEED)
    signature = identity.sign_record(TAG, b"record")
    with pytest.raises(VerificationError):
        verify_record(identity.peer_id, domain_tag("swarm-test/v2"), b"record", signature)
    with pytest.raises(VerificationError):
        verify_record(Identity.generate().peer_id, TAG, b"record", signature)


@pytest.mark.parametrize(
    ("signer", "signature"),
    [(PUBLIC[:31], SIGNATURE), (PUBLIC, SIGNATURE[:63]), (PUBLIC, b""), (b"", SIGNATURE), (b"\xff" * 32, SIGNATURE)],
)
def test_malformed_keys_and_signatures_verify_nothing(signer: bytes, signature: bytes) -> None:
    assert not verify_raw(signer, b"\xaf\x82", signature)


def test_a_small_order_key_verifies_nothing() -> None:
    # Under the neutral element any R = [s]B would do; the contract's rule refuses such keys too.
    neutral = b"\1" + bytes(31)
    assert not verify_raw(neutral, b"anything", neutral + bytes(32))


@pytest.mark.parametrize("text", ["", "a" * 16])
def test_tags_have_one_to_fifteen_characters(text: str) -> None:
    with pytest.raises(ValueError, match="1 to 15 characters"):
        domain_tag(text)


def test_a_tag_of_another_size_signs_nothing() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        Identity(SEED).sign_record(b"short", b"record")


def test_a_key_is_made_once_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "peer.key"
    first = Identity.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).peer_id == first.peer_id
    assert list(path.parent.iterdir()) == [path]


def test_many_that_make_the_key_at_once_use_the_same(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: Identity.load(path).seed, range(64)))
    assert made == {path.read_bytes()}
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_key_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot use the key file"):
        Identity.load(tmp_path / "peer.key", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    Identity.load(path)
    path.chmod(0o640)
    with pytest.raises(ResourceError, match=f"chmod 600 {path}"):
        Identity.load(path)


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ResourceError, match=r"damaged \(5 bytes, not 32\)"):
        Identity.load(path)


def test_a_folder_that_is_a_file_is_a_local_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="check the folder"):
        Identity.load(tmp_path / "file" / "peer.key")


def test_generated_keys_differ() -> None:
    assert Identity.generate().peer_id != Identity.generate().peer_id
    assert isinstance(Identity.generate().peer_id, PeerId)
