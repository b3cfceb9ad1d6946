"""The library imports neither app, the apps not each other, and only the CLI imports all three."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKING = ROOT / "medfusion" / "transport" / "packing.py"
FORBIDDEN = {
    "medfusion": {"server", "client", "medfusion.cli"},
    "server": {"client", "medfusion.cli"},
    "client": {"server", "medfusion.cli"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_apart(package):
    files = [
        path for path in (ROOT / package).rglob("*.py") if "medfusion/cli/" not in path.as_posix()
    ]
    assert files
    for path in files:
        for name in imported(path):
            for other in FORBIDDEN[package]:
                assert name != other, f"{path} imports {name}"
                assert not name.startswith(other + "."), f"{path} imports {name}"


def test_the_relay_imports_only_flower_grpc_and_how_messages_are_packed():
    names = imported(ROOT / "client" / "app.py") | imported(PACKING)
    allowed = ("flwr", "grpc", "collections", "functools", "typing")
    ours = "medfusion.transport.packing"
    assert all(name.split(".")[0] in allowed or name.startswith(ours) for name in names), names


def test_what_only_supervises_the_coordinator_does_without_pytorch():
    """It runs as long as the machine: PyTorch would hold some 500 MiB of it for nothing."""
    code = "import sys, server.deployment.serve; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
