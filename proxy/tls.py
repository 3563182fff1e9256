"""A certificate authority of one's own and a server certificate, for a proxy without a public name.

Newer AWS SDKs send bearer keys over https only, also to this machine (botocore >= 1.44). `tollhouse tls
init` makes what that needs:

    ca.pem          what clients trust          ca-key.pem     signs the next server certificate
    ca-bundle.pem   the system's CAs and ours   certificate.pem, key.pem   for TOLLHOUSE_TLS_*
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.errors import ConfigurationError

CA_DAYS = 3650
#: longest life of a server certificate that every client accepts
SERVER_DAYS = 397
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
#: clocks of clients may be behind
_EARLIER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the parts are."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca-key.pem"

    @property
    def bundle(self) -> Path:
        return self.folder / "ca-bundle.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"


def init(folder: Path, hosts: Iterable[str] = (), *, days: int = SERVER_DAYS) -> Files:
    """Make a server certificate for this machine's names and `hosts`, signed by the folder's CA, which
    is made too when there is none yet. Clients that trust the CA trust the next certificate as well.

    Raises `ConfigurationError` for a name that cannot stand in a certificate, or a CA that cannot sign.
    """
    files = Files(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [_name(host) for host in dict.fromkeys((*LOCAL_NAMES, *hosts))]
    if files.ca.exists() and files.ca_key.exists():
        ca, ca_key = _kept(files)
    else:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _ca(ca_key)
        _write(files.ca_key, _private(ca_key), 0o600)
        _write(files.ca, _pem(ca), 0o644)
    _write(files.bundle, _system() + _pem(ca), 0o644)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server(key, names, ca, ca_key, days)
    _write(files.key, _private(key), 0o600)
    _write(files.certificate, _pem(certificate) + _pem(ca), 0o644)
    return files


def beside(certificate: str) -> Files | None:
    """The folder that `init` made, given its certificate; None for a certificate from elsewhere."""
    files = Files(Path(certificate).resolve().parent)
    return files if certificate and files.ca.exists() and files.bundle.exists() else None


def pinned(certificate: str) -> ssl.SSLContext:
    """Trusts the server that has this very certificate, whatever it is called, and no other."""
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def ends_at(certificate: str) -> float:
    """Unix time at which the file's first certificate, the server's own, ends. Raises `ConfigurationError`."""
    try:
        return x509.load_pem_x509_certificate(Path(certificate).read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{certificate} cannot be read: {error}") from None


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigurationError(f"{host!r} cannot stand in a certificate") from None


def _kept(files: Files) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        key = serialization.load_pem_private_key(files.ca_key.read_bytes(), None)
    except ValueError as error:
        raise ConfigurationError(f"the CA in {files.folder} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise ConfigurationError(f"{files.ca_key} is not the key of {files.ca}")
    if ca.not_valid_after_utc < datetime.now(UTC) + timedelta(days=1):
        raise ConfigurationError(f"{files.ca} has ended; remove it and its key to make another")
    return ca, key


def _ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tollhouse local CA")])
    return (
        _dated(CA_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName], ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey, days: int,
) -> x509.Certificate:  # fmt: skip
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _dated(days)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tollhouse")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(signer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _dated(days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _system() -> bytes:
    """The CAs this machine trusts, so that a shell that trusts ours still reaches the world."""
    context = ssl.create_default_context()
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True))).encode()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """As a whole or not at all, and never readable by others while it is written."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(temporary).chmod(mode)
    Path(temporary).replace(path)
