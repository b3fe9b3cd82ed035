from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import VerificationError
from swarm.identity import Identity
from swarm.tls import ALPN, client_context, remote_key, server_context

SERVER = Identity(b"s" * 32)


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS connection in memory. Raises `ssl.SSLError` when they do not agree."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=None),
    )
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(end.version() for end in ends)
    return ends


def certificate(
    key: Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime.datetime(2000, 1, 1)).not_valid_after(datetime.datetime(2099, 1, 1))
    signs_itself = isinstance(key, Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if signs_itself else hashes.SHA256())


def test_a_caller_learns_the_key_of_the_called_side() -> None:
    server, client = meet(server_context(SERVER), client_context())
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == ALPN
    assert remote_key(client.getpeercert(binary_form=True)) == SERVER.peer_id
    with pytest.raises(VerificationError, match="no certificate"):
        remote_key(server.getpeercert(binary_form=True))


def test_a_stolen_certificate_is_of_no_use_without_its_key(tmp_path: Path) -> None:
    """Its owner's certificate with another key: OpenSSL refuses to load the pair at all."""
    _, client = meet(server_context(SERVER), client_context())
    stolen = client.getpeercert(binary_form=True)
    assert stolen is not None
    (tmp_path / "cert.pem").write_text(ssl.DER_cert_to_PEM_cert(stolen))
    (tmp_path / "key.pem").write_bytes(
        Ed25519PrivateKey.from_private_bytes(b"x" * 32).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_1_2_is_refused(side: str) -> None:
    server, client = server_context(SERVER), client_context()
    old = server if side == "server" else client
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        meet(server, client)


def test_no_session_is_resumed() -> None:
    server, client = meet(server_context(SERVER), client_context())
    server.write(b"x")
    assert client.read() == b"x"
    assert server_context(SERVER).num_tickets == 0
    assert client.session is None or not client.session.has_ticket


def test_the_private_key_stays_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server_context(SERVER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=1024),  # noqa: S505 - never used for anything
        ec.generate_private_key(ec.SECP256R1()),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["rsa", "p256", "ed448"],
)
def test_other_kinds_of_keys_are_refused(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey,
) -> None:
    with pytest.raises(VerificationError, match="no Ed25519 key"):
        remote_key(certificate(key).public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("data", [None, b"", b"\x30\x82", bytes(500)])
def test_what_is_no_certificate_is_refused(data: bytes | None) -> None:
    with pytest.raises(VerificationError, match="the peer"):
        remote_key(data)


KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
DER = certificate(KEY).public_bytes(serialization.Encoding.DER)


@pytest.mark.filterwarnings("ignore")  # cryptography warns of odd certificates; here they all are
@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300)
def test_a_mutated_certificate_gives_a_key_or_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(DER)
    for place, value in changes:
        data[place] = value
    try:
        key = remote_key(bytes(data))
    except VerificationError:
        return
    assert len(key) == 32
