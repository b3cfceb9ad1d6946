"""A deployment by the commands that users run gives the model that the simulation gives."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import listening_addresses, speaks_tls
from loopback_federation import LoopbackFederation

from client.node.simulated import simulated_secret
from medfusion.data.site_data import load_site_data

_LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, bare and in IPv6


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
    _check_commands(federation)
    _check_logs(federation)
    _check_end(federation)


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
    """Only this machine reaches the ports, only in TLS, only with a key that was admitted."""
    for port in (federation.fleet, federation.control):
        addresses = listening_addresses(port)
        assert addresses
        assert addresses <= _LOOPBACK
        assert speaks_tls(port, federation.server_kit / "ca.pem")
    federation.start_site("stranger", federation.stranger)
    federation.processes.wait_for(
        "refusal of the stranger",
        lambda: "may not be admitted" in federation.processes.log("stranger"),
    )
    assert "connected to the coordinator" not in federation.processes.log("stranger")


def _check_logs(federation: LoopbackFederation) -> None:
    logs = federation.processes.tails(sys.maxsize)
    for site in federation.sites:
        patients = set(load_site_data(site).studies.patient_ids)
        assert patients
        assert not [patient for patient in patients if patient in logs]


def _check_commands(federation: LoopbackFederation) -> None:
    """What coordinator and hospital read of it."""
    status = federation.status()
    assert {run["run"]: run["status"] for run in status["runs"]} == {
        "plain-1": "finished",
        "private-1": "finished",
    }
    assert {site["status"] for site in status["sites"]} == {"online"}
    for site in federation.sites:
        runs = json.loads(federation.medfusion("site", "runs", site, "--json"))
        assert len(runs["runs"]) == 2
        assert federation.medfusion("site", "log", site)


def _check_end(federation: LoopbackFederation) -> None:
    codes = federation.processes.stop()
    assert not federation.processes.alive()
    assert codes["server"] == 0
    assert [codes[site.name] for site in federation.sites] == [0, 0, 0]
    for site in federation.sites:
        sockets = re.findall(r"serving at (\S+)", federation.processes.log(site.name))
        assert sockets
        assert not [path for path in sockets if Path(path).exists()]


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def _sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
