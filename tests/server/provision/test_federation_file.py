"""What the coordinator may write into FEDERATION.toml."""

from pathlib import Path

import pytest
from federations import Federation

from medfusion.errors import ConfigError
from server.provision.federation_file import FederationFile


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "../x"}, "federation.name = '../x'"),
        ({"name": ""}, "federation.name"),
        (
            {"address": "fl.example.org"},
            "federation.address = 'fl.example.org': expected host:port",
        ),
        ({"address": "fl.example.org:9093"}, "control_port = 9093 must differ"),
        ({"more": "valid_days = 7"}, "federation.valid_days = 7"),
        ({"more": "patience = 0"}, "federation.patience = 0"),
        ({"more": "control_port = 70000"}, "federation.control_port = 70000"),
        ({"more": "versions = []"}, "federation.versions"),
        ({"more": "adress = 'x'"}, r"unknown key 'federation.adress' \(did you mean 'address'"),
    ],
)
def test_bad_settings_are_refused(federation: Federation, settings: dict, message: str) -> None:
    federation.write(**settings)
    with pytest.raises(ConfigError, match=message):
        federation.provision()
    assert not federation.out.exists()


@pytest.mark.parametrize(
    "site", ['"../x"', '"a b"', '""', '".x"', '"a/b"', "x\nrevoke = true", 'x\nrejoin = "SHA256:"']
)
def test_bad_sites_are_refused(federation: Federation, site: str) -> None:
    federation.write(site)
    with pytest.raises(ConfigError, match=r"federation\.toml: .*sites"):
        federation.provision()
    assert not federation.out.exists()


def test_a_federation_has_sites(federation: Federation) -> None:
    federation.file.write_text(federation.file.read_text().split("[sites")[0] + "[sites]\n")
    with pytest.raises(ConfigError, match="sites"):
        federation.provision()


def test_the_installed_version_is_one_that_may_take_part(federation: Federation) -> None:
    federation.write(more="versions = ['9.9']")
    with pytest.raises(ConfigError, match=r"federation.versions = \['9.9'\]: expected MedFusion"):
        federation.provision()


def test_a_missing_task_is_refused_by_name(federation: Federation) -> None:
    federation.task.unlink()
    with pytest.raises(ConfigError, match=r"task\.toml: no such file"):
        federation.provision()
    assert not federation.out.exists()


def test_a_site_that_is_not_named_is_revoked(federation: Federation) -> None:
    federation.write("italy", "spain\nrevoked = true")
    file = FederationFile.load(federation.file)
    revoked = [site for site in ("italy", "spain", "france") if file.is_revoked(site)]
    assert revoked == ["spain", "france"]
    assert file.federation.task == federation.task
