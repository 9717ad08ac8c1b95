"""The certificates of a control plane: one authority, one serving certificate, one client certificate for each user.

The private keys live in the cluster's state folder, readable by its user alone, and go with it.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAMES = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
_YEAR = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that keeps what it issues in ``folder``."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def create(folder: Path) -> Authority:
        """A new authority, with ``ca.crt`` and the key pair that signs service account tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("trainwright-tests")
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_key(folder / "service-accounts.key", ec.generate_private_key(ec.SECP256R1()))
        return Authority(folder, key, certificate)

    def issue_server(self, stem: str) -> None:
        """A certificate for 127.0.0.1, ``localhost`` and the names of the API server's Service."""
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names = x509.SubjectAlternativeName([*map(x509.DNSName, _NAMES), *addresses])
        self._issue(stem, _name(stem), ExtendedKeyUsageOID.SERVER_AUTH, names)

    def issue_client(self, stem: str, user: str, group: str | None = None) -> None:
        """A certificate by which the API server knows ``user``."""
        self._issue(stem, _name(user, group), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, stem: str, subject: x509.Name, usage: x509.ObjectIdentifier, names: x509.ExtensionType | None = None
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self.certificate.subject, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        _write_key(self.folder / f"{stem}.key", key)
        (self.folder / f"{stem}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _name(common: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _YEAR)
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
