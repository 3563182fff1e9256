"""The local CA: what it signs is accepted by a strict client, and it survives a renewal."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from proxy import tls
from proxy.errors import ConfigurationError


def handshake(client: ssl.SSLContext, files: tls.Files, name: str) -> str | None:
    """The protocol agreed on over a pair of sockets. Raises what the client raises."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as wrapped:
            return wrapped.version()
    finally:
        near.close()
        thread.join(5)


@pytest.fixture
def files(tmp_path: Path) -> tls.Files:
    return tls.init(tmp_path / "tls", ["bedrock.internal", "10.1.2.3"])


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "bedrock.internal", "10.1.2.3"])
def test_a_strict_client_accepts_it_under_every_name(files, name):
    for trusted in (files.ca, files.bundle):
        client = ssl.create_default_context(cafile=trusted)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        assert handshake(client, files, name) == "TLSv1.3"


def test_nobody_else_is_trusted_and_no_other_name(files, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ssl.create_default_context(), files, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ssl.create_default_context(cafile=files.ca), files, "example.org")
    other = tls.init(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.pinned(str(other.certificate)), files, "localhost")


def test_a_pinned_certificate_is_trusted_by_any_name(files):
    assert handshake(tls.pinned(str(files.certificate)), files, "example.org") == "TLSv1.3"


def test_keys_are_private_and_the_ca_stays(files):
    assert [stat.S_IMODE(p.stat().st_mode) for p in (files.ca_key, files.key, files.folder)] == [
        0o600, 0o600, 0o700,
    ]  # fmt: skip
    ca, first = files.ca.read_bytes(), files.certificate.read_bytes()
    tls.init(files.folder, days=10)
    assert files.ca.read_bytes() == ca
    assert files.certificate.read_bytes() != first
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 10
    assert handshake(ssl.create_default_context(cafile=files.ca), files, "localhost")


def test_what_cannot_be_used_is_refused(files, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot stand in a certificate"):
        tls.init(tmp_path / "bad", ["münchen.example"])
    files.ca_key.write_bytes(tls.init(tmp_path / "other").ca_key.read_bytes())
    with pytest.raises(ConfigurationError, match="is not the key of"):
        tls.init(files.folder)


def test_a_certificate_from_elsewhere_has_no_ca_beside_it(files, tmp_path):
    assert tls.beside(str(files.certificate)) == tls.Files(files.folder.resolve())
    (tmp_path / "lone.pem").write_bytes(files.certificate.read_bytes())
    assert tls.beside(str(tmp_path / "lone.pem")) is None
    assert tls.beside("") is None
