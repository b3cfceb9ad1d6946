"""The way to the coordinator, over real sockets and TLS on the loopback."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet_server import free_port

from client.doctor import network
from client.doctor.network import check_connection, check_name, check_tls
from client.doctor.proxies import Proxy, check_proxy, proxy_for
from server.provision.authority import Authority
from server.provision.private_keys import new_key_pem

Answer = Callable[[socket.socket], None]


@contextmanager
def listener(answer: Answer) -> Iterator[int]:
    """Answer connections on the loopback; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connection.settimeout(5)
                with connection, suppress(OSError):
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


class Certificates:
    """An authority with certificates for servers."""

    def __init__(self, folder: Path, now: datetime) -> None:
        self._folder = folder
        self._now = now
        self._authority = Authority.create(folder / "ca", federation="ward", now=now)
        self.ca = folder / "ca" / "ca.pem"

    def server(self, host: str, *, days: int = 365) -> Answer:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = new_key_pem()
        public: Any = load_pem_private_key(key, None).public_key()
        end = self._now + timedelta(days=days)
        pem = self._authority.issue(public, host, now=self._now, expires=end)
        (self._folder / "server.key").write_bytes(key)
        (self._folder / "server.pem").write_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "server.pem", self._folder / "server.key")
        context.set_alpn_protocols(["h2"])

        def answer(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)

        return answer


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path, datetime.now(UTC).replace(microsecond=0))


def tls(port: int, ca: Path, host: str = "127.0.0.1", proxy: Proxy | None = None) -> Any:
    return check_tls(host, port, proxy, ca, datetime.now(UTC))


def test_a_server_of_the_federation(certificates: Certificates) -> None:
    with listener(certificates.server("127.0.0.1")) as port:
        assert check_name("127.0.0.1", port, None).status == "ok"
        assert check_connection("127.0.0.1", port, None).status == "ok"
        found = tls(port, certificates.ca)
    assert found.status == "ok", found
    assert "127.0.0.1" in found.found


def test_a_name_without_address() -> None:
    found = check_name("fl.invalid", 9092, None)
    assert (found.status, "no address" in found.found) == ("failed", True)


def test_nobody_listens() -> None:
    found = check_connection("127.0.0.1", free_port(), None)
    assert (found.status, "refused" in found.found) == ("failed", True)


def test_a_firewall_that_swallows(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(network.socket, "create_connection", silent)
    found = check_connection("192.0.2.1", 9092, None)
    assert found.status == "failed"
    assert "no answer within" in found.found
    assert "firewall" in found.remedy


def test_another_authority_as_of_a_device_that_breaks_tls_open(
    certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other", datetime.now(UTC))
    with listener(other.server("127.0.0.1")) as port:
        found = tls(port, certificates.ca)
    assert found.status == "failed"
    assert "MedFusion authority" in found.found
    assert "breaks TLS open" in found.remedy


def test_a_certificate_of_another_name(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(certificates.server("fl.example.org")) as port:
        here = network.connect
        monkeypatch.setattr(network, "connect", lambda _, *rest: here("127.0.0.1", *rest))
        assert tls(port, certificates.ca, host="fl.example.org").status == "ok"
        found = tls(port, certificates.ca, host="fl.example.com")
    assert found.status == "failed"
    assert "a certificate for fl.example.org" in found.found
    assert "provisions with the address" in found.remedy


def test_certificates_that_end_soon_have_ended_or_not_begun(
    certificates: Certificates, tmp_path: Path
) -> None:
    with listener(certificates.server("127.0.0.1", days=20)) as port:
        assert tls(port, certificates.ca).status == "warning"
    with listener(certificates.server("127.0.0.1", days=0)) as port:
        found = tls(port, certificates.ca)
    assert found.status == "failed"
    assert "expired" in found.found
    (tmp_path / "future").mkdir()
    future = Certificates(tmp_path / "future", datetime.now(UTC) + timedelta(days=5))
    with listener(future.server("127.0.0.1")) as port:
        found = tls(port, future.ca)
    assert found.status == "failed"
    assert "clock" in found.remedy


def test_something_else_than_tls(certificates: Certificates) -> None:
    with listener(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        found = tls(port, certificates.ca)
    assert (found.status, "no handshake" in found.found) == ("failed", True)


def test_through_a_proxy_and_refused_by_one(certificates: Certificates) -> None:
    asked = []
    serve = certificates.server("127.0.0.1")

    def request(connection: socket.socket) -> None:
        text = b""
        while not text.endswith(b"\r\n\r\n"):
            text += connection.recv(1)
        asked.append(text.decode())

    def tunnel(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        serve(connection)

    def refuse(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    with listener(tunnel) as port:
        proxy = Proxy("https_proxy", "127.0.0.1", port, "user:word")
        assert tls(9, certificates.ca, proxy=proxy).status == "ok"
    assert asked[0].startswith("CONNECT 127.0.0.1:9 HTTP/1.1")
    assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in asked[0]
    assert "word" not in repr(proxy)
    with listener(refuse) as port:
        found = check_connection("127.0.0.1", 9, Proxy("https_proxy", "127.0.0.1", port))
    assert found.status == "failed"
    assert "407" in found.found


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:2"}, ("a", 1)),
        ({"grpc_proxy": "", "https_proxy": "http://b:2"}, None),
        ({"http_proxy": "http://b:2", "no_proxy": "other, .example.org"}, None),
        ({"http_proxy": "http://b:2", "no_grpc_proxy": "x", "no_proxy": "example.org"}, ("b", 2)),
        ({"HTTPS_PROXY": "http://b:2"}, None),
        ({"http_proxy": "socks5://b:2"}, None),
        ({"http_proxy": "http://b:port"}, None),
    ],
)
def test_the_proxy_that_grpc_takes(
    environment: dict[str, str], expected: tuple[str, int] | None
) -> None:
    found = proxy_for("fl.example.org", environment)
    assert (None if found is None else (found.host, found.port)) == expected


def test_networks_without_proxy() -> None:
    environment = {"http_proxy": "http://b:2", "no_proxy": "10.0.0.0/8"}
    assert proxy_for("10.1.2.3", environment) is None
    assert proxy_for("11.1.2.3", environment) is not None


def test_what_is_said_of_proxies() -> None:
    host = "fl.example.org"
    assert check_proxy(host, {}).status == "ok"
    found = check_proxy(host, {"https_proxy": "http://user:word@b:2"})
    assert (found.status, "b:2" in found.found) == ("warning", True)
    assert "word" not in str(found)
    found = check_proxy(host, {"HTTPS_PROXY": "http://b:2"})
    assert (found.status, "not used" in found.found) == ("warning", True)
    assert check_proxy(host, {"HTTPS_PROXY": "http://b:2", "no_proxy": host}).status == "ok"


def test_grpc_itself_takes_the_proxy_that_we_tell(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grpc

    asked = threading.Event()

    def note(connection: socket.socket) -> None:
        if connection.recv(7) == b"CONNECT":
            asked.set()

    def call(address: str) -> bool:
        asked.clear()
        credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
        with (
            grpc.secure_channel(address, credentials) as channel,
            suppress(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=1)
        return asked.is_set()

    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with listener(note) as port:
        url = f"http://127.0.0.1:{port}"
        for environment in (
            {"https_proxy": url},
            {"grpc_proxy": "", "https_proxy": url},
            {"https_proxy": url, "no_proxy": "example.invalid"},
            {"HTTPS_PROXY": url},
        ):
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                expected = proxy_for("fl.example.invalid", environment) is not None
                assert call("fl.example.invalid:9092") == expected, environment
