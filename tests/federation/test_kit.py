"""A kit is read only if it is whole, as it was signed, and in time."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from federations import NOW, Federation
from hypothesis import given
from hypothesis import strategies as st

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.federation.documents import split_address
from medfusion.federation.kit import ServerKit, SiteKit, check_version
from medfusion.federation.signatures import SigningKey


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.provision()
    return made


@pytest.fixture
def site(federation: Federation, tmp_path: Path) -> Path:
    return Path(shutil.copytree(federation.out / "sites" / "italy", tmp_path / "kit"))


def sign_anew(folder: Path, key: SigningKey, **changes: object) -> None:
    """Change what a kit says, and sign it."""
    data = json.loads((folder / "kit.json").read_text()) | changes
    content = json.dumps(data).encode()
    (folder / "kit.json").write_bytes(content)
    (folder / "kit.sig").write_text(key.sign("kit", content))


@pytest.fixture
def key(federation: Federation) -> SigningKey:
    return SigningKey.read(federation.out / "server" / "signing.key")


def test_a_sites_kit_tells_what_the_coordinator_decided(site: Path, key: SigningKey) -> None:
    kit = SiteKit.read(site, now=NOW)
    assert (kit.federation, kit.site, kit.address) == ("covid-icu", "italy", "fl.example.org:9092")
    assert (kit.host, kit.port, kit.patience) == ("fl.example.org", 9092, 420)
    assert kit.signing_key == key.public
    assert kit.task_sha256 == Task.load(kit.task).sha256
    assert kit.ca == site / "ca.pem"
    assert (kit.node_key, kit.join_request) == (site / "node.key", site / "join-italy.json")
    assert kit.expires - kit.issued == timedelta(days=365)


def test_the_servers_kit_names_its_files(federation: Federation) -> None:
    kit = ServerKit.read(federation.out / "server", now=NOW)
    assert kit.control_port == 9093
    names = (kit.server_certificate, kit.server_key, kit.signing_key_file, kit.nodes, kit.task)
    assert all(path.is_file() and path.parent == kit.folder for path in names)


def test_all_kits_of_a_federation_have_one_fingerprint(
    federation: Federation, tmp_path: Path
) -> None:
    sites = [SiteKit.read(federation.out / "sites" / name, now=NOW) for name in ("italy", "spain")]
    server = ServerKit.read(federation.out / "server", now=NOW)
    assert {kit.fingerprint for kit in sites} == {server.fingerprint}
    assert len(server.fingerprint.replace("-", "")) == 32
    other = Federation(tmp_path)
    other.provision()
    assert SiteKit.read(other.out / "sites" / "italy", now=NOW).fingerprint != server.fingerprint


def test_the_fingerprint_covers_signing_key_and_authority(site: Path, tmp_path: Path) -> None:
    kit = SiteKit.read(site, now=NOW)
    other = SigningKey.create(tmp_path / "other.key").public
    assert kit.model_copy(update={"signing_key": other}).fingerprint != kit.fingerprint
    files = {**kit.files, "ca.pem": "0" * 64}
    assert kit.model_copy(update={"files": files}).fingerprint != kit.fingerprint


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (remove("kit.json"), "expected a kit, found no kit.json"),
        (remove("kit.sig"), "kit.sig: expected the coordinator's signature"),
        (remove("ca.pem"), "ca.pem: belongs to the kit but cannot be read"),
        (remove("task.toml"), "task.toml: belongs to the kit but cannot be read"),
        (edit("kit.json", lambda b: b.replace(b"fl.example", b"my.example")), "signature"),
        (edit("kit.json", lambda b: b + b"\n"), "signature"),
        (edit("kit.json", lambda _: b"[" * 100_000), "expected a JSON object"),
        (edit("kit.json", lambda _: b"[1]"), "expected a JSON object"),
        (edit("kit.json", lambda _: b"\xff"), "expected a JSON object"),
        (edit("kit.sig", lambda b: b"A" + b[1:]), "signature"),
        (edit("kit.sig", lambda _: b""), "signature"),
        (edit("kit.sig", lambda _: b"\xff"), "signature"),
        (edit("ca.pem", lambda b: b + b" "), "ca.pem: is not the file that the coordinator signed"),
        (edit("task.toml", lambda b: b"#" + b), "task.toml: is not the file"),
    ],
)
def test_what_was_tampered_with_is_refused_by_name(
    site: Path, tamper: Callable[[Path], None], message: str
) -> None:
    tamper(site)
    with pytest.raises(ConfigError) as caught:
        SiteKit.read(site, now=NOW)
    assert message in str(caught.value)
    assert str(site) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient": 3}, r"unknown key 'patient' \(did you mean 'patience'"),
        ({"schema": 2}, "schema = 2"),
        ({"kind": "server"}, "expected the kit of a site, found kind 'server'"),
        ({"kind": None}, "found kind None"),
        ({"site": "../x"}, "site = '../x'"),
        ({"address": "fl.example.org"}, "expected host:port"),
        ({"versions": []}, "versions"),
        ({"expires": "2028-01-01T00:00:00"}, "expires"),
        ({"files": {}}, "files: expected the digests of ca.pem, task.toml"),
        ({"files": {"../ca.pem": "0" * 64}}, "expected the digests"),
    ],
)
def test_what_the_coordinator_would_not_sign_is_refused_all_the_same(
    site: Path, key: SigningKey, changes: dict[str, object], message: str
) -> None:
    sign_anew(site, key, **changes)
    with pytest.raises(ConfigError, match=message):
        SiteKit.read(site, now=NOW)


def test_a_signature_for_another_purpose_is_none(site: Path, key: SigningKey) -> None:
    content = (site / "kit.json").read_bytes()
    (site / "kit.sig").write_text(key.sign("run", content))
    with pytest.raises(ConfigError, match="signature"):
        SiteKit.read(site, now=NOW)


def test_a_kit_signed_by_somebody_else_has_another_fingerprint(site: Path, tmp_path: Path) -> None:
    before = SiteKit.read(site, now=NOW).fingerprint
    thief = SigningKey.create(tmp_path / "thief.key")
    sign_anew(site, thief, address="evil.example.org:9092")
    with pytest.raises(ConfigError, match="signature"):
        SiteKit.read(site, now=NOW)
    sign_anew(site, thief, signing_key=thief.public)
    assert SiteKit.read(site, now=NOW).fingerprint != before


def test_an_expired_kit_is_refused_with_both_times(site: Path) -> None:
    kit = SiteKit.read(site, now=NOW + timedelta(days=365, seconds=-1))
    with pytest.raises(ConfigError, match=r"expired on 2028-02-29 .* it is 2028-02-29"):
        SiteKit.read(site, now=kit.expires)


def test_the_other_kind_of_kit_is_refused(federation: Federation, site: Path) -> None:
    with pytest.raises(ConfigError, match="expected the kit of a server, found kind 'site'"):
        ServerKit.read(site, now=NOW)
    with pytest.raises(ConfigError, match="expected the kit of a site, found kind 'server'"):
        SiteKit.read(federation.out / "server", now=NOW)


def test_an_installed_version_must_be_listed(site: Path) -> None:
    kit = SiteKit.read(site, now=NOW)
    check_version(kit, kit.versions[0])
    with pytest.raises(ConfigError, match=rf"expected MedFusion {kit.versions[0]}, found 9\.9"):
        check_version(kit, "9.9")


@given(st.data())
def test_a_mutated_kit_is_never_accepted(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = federation.out / "sites" / "italy"
    folder = tmp_path_factory.getbasetemp() / "mutated"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    content = (source / "kit.json").read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 4)))
    mutated = content[:start] + data.draw(st.binary(max_size=4)) + content[end:]
    (folder / "kit.json").write_bytes(mutated)
    if mutated == content:
        SiteKit.read(folder, now=NOW)
    else:
        with pytest.raises(ConfigError):
            SiteKit.read(folder, now=NOW)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("fl.example.org:9092", ("fl.example.org", 9092)),
        ("localhost:1", ("localhost", 1)),
        ("192.0.2.7:65535", ("192.0.2.7", 65535)),
        ("[2001:db8::7]:9092", ("2001:db8::7", 9092)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", ":9092", "host:", "host:0", "host:65536", "host:9092\n", "ho st:1", "a_b:1"),
        *("2001:db8::7:9092", "[192.0.2.7]:1", "[fe80::1%eth0]:1", "256.1.1.1:1"),
        *("-a:1", "a..b:1", "http://a:1", "a:\u0661"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_address(address)
