"""The way to the coordinator, as the link goes it: name, connection, TLS."""

import base64
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from client.doctor.checks import Check, failed, ok, warning
from client.doctor.kit_checks import SOON_DAYS
from client.doctor.proxies import Proxy

_SECONDS = 10.0
_LONGEST_ANSWER = 65536  # bytes that a proxy may say before the tunnel

# X509_V_ERR_...: of OpenSSL's x509_vfy.h
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME = 9, 10, 62


class RefusedByProxyError(OSError):
    """A proxy did not open a tunnel."""


def check_name(host: str, port: int, proxy: Proxy | None) -> Check:
    """Check that the coordinator's host, or the proxy that resolves it, has an address."""
    asked = host if proxy is None else proxy.host
    try:
        found = socket.getaddrinfo(asked, port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = "ask the network's people for the DNS entry; getent hosts " + asked
        return failed("dns", f"{asked}: no address ({error.strerror or error})", remedy)
    addresses = ", ".join(sorted({str(address[4][0]) for address in found}))
    told = "" if proxy is None else f"; the proxy resolves {host}"
    return ok("dns", f"{asked} is {addresses}{told}")


def check_connection(host: str, port: int, proxy: Proxy | None) -> Check:
    """Check that a TCP connection is accepted."""
    way = f"{host}:{port}" + ("" if proxy is None else f" through {proxy.host}:{proxy.port}")
    try:
        connect(host, port, proxy).close()
    except RefusedByProxyError as error:
        return failed("tcp", f"{way}: {error}", "let the proxy allow CONNECT to this address")
    except TimeoutError:
        remedy = f"let the firewall allow outgoing TCP to {host}:{port}"
        return failed("tcp", f"{way}: no answer within {_SECONDS:.0f} s", remedy)
    except OSError as error:
        remedy = (
            "a firewall refuses, or the server does not run: ask the coordinator whether "
            "`medfusion server start` does, and whether its port is open"
        )
        return failed("tcp", f"{way}: {error.strerror or error}", remedy)
    return ok("tcp", f"{way} accepts connections")


def check_tls(host: str, port: int, proxy: Proxy | None, ca: Path, now: datetime) -> Check:
    """Check that what answers has a certificate for the host from the federation's authority."""
    context = ssl.create_default_context(cafile=ca)
    try:
        certificate = _handshake(context, host, port, proxy)
    except ssl.SSLCertVerificationError as error:
        return _refused_certificate(error, host, _whatever_is_shown(host, port, proxy))
    except OSError as error:
        remedy = "something else than the coordinator's server listens there, or answers for it"
        return failed("tls", f"no handshake ({_reason(error)})", remedy)
    expires = certificate.not_valid_after_utc
    found = f"certificate for {_names(certificate)}, valid until {expires:%Y-%m-%d}"
    if (expires - now).days < SOON_DAYS:
        return warning("tls", found, "the coordinator renews it: medfusion provision, and restart")
    return ok("tls", found)


def connect(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    """Return a connection, through a tunnel if there is a proxy; raises `OSError`."""
    if proxy is None:
        return socket.create_connection((host, port), timeout=_SECONDS)
    tunnel = socket.create_connection((proxy.host, proxy.port), timeout=_SECONDS)
    try:
        _open_tunnel(tunnel, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", proxy)
    except BaseException:
        tunnel.close()
        raise
    return tunnel


def _open_tunnel(tunnel: socket.socket, target: str, proxy: Proxy) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.credentials is not None:
        lines.append(
            "Proxy-Authorization: Basic " + base64.b64encode(proxy.credentials.encode()).decode()
        )
    tunnel.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and len(answer) < _LONGEST_ANSWER:
        if not (part := tunnel.recv(1)):  # not a byte of what follows is taken
            break
        answer += part
    status = answer.split(b"\r\n")[0].decode("latin-1")
    if " 200" not in status:
        raise RefusedByProxyError(f"the proxy answers {status[:80]!r}")


def _handshake(
    context: ssl.SSLContext, host: str, port: int, proxy: Proxy | None
) -> x509.Certificate:
    context.set_alpn_protocols(["h2"])
    with (
        connect(host, port, proxy) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown)


def _whatever_is_shown(host: str, port: int, proxy: Proxy | None) -> x509.Certificate | None:
    """Return the certificate that is not to be trusted, to tell whose it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError, ValueError):
        return _handshake(context, host, port, proxy)
    return None


def _refused_certificate(
    error: ssl.SSLCertVerificationError, host: str, shown: x509.Certificate | None
) -> Check:
    told = error.verify_message
    if shown is not None:
        told += (
            f"; shown: a certificate for {_names(shown)} by {shown.issuer.rfc4514_string()}, "
            f"{shown.not_valid_before_utc:%Y-%m-%d} to {shown.not_valid_after_utc:%Y-%m-%d}"
        )
    if error.verify_code == _NOT_YET_VALID:
        # It begins a day before it was issued, so that small differences do no harm.
        remedy = f"this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC) is behind: use NTP"
    elif error.verify_code == _EXPIRED:
        remedy = "the coordinator renews it: medfusion provision, and restart; or a clock is wrong"
    elif error.verify_code == _OTHER_NAME:
        remedy = f"the coordinator provisions with the address by which hospitals call: {host}"
    else:
        remedy = (
            "it is not by the authority of the kit: a device on the way breaks TLS open (exempt "
            "this address), the address leads elsewhere, or the kit is of another federation"
        )
    return failed("tls", told, remedy)


def _names(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return certificate.subject.rfc4514_string()
    return ", ".join(str(name.value) for name in names)


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
