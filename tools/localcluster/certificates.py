"""The cluster's certificate authority, and a certificate and kubeconfig for each component.

What each may do follows from its name and groups, as kubeadm gives them:
https://kubernetes.io/docs/setup/best-practices/certificates/
"""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = datetime.timedelta(days=3650)


def write_secret(path: Path, data: bytes) -> None:
    """Writes a file that only its owner reads; never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    part.replace(path)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


class Authority:
    """Signs the cluster's certificates. Its key and all others lie in `folder`; what is there already is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate_file = folder / "ca.crt"
        if not self.certificate_file.exists():
            self._make()
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / 'ca.key'} holds no elliptic-curve key")
        self.key = key
        self.certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localcluster")])
        builder = _begin(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(True, False, True, False, False, True, True, False, False)
        signed = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        write_secret(self.folder / "ca.key", _key_bytes(key))
        write_secret(self.certificate_file, signed.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, file: str, common_name: str, groups: Iterable[str] = (), hosts: Iterable[str | IPv4Address] = ()
    ) -> Path:
        """Makes `file`.crt and `file`.key unless they are there; with `hosts`, for serving too. Returns the first."""
        target = self.folder / f"{file}.crt"
        if target.exists():
            return target
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _begin(subject, self.certificate.subject, key)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        served: list[x509.GeneralName] = [
            x509.IPAddress(h) if isinstance(h, IPv4Address) else x509.DNSName(h) for h in hosts
        ]
        if served:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(x509.SubjectAlternativeName(served), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        signed = builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())
        write_secret(target.with_suffix(".key"), _key_bytes(key))
        write_secret(target, signed.public_bytes(serialization.Encoding.PEM))
        return target

    def signing_key(self, file: str) -> Path:
        """A bare key pair, `file`.key and `file`.pub, for service account tokens. Returns the private one's path."""
        target = self.folder / f"{file}.key"
        if not target.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            form = serialization.PublicFormat.SubjectPublicKeyInfo
            write_secret(target.with_suffix(".pub"), key.public_key().public_bytes(serialization.Encoding.PEM, form))
            write_secret(target, _key_bytes(key))
        return target

    def kubeconfig(self, target: Path, cluster: str, server: str, certificate: Path) -> Path:
        """A kubeconfig that holds all it needs, so that it can be copied."""

        def encoded(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        user = {
            "client-certificate-data": encoded(certificate),
            "client-key-data": encoded(certificate.with_suffix(".key")),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": cluster,
                    "cluster": {"server": server, "certificate-authority-data": encoded(self.certificate_file)},
                }
            ],
            "users": [{"name": certificate.stem, "user": user}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": certificate.stem}}],
            "current-context": cluster,
        }
        write_secret(target, yaml.safe_dump(config, sort_keys=False).encode())
        return target


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    # From an hour ago: another clock, such as a container's, may lag.
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + LIFE)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
