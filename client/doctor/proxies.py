"""The proxy that gRPC takes its calls through, by the variables that it reads."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from client.doctor.checks import Check, ok, warning

# In gRPC's order (core, http_proxy_mapper.cc); it reads lower case only.
_PROXY = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy to tunnel through; ``credentials`` are in no repr."""

    variable: str
    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy through which gRPC reaches a host; None: it calls the host itself."""
    variable = next((name for name in _PROXY if name in environment), None)
    if variable is None or _is_exempt(host, environment):
        return None
    try:
        url = urlsplit(environment[variable])
        port = url.port or 80
    except ValueError:
        return None
    if url.scheme != "http" or not url.hostname:
        return None
    credentials = None
    if url.username is not None:
        credentials = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return Proxy(variable, url.hostname, port, credentials)


def check_proxy(host: str, environment: Mapping[str, str]) -> Check:
    """Tell through which proxy gRPC calls, or which variables it does not use."""
    proxy = proxy_for(host, environment)
    if proxy is not None:
        return warning(
            "proxy",
            f"{proxy.variable} sends the link through {proxy.host}:{proxy.port}",
            f"if it must not: add {host} to no_proxy; if it must: the proxy has to allow CONNECT "
            "to this host and port and to leave TLS alone",
        )
    ignored = [
        name
        for name in environment
        if name.lower() in _PROXY and environment[name] and not _is_exempt(host, environment)
    ]
    if ignored:
        return warning(
            "proxy",
            f"{', '.join(sorted(ignored))}: set, but not used by gRPC, which calls the host itself",
            "if a proxy is needed: grpc_proxy=http://HOST:PORT, in lower case, for the service",
        )
    return ok("proxy", "none: the link calls the coordinator itself")


def _is_exempt(host: str, environment: Mapping[str, str]) -> bool:
    """Whether a host is in the list of those without proxy, by gRPC's rules."""
    variable = next((name for name in _NO_PROXY if name in environment), None)
    entries = environment[variable].split(",") if variable else []
    return any(_matches(host, entry.strip()) for entry in entries if entry.strip())


def _matches(host: str, entry: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
