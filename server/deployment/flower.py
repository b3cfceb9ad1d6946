"""Flower's control plane, through its own command line: what it says as JSON is its interface."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from medfusion.atomic_files import make_folder, write_atomically
from medfusion.errors import FederationError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_CONNECTION = "medfusion"
_SECONDS = 120.0
_LONGEST_TOLD = 500  # characters

# The bundle is what Flower needs to start the coordinator's app from the installed package. The
# hospitals neither fetch nor run it; Flower wants an app for them all the same.
_BUNDLE = {
    "medfusion_run.py": '''\
"""Starts the coordinator's app of the installed package."""

import server.app
from flwr.clientapp import ClientApp

client_app = ClientApp()
server_app = server.app.app
''',
    "pyproject.toml": """\
[project]
name = "medfusion-run"
version = "1.0.0"
description = "A run of MedFusion"
license = "Apache-2.0"
dependencies = ["flwr>=1.39,<1.40"]

[tool.flwr.app]
publisher = "medfusion"
fab-include = ["medfusion_run.py"]

[tool.flwr.app.components]
serverapp = "medfusion_run:server_app"
clientapp = "medfusion_run:client_app"

[tool.flwr.app.config]
config = ""
out = ""
signature = ""
""",
}


def program(name: str) -> str:
    """Return the path of a program that Flower installed beside this Python."""
    return str(Path(sys.executable).parent / name)


class Flower:
    """Calls ``flwr`` against the coordinator's own control plane.

    Parameters
    ----------
    folder
        Where Flower keeps its settings; written to.
    port
        Of the Control and Runtime API on this machine's loopback.
    ca
        The certificate that the server's is signed by.
    """

    def __init__(self, folder: Path, *, port: int, ca: Path) -> None:
        self._home = folder / "flower"
        self._bundle = folder / "bundle"
        self._calls = threading.Lock()
        for path in (folder, self._home, self._bundle):
            make_folder(path, mode=0o700)
        connection = (
            f"[superlink.{_CONNECTION}]\n"
            f'address = "localhost:{port}"\n'
            f"root-certificates = {json.dumps(str(ca.resolve()))}\n"
        )
        write_atomically(self._home / "config.toml", connection, durable=False)
        for name, text in _BUNDLE.items():
            write_atomically(self._bundle / name, text, durable=False)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for every program of Flower's."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**QUIET, "FLWR_HOME": str(self._home), "PATH": path}

    def start_run(self, *, config: Path, out: Path, signature: str) -> int:
        """Start the coordinator's app; return Flower's number of the run."""
        values = {"config": str(config), "out": str(out), "signature": signature}
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        found = self._call("run", str(self._bundle), _CONNECTION, "--run-config", settings)
        return int(found["run-id"])

    def stop_run(self, run_id: int) -> None:
        """End a run."""
        self._call("stop", str(run_id), _CONNECTION)

    def runs(self) -> dict[int, dict[str, Any]]:
        """Return what Flower says of each run, by its number."""
        return {int(run["run-id"]): run for run in self._call("ls", _CONNECTION)["runs"]}

    def nodes(self) -> dict[int, dict[str, Any]]:
        """Return what Flower says of each registered node, by its number."""
        found = self._call("supernode", "list", _CONNECTION)
        return {int(node["node-id"]): node for node in found["nodes"]}

    def register(self, public_key: Path, name: str) -> int:
        """Let a node in by its public key; return its number."""
        key = str(public_key)
        return int(self._call("supernode", "register", key, _CONNECTION, "--name", name)["node-id"])

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        self._call("supernode", "unregister", str(node_id), _CONNECTION)

    def _call(self, *arguments: str) -> dict[str, Any]:
        """Run a command; raise `FederationError` with what it says if it fails."""
        command = [program("flwr"), *arguments, "--format", "json"]
        try:
            with self._calls:
                done = subprocess.run(
                    command,
                    env={**os.environ, **self.environment},
                    cwd=self._home,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                )
        except subprocess.TimeoutExpired:
            raise FederationError(
                "the coordinator's server does not answer; is `medfusion server start` running?"
            ) from None
        except OSError as error:
            raise FederationError(
                f"{command[0]}: cannot be started ({error.strerror}); install MedFusion anew"
            ) from None
        try:
            found = json.loads(done.stdout)
        except ValueError:
            told = " ".join(done.stderr.split())[-_LONGEST_TOLD:]
            raise FederationError(
                f"flwr {arguments[0]}: ended with {done.returncode}: {told}"
            ) from None
        if not found.get("success"):
            told = " ".join(str(found.get("error-message", "")).split())
            raise FederationError(f"flwr {arguments[0]}: {told}")
        assert isinstance(found, dict)
        return found
