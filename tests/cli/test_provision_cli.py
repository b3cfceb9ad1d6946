from pathlib import Path

import pytest
from federations import Federation
from typer.testing import CliRunner, Result

from medfusion.cli.main import _cli
from medfusion.errors import ConfigError
from medfusion.federation.kit import ServerKit


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(_cli, [str(argument) for argument in arguments])


def provisioned(federation: Federation, *options: str) -> str:
    result = call("provision", federation.file, federation.out, *options)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def test_from_the_file_to_an_admitted_hospital(federation: Federation) -> None:
    output = provisioned(federation)
    fingerprint = ServerKit.read(federation.out / "server").fingerprint
    assert f"kit fingerprint: {fingerprint}" in output
    assert "ca.key to offline storage" in output
    assert "join-italy.json" in output

    kit = federation.kit("italy")
    result = call("site", "join", kit, "--fingerprint", fingerprint)
    assert result.exit_code == 0, result.output
    assert fingerprint in result.output
    assert str(kit / "join-italy.json") in result.output
    key = result.output.split("SHA256:")[1].split()[0]

    (kit / "join-italy.json").rename(federation.out / "requests" / "join-italy.json")
    output = provisioned(federation)
    assert f"SHA256:{key}" in output
    assert "Compare the key fingerprints" in output
    assert "offline" not in output
    output = provisioned(federation, "--renew")
    assert "renewed  kit of italy" in output
    assert "Send the new kits" in output


def test_what_is_refused_is_wrong_usage(federation: Federation) -> None:
    provisioned(federation)
    result = call("site", "join", federation.kit("italy"), "--fingerprint", "0000")
    assert isinstance(result.exception, ConfigError)
    federation.write(name="another")
    result = call("provision", federation.file, federation.out)
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2


def test_readmes_name_commands_and_files_that_there_are(federation: Federation) -> None:
    provisioned(federation)
    site = federation.out / "sites" / "italy"
    text = (site / "README.md").read_text()
    for path in site.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text
    server = federation.out / "server"
    text = (server / "README.md").read_text()
    for path in server.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text
