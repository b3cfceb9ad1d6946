"""The checks of kit, site and machine, and all of them together by the command."""

import json
import os
import shutil
from collections import namedtuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet_server import OWNER, fleet_server, public_key
from typer.testing import CliRunner

from client.doctor import kit_checks, machine
from client.doctor.examine import examine
from client.node.secure_rounds import SecureRounds
from client.node.state import NodeState
from medfusion.cli.main import _cli

KEY = "B" * 43 + "="  # of another site
NAMES = (
    *("kit", "expiry", "version", "key", "proxy", "dns", "tcp", "tls", "clock", "admission"),
    *("site", "state", "disk", "gpu", "peers"),
)


def checks(ward: Any, site: Path | None = None, **options: Any) -> dict[str, Any]:
    found = examine(ward.kits / "sites" / "north", site, environment={}, **options)
    assert tuple(check.name for check in found) == NAMES
    return {check.name: check for check in found}


def test_the_command_on_a_site_that_works_and_on_one_that_does_not(ward: Any) -> None:
    kit = ward.kits / "sites" / "north"
    arguments = ["site", "doctor", str(kit), "--site", str(ward.site()), "--json"]
    with fleet_server(ward.server) as state:
        state.create_node(OWNER, OWNER, public_key(ward.kit()), 30.0)
        result = CliRunner().invoke(_cli, arguments)
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report
    assert report["schema"] == 1
    assert {check["check"] for check in report["checks"]} == set(NAMES)
    assert {"check", "status", "found", "remedy"} == set(report["checks"][0])
    assert not (kit / "spool").exists()
    assert not (ward.root / "sites" / "north.state").exists()

    result = CliRunner().invoke(_cli, arguments[:-1])
    assert result.exit_code == 1
    assert "failed  tcp" in result.stdout
    assert "medfusion server start" in result.stdout


def test_a_kit_that_was_changed(ward: Any) -> None:
    (ward.kits / "sites" / "north" / "task.toml").write_text("")
    found = checks(ward)
    assert "is not the file that the coordinator signed" in found["kit"].found
    assert found["admission"].status == "skipped"


def test_a_kit_that_expires(ward: Any) -> None:
    expires = ward.kit().expires
    assert checks(ward, now=expires)["expiry"].status == "failed"
    assert checks(ward, now=expires - timedelta(days=29))["expiry"].status == "warning"
    assert checks(ward, now=expires - timedelta(days=40))["expiry"].status == "ok"


def test_a_site_that_has_not_joined_or_has_another_key(ward: Any) -> None:
    kit = ward.kit()
    request = kit.join_request.read_text()
    kit.join_request.unlink()
    assert checks(ward)["key"].status == "warning"
    shutil.copy(ward.kits / "sites" / "east" / "join-east.json", kit.join_request)
    assert "of another key" in checks(ward)["key"].found
    kit.join_request.write_text(request)
    assert checks(ward)["key"].status == "ok"
    kit.node_key.chmod(0o640)
    assert "found mode 0640" in checks(ward)["key"].found
    kit.node_key.unlink()
    assert "has not joined" in checks(ward)["key"].found


def test_another_version(ward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_checks, "own_version", lambda: "9.9.9")
    found = checks(ward)["version"]
    assert (found.status, "9.9.9" in found.found) == ("failed", True)


def test_a_site_that_does_not_suit(ward: Any) -> None:
    site = ward.site()
    assert checks(ward, site)["site"].status == "ok"
    toml = (site / "site.toml").read_text()
    (site / "site.toml").write_text(toml.replace('"north"', '"nord"'))
    assert checks(ward, site)["site"].status == "warning"
    (site / "site.toml").write_text(toml)
    task = (ward.root / "task.toml").read_text()
    (ward.root / "task.toml").write_text(task.replace("bins = 20", "bins = 21"))
    assert "the kit's is" in checks(ward, site)["site"].found
    (site / "studies.csv").rename(site / "elsewhere.csv")
    found = checks(ward, site)
    assert "no such table" in found["site"].found
    assert found["gpu"].status == "skipped"


def test_a_table_that_may_not_be_read(ward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ward.site() / "studies.csv"
    monkeypatch.setattr(machine.os, "access", lambda path, _: path != refused)
    assert "cannot be read" in checks(ward, ward.site())["site"].found


def test_a_state_that_is_open_anothers_or_read_only(
    ward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ward.root / "sites" / "north.state"
    state.mkdir(mode=0o700)
    assert checks(ward, ward.site())["state"].status == "ok"
    state.chmod(0o755)
    assert "open to others" in checks(ward, ward.site())["state"].found
    monkeypatch.setattr(machine.os, "geteuid", lambda: state.stat().st_uid + 1)
    assert checks(ward, ward.site())["state"].status == "warning"
    monkeypatch.setattr(machine.os, "access", lambda path, mode: not mode & os.W_OK)
    found = checks(ward, ward.site())
    assert "cannot be written to" in found["state"].found
    assert found["disk"].status == "failed"


def test_a_full_disk(ward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    for gibibytes, status in ((0.5, "failed"), (5, "warning"), (50, "ok")):
        free = usage(int(gibibytes * 2**30))
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=free: free)
        assert checks(ward)["disk"].status == status


def test_a_gpu_that_is_not_there(ward: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert checks(ward, ward.site())["gpu"].status == "ok"
    toml = ward.site() / "site.toml"
    toml.write_text(toml.read_text() + '[compute]\ndevice = "cuda"\n')
    found = checks(ward, ward.site())["gpu"]
    assert (found.status, "found 0 GPUs" in found.found) == ("failed", True)


def test_the_key_of_masked_rounds_is_told_and_what_is_known_of_others(ward: Any) -> None:
    site, state = ward.site(), ward.root / "sites" / "north.state"
    assert checks(ward, site)["peers"].status == "skipped"
    assert not state.exists()
    secret = NodeState(state).secret()
    own = SecureRounds("north", secret, state, patients=5).signer
    found = checks(ward, site)["peers"]
    assert (found.status, own in found.found) == ("ok", True)

    def with_peers(closed: bool, told: Any = None, **keys: str) -> Any:
        text = json.dumps({"schema": 1, "peers": keys, "told": told or {}, "closed": closed})
        (state / "peers.json").write_text(text)
        return checks(ward, site)["peers"]

    assert with_peers(False, east=KEY).status == "warning"
    assert "0 keys known, 1 told" in with_peers(False, {"ghost": KEY}).found
    assert with_peers(True, east=KEY, north=own).status == "ok"
    assert "says another key of it" in with_peers(True, east=KEY, north=KEY).found
    (state / "peers.json").write_text("[]")
    assert "found another form" in checks(ward, site)["peers"].found
