"""The certificate of the progress endpoint: signed by the operator's own CA, stored in one Secret, renewed in time.

Pods verify the endpoint by the CA, which is valid much longer than server certificates, so renewing a server
certificate does not affect pods. The functions are pure except for generating keys; the caller owns the Secret.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
SKEW = timedelta(minutes=5)
"""A pod with a slow clock must not see a certificate that is not valid yet."""

_SIGNING = ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey


@dataclass(frozen=True)
class Certificates:
    """PEM texts: the CA that pods trust, its key, and the server's certificate and key."""

    authority: bytes
    authority_key: bytes
    server: bytes
    server_key: bytes

    def to_secret_data(self) -> dict[str, str]:
        pairs = {
            "ca.crt": self.authority,
            "ca.key": self.authority_key,
            "tls.crt": self.server,
            "tls.key": self.server_key,
        }
        return {name: base64.b64encode(pem).decode() for name, pem in pairs.items()}

    @staticmethod
    def from_secret_data(data: Mapping[str, str]) -> Certificates | None:
        """None if the Secret has no data yet; a part that is missing or not base64 is empty."""
        texts = [data.get(name) or "" for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")]
        return Certificates(*map(_decoded, texts)) if any(texts) else None


def renewed(current: Certificates | None, hosts: list[str], now: datetime) -> Certificates:
    """``current`` if it is valid for ``hosts`` long enough; else a new server certificate, and a new CA if it is due.

    Running pods trust the current CA, so it is kept as long as it can sign.
    """
    if current is not None and not flaw(current) and _serves(current, hosts, now):
        return current
    if current is None or _flaw_of_authority(current) or _expiry(current.authority) - now < SERVER_LIFETIME:
        authority, authority_key = _authority(now)
    else:
        authority, authority_key = current.authority, current.authority_key
    server, server_key = _server(authority, authority_key, hosts, now)
    return Certificates(authority, authority_key, server, server_key)


def flaw(current: Certificates) -> str:
    """Why the certificates cannot be used, such as after a manual edit; empty if they can."""
    wrong = _flaw_of_authority(current) or _flaw_of_pair("tls", current.server, current.server_key)
    if wrong:
        return wrong
    server, authority = map(x509.load_pem_x509_certificate, (current.server, current.authority))
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "tls.crt is not issued by ca.crt"
    return ""


def _flaw_of_authority(current: Certificates) -> str:
    wrong = _flaw_of_pair("ca", current.authority, current.authority_key)
    if wrong or isinstance(serialization.load_pem_private_key(current.authority_key, None), _SIGNING):
        return wrong
    return "ca.key is neither an RSA key nor one of an elliptic curve"


def _flaw_of_pair(name: str, certificate: bytes, key: bytes) -> str:
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return f"{name}.crt is no PEM of a certificate"
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{name}.key is no PEM of a private key that is not encrypted"
    return "" if private.public_key() == public else f"{name}.key is not the key of {name}.crt"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _serves(current: Certificates, hosts: list[str], now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(current.server)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return set(hosts) <= set(names.get_values_for_type(x509.DNSName)) and _expiry(current.server) - now > RENEW_BEFORE


def _expiry(pem: bytes) -> datetime:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _authority(now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainwright progress authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _server(authority: bytes, authority_key: bytes, hosts: list[str], now: datetime) -> tuple[bytes, bytes]:
    issuer = x509.load_pem_x509_certificate(authority)
    issuer_key = serialization.load_pem_private_key(authority_key, None)
    assert isinstance(issuer_key, _SIGNING)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    certificate = (
        _builder(name, issuer.subject, key.public_key(), now, SERVER_LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    start = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - SKEW)
        .not_valid_after(start + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
