"""TLS 1.3 with self-signed Ed25519 certificates, pinned to the peer's key.

The certificate says nothing but its key, and nothing in it is trusted but that key: TLS proves that the called side
holds it, and the caller compares it with the peer id it meant to reach. There is no authority and no name to check.
"""

from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from swarm.errors import VerificationError
from swarm.identity import Identity
from swarm.ids import PeerId

ALPN = "swarm/1"
# Certificates are made at every start and never checked for dates; these are the widest X.509 allows comfortably.
_NOT_BEFORE = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)


def server_context(identity: Identity) -> ssl.SSLContext:
    """The context of a side that is called: presents a certificate of ``identity``'s key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.num_tickets = 0  # no resumption: a connection is long-lived, and a ticket would outlive its key
    key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    with tempfile.TemporaryDirectory(prefix="swarm-tls-") as folder:  # mode 0700; ssl reads keys from files alone
        path = Path(folder) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + _certificate(key)
        )
        context.load_cert_chain(path)
    return context


def client_context() -> ssl.SSLContext:
    """The context of a caller. It verifies no chain: `remote_key` gives the proven key, which the caller must check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def remote_key(certificate: bytes | None) -> PeerId:
    """The Ed25519 key in a DER certificate that TLS has verified possession of.

    Raises `VerificationError` for any other kind of certificate.
    """
    if certificate is None:
        raise VerificationError("the peer presented no certificate")
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise VerificationError("the peer's certificate cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise VerificationError("the peer's certificate has no Ed25519 key")
    return PeerId(key.public_bytes_raw())


def _certificate(key: Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-inference peer")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(key, None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
