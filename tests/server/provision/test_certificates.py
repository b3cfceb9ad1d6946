"""The server's certificate, judged by OpenSSL in strict verification and by gRPC."""

import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from federations import Federation

from medfusion.federation.kit import ServerKit

STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN


def provisioned(folder: Path, host: str) -> ServerKit:
    federation = Federation(folder)
    federation.write(address=f"{host}:9092")
    federation.provision(datetime.now(UTC))
    return ServerKit.read(federation.out / "server")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> ServerKit:
    return provisioned(tmp_path_factory.mktemp("named"), "fl.example.org")


def handshake(kit: ServerKit, name: str, authority: Path) -> None:
    """Connect to the server of a kit as a client that looks for a name."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(kit.server_certificate, kit.server_key)
    asking = ssl.create_default_context(cafile=authority)
    asking.verify_flags |= STRICT
    one, other = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(one, server_side=True).close()
        except OSError:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(other, server_hostname=name).close()
    finally:
        other.close()
        thread.join()


@pytest.mark.parametrize("name", ["fl.example.org", "localhost", "127.0.0.1", "::1"])
def test_sites_and_the_servers_own_machine_accept_it(named: ServerKit, name: str) -> None:
    handshake(named, name, named.ca)


@pytest.mark.parametrize("host", ["192.0.2.7", "[2001:db8::7]", "localhost"])
def test_the_host_may_be_an_ip_or_this_machine(tmp_path: Path, host: str) -> None:
    handshake(provisioned(tmp_path, host), host.strip("[]"), tmp_path / "out/sites/italy/ca.pem")


@pytest.mark.parametrize("name", ["example.org", "evil.fl.example.org", "192.0.2.7"])
def test_another_name_is_refused(named: ServerKit, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(named, name, named.ca)


def test_another_federations_sites_refuse_it(named: ServerKit, tmp_path: Path) -> None:
    other = provisioned(tmp_path, "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(named, "fl.example.org", other.ca)


def verify(*options: str) -> subprocess.CompletedProcess[str]:
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_openssl_verifies_the_chain_strictly(named: ServerKit) -> None:
    purpose = ("-purpose", "sslserver", "-verify_hostname", "fl.example.org")
    result = verify(*purpose, "-CAfile", str(named.ca), str(named.server_certificate))
    assert result.returncode == 0, result.stderr
    result = verify("-CAfile", str(named.ca), str(named.ca))
    assert result.returncode == 0, result.stderr
    for purpose in (("-purpose", "sslclient"), ("-purpose", "crlsign")):
        result = verify(*purpose, "-CAfile", str(named.ca), str(named.server_certificate))
        assert result.returncode != 0


def test_the_servers_key_can_sign_no_certificate(named: ServerKit) -> None:
    authority, server = (
        x509.load_pem_x509_certificate(path.read_bytes())
        for path in (named.ca, named.server_certificate)
    )

    def constraints(one: x509.Certificate) -> x509.BasicConstraints:
        return one.extensions.get_extension_for_class(x509.BasicConstraints).value

    def usage(one: x509.Certificate) -> x509.KeyUsage:
        return one.extensions.get_extension_for_class(x509.KeyUsage).value

    assert (constraints(authority).ca, constraints(authority).path_length) == (True, 0)
    assert usage(authority).key_cert_sign
    assert not constraints(server).ca
    assert not usage(server).key_cert_sign
    assert usage(server).digital_signature
    assert 3651 <= (authority.not_valid_after_utc - datetime.now(UTC)).days <= 3653


def test_grpc_speaks_with_it(named: ServerKit) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    pair = (named.server_key.read_bytes(), named.server_certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        credentials = grpc.ssl_channel_credentials(named.ca.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
    finally:
        server.stop(None).wait()
