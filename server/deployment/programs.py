"""The programs of a coordinator's server."""

import ipaddress
import sys
from pathlib import Path

from medfusion.federation.kit import ServerKit
from medfusion.supervision.supervisor import Program
from server.deployment.flower import Flower, program


def server_programs(kit: ServerKit, flower: Flower, state: Path, *, bind: str) -> list[Program]:
    """Return Flower's SuperLink and the executor that starts the coordinator's app.

    Hospitals reach the Fleet API alone: gRPC in TLS, for known keys only. The control plane, which
    asks for no credentials, listens on the loopback. The app runs outside of the SuperLink, so
    that it outlives one that is killed.

    Parameters
    ----------
    state
        Folder of the SuperLink's database.
    bind
        Address that the Fleet API listens on.
    """
    host = f"[{bind}]" if ":" in bind else bind
    link = (
        *(sys.executable, "-P", "-m", "server.deployment.superlink"),
        *("--ssl-certfile", str(kit.server_certificate), "--ssl-keyfile", str(kit.server_key)),
        *("--ssl-ca-certfile", str(kit.ca), "--enable-supernode-auth"),
        *("--database", str(state / "superlink.db"), "--isolation", "process"),
        *("--fleet-api-address", f"{host}:{kit.port}"),
        *("--host", "127.0.0.1", "--port", str(kit.control_port)),
        *("--log-file", str(state / "superlink.log"), "--disable-runtime-dependency-installation"),
    )
    executor = (
        program("flower-superexec"),
        *("--runtime-api-address", f"localhost:{kit.control_port}"),
        *("--root-certificates", str(kit.ca)),
    )
    return [
        Program(name="superlink", command=link, environment=flower.environment),
        Program(name="superexec", command=executor, environment=flower.environment),
    ]


def listens_on(host: str) -> str:
    """Return where a server that is reached as ``host`` listens: the loopback, or everywhere."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "127.0.0.1" if host == "localhost" else "0.0.0.0"  # noqa: S104 -- it is public
    if address.is_loopback:
        return host
    return "::" if address.version == 6 else "0.0.0.0"  # noqa: S104 -- it is public
