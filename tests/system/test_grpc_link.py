"""Flower's real programs on the loopback give the model that the simulation gives."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import listening_addresses, speaks_tls
from loopback_federation import LoopbackFederation, copy_bundle

from client.node.service import NodeService, start_service
from client.node.simulated import simulated_secret
from medfusion.data.site_data import load_site_data

_LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, bare and in IPv6
_CALL = """
import sys
import client.app
from flwr.app import Context, RecordDict
client.app.over_socket(Context(1, 1, {"node-socket": sys.argv[1]}, RecordDict(), {}))(
    "train", RecordDict()
)
print(client.app.__file__, *sys.modules)
"""
_HEAVY = {"medfusion", "opacus", "pandas", "torch", "transformers"}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[LoopbackFederation]:
    """Three connected hospitals whose secrets are those of a simulation with seed 0."""
    federation = LoopbackFederation(tmp_path)
    for site in federation.sites:
        state = federation.state(site.name)
        state.mkdir(parents=True)
        (state / "secret").write_bytes(simulated_secret(0, site.name))
    try:
        federation.start()
        yield federation
    finally:
        federation.processes.stop()


def test_deployment_gives_the_simulated_model_to_every_hospital(
    federation: LoopbackFederation,
) -> None:
    # One test, because one deployment serves all of it.
    for name, private in (("plain", False), ("private", True)):
        deployed, simulated = federation.train(name, private=private)
        _check_models(federation, name, deployed, simulated)
    _check_access(federation)
    _check_bundles(federation)
    _check_logs(federation)
    _check_end(federation)


def test_the_bundled_relay_stays_light(tmp_path: Path) -> None:
    bundle = copy_bundle(tmp_path / "bundle")
    path = tmp_path / "node.sock"
    server = start_service(NodeService(lambda kind, content: content), path)
    try:
        command = [sys.executable, "-c", _CALL, str(path)]
        call = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=60)
    finally:
        server.stop(0).wait()
    assert call.returncode == 0, call.stderr
    file, *modules = call.stdout.split()
    assert Path(file) == bundle / "client" / "app.py"
    assert not _HEAVY & set(modules)


def _check_models(
    federation: LoopbackFederation, name: str, deployed: Path, simulated: Path
) -> None:
    model = _sha256(deployed / "model")
    # The Nodes compute with the threads of the simulation's workers, so bit for bit.
    assert model == _sha256(simulated / "model")
    ours, theirs = (_rounds(folder) for folder in (deployed, simulated))
    assert [line["round"] for line in ours] == [1, 2]
    for line, other in zip(ours, theirs, strict=True):
        assert line["update_norm"] == other["update_norm"] > 0
        assert line["metrics"] == other["metrics"]
        assert [site["status"] for site in line["sites"].values()] == ["ok"] * 3
    card = json.loads((deployed / "model" / "model.json").read_text())
    assert not card["privacy"]["simulated"]
    for site in federation.sites:
        (delivered,) = (federation.state(site.name) / "models").glob(f"{name}-*")
        assert _sha256(delivered) == model
        assert json.loads((delivered / "model.json").read_text()) == card


def _check_access(federation: LoopbackFederation) -> None:
    """Only this machine reaches the ports, only in TLS, only with a key that was registered."""
    assert listening_addresses(federation.control) == {"0100007F"}
    for port in (federation.fleet, *federation.runtime[: len(federation.sites)]):
        addresses = listening_addresses(port)
        assert addresses
        assert addresses <= _LOOPBACK
    for port in (federation.control, federation.fleet):
        assert speaks_tls(port, federation.keys / "ca.pem")
    assert all(federation.joined(site.name) for site in federation.sites)
    assert not federation.joined("intruder")
    assert "Failed to activate" in federation.processes.log("supernode-intruder")


def _check_bundles(federation: LoopbackFederation) -> None:
    """What Flower brings to a hospital is the relay, and none of the Node."""
    for site in federation.sites:
        home = federation.processes.root / "home" / f"supernode-{site.name}"
        bundles = list(home.glob("apps/*/client"))
        assert bundles
        for bundle in bundles:
            files = {path.name for path in bundle.rglob("*.py")}
            assert files == {"__init__.py", "app.py"}


def _check_logs(federation: LoopbackFederation) -> None:
    logs = federation.processes.tails(sys.maxsize)
    for site in federation.sites:
        patients = set(load_site_data(site).studies.patient_ids)
        assert patients
        assert not [patient for patient in patients if patient in logs]


def _check_end(federation: LoopbackFederation) -> None:
    codes = federation.processes.stop()
    assert not federation.processes.alive()
    for site in federation.sites:
        assert codes[f"node-{site.name}"] == 0
        assert not federation.socket(site.name).exists()


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def _sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
