"""Provisioning again changes what has to change and nothing else."""

import os
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from federations import NOW, TASK, Federation

from medfusion.errors import ConfigError
from medfusion.federation.kit import ServerKit, SiteKit
from medfusion.federation.nodes import NodeList
from medfusion.folder_lock import held_alone
from server.provision import provision as module
from server.provision import steps
from server.provision.authority import Authority
from server.provision.private_keys import read_key

SECRETS = ("authority/ca.key", "server/server.key", "server/signing.key")
DAY = timedelta(days=1)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_first_call_makes_everything(federation: Federation) -> None:
    assert federation.actions() == {
        "authority": "made",
        "server certificate": "made",
        "server kit": "made",
        "kit of italy": "made",
        "kit of spain": "made",
        "node of italy": "waiting",
        "node of spain": "waiting",
    }
    kit = {"README.md", "ca.pem", "kit.json", "kit.sig", "task.toml"}
    private = {"nodes.json", "server.key", "server.pem", "signing.key"}
    assert federation.files().keys() == {
        "README.md",
        "authority/ca.key",
        "authority/ca.pem",
        *(f"server/{name}" for name in kit | private),
        *(f"sites/{site}/{name}" for site in ("italy", "spain") for name in kit),
    }
    assert (federation.out / "requests").is_dir()


def test_private_keys_are_their_owners(federation: Federation) -> None:
    before = os.umask(0)
    try:
        federation.provision()
    finally:
        os.umask(before)
    for name in SECRETS:
        assert stat.S_IMODE((federation.out / name).stat().st_mode) == 0o600
    for name in ("authority", "server"):
        assert stat.S_IMODE((federation.out / name).stat().st_mode) == 0o700


def test_no_kit_of_a_site_holds_a_private_key(federation: Federation) -> None:
    federation.provision()
    for path in (federation.out / "sites").rglob("*"):
        assert not path.is_file() or b"PRIVATE" not in path.read_bytes()
    signing = (federation.out / "server" / "signing.key").read_bytes()
    holders = [name for name, content in federation.files().items() if signing in content]
    assert holders == ["server/signing.key"]


def test_again_without_a_change_touches_nothing(federation: Federation) -> None:
    federation.provision()
    federation.request("italy")
    federation.provision()
    before = federation.files()
    times = {path: path.stat().st_mtime_ns for path in federation.out.rglob("*")}
    actions = federation.actions(NOW + 300 * DAY)
    assert set(actions.values()) == {"kept", "waiting"}
    assert federation.files() == before
    assert {path: path.stat().st_mtime_ns for path in federation.out.rglob("*")} == times


def test_a_new_site_leaves_the_others_alone(federation: Federation) -> None:
    federation.provision()
    before = federation.files()
    federation.write("italy", "spain", "new")
    federation.provision(NOW + DAY)
    new = {name for name in federation.files() if name.startswith("sites/new/")}
    assert len(new) == 5
    assert changed(before, federation.files()) == new


@pytest.mark.parametrize(
    "more", ["patience = 60", "control_port = 9999", "versions = ['0.0.1', '{installed}']"]
)
def test_what_kits_say_changes_their_json_alone(federation: Federation, more: str) -> None:
    federation.provision()
    installed = SiteKit.read(federation.out / "sites/italy", now=NOW).versions[0]
    before = federation.files()
    federation.write(more=more.format(installed=installed))
    actions = federation.actions(NOW + DAY)
    folders = ["server"] if "control" in more else ["server", "sites/italy", "sites/spain"]
    expected = {f"{folder}/kit.{end}" for folder in folders for end in ("json", "sig")}
    assert changed(before, federation.files()) == expected
    assert actions["server kit"] == "changed"


def test_another_address_needs_another_certificate_only_for_another_host(
    federation: Federation,
) -> None:
    federation.provision()
    federation.write(address="fl.example.org:9999")
    assert federation.actions()["server certificate"] == "kept"
    federation.write(address="192.0.2.7:9999")
    actions = federation.actions()
    assert (actions["server certificate"], actions["kit of italy"]) == ("changed", "changed")
    assert ServerKit.read(federation.out / "server", now=NOW).host == "192.0.2.7"


def test_another_task_goes_into_every_kit_but_a_comment_does_not(federation: Federation) -> None:
    federation.provision()
    before = federation.files()
    federation.task.write_text("# a comment\n" + TASK)
    federation.write("italy", "spain", "new")
    federation.provision()
    assert {name.split("/")[1] for name in changed(before, federation.files())} == {"new"}
    federation.task.write_text(TASK.replace("120", "110"))
    actions = federation.actions()
    assert {actions[f"kit of {site}"] for site in ("italy", "spain", "new")} == {"changed"}
    texts = {path.read_text() for path in federation.out.rglob("task.toml")}
    assert texts == {federation.task.read_text()}


def test_what_expires_within_a_month_is_renewed_with_the_same_keys(federation: Federation) -> None:
    federation.provision()
    federation.request("italy")
    federation.provision()
    before = federation.files()
    late = NOW + 336 * DAY
    actions = federation.actions(late)
    assert actions["node of italy"] == actions["kit of italy"] == "renewed"
    assert actions["server certificate"] == "renewed"
    after = federation.files()
    kept = {*SECRETS, "authority/ca.pem", "sites/italy/ca.pem", "sites/italy/task.toml"}
    assert not kept & changed(before, after)
    kits = [SiteKit.read(federation.out / "sites" / site, now=late) for site in ("italy", "spain")]
    server = ServerKit.read(federation.out / "server", now=late)
    assert {kit.expires for kit in (*kits, server)} == {late + 365 * DAY}
    node = NodeList.read(server.nodes).nodes["italy"]
    assert node.expires == kits[0].expires
    assert node.may_take_part(late + 364 * DAY)
    assert not node.may_take_part(node.expires)
    assert SiteKit.read(federation.kit("italy"), now=late).fingerprint == server.fingerprint


def test_what_has_expired_is_renewed(federation: Federation) -> None:
    federation.provision()
    late = NOW + 400 * DAY
    with pytest.raises(ConfigError, match="expired"):
        SiteKit.read(federation.out / "sites/italy", now=late)
    assert federation.actions(late)["kit of italy"] == "renewed"
    SiteKit.read(federation.out / "sites/italy", now=late)


def test_renew_renews_what_holds_for_long(federation: Federation) -> None:
    federation.provision()
    actions = federation.actions(NOW + DAY, renew=True)
    assert actions["kit of italy"] == actions["server certificate"] == "renewed"
    assert ServerKit.read(federation.out / "server", now=NOW).expires == NOW + 366 * DAY


def test_nothing_outlives_the_authority(federation: Federation) -> None:
    federation.provision()
    end = ServerKit.read(federation.out / "server", now=NOW).expires + timedelta(days=3652 - 365)
    near = end - 20 * DAY
    federation.provision(near)
    kit = ServerKit.read(federation.out / "server", now=near)
    assert near < kit.expires < near + 22 * DAY
    before = federation.files()
    federation.provision(near + DAY)  # renewing would gain nothing
    assert federation.files() == before
    with pytest.raises(ConfigError, match=r"ca\.pem: the authority expired"):
        federation.provision(kit.expires)


def test_the_authoritys_key_may_be_away_unless_it_is_needed(federation: Federation) -> None:
    federation.provision()
    key = federation.out / "authority" / "ca.key"
    away = Path(shutil.move(key, federation.folder))
    federation.request("italy")
    federation.write("italy", "spain", "new")
    assert federation.actions()["kit of new"] == "made"
    assert not key.exists()
    federation.write("italy", "spain\nrevoked = true", "new")
    with pytest.raises(ConfigError, match=r"ca\.key: cannot be read .* bring it back"):
        federation.provision(renew=True)
    shutil.move(away, key)
    assert federation.actions(renew=True)["server certificate"] == "renewed"


class KilledError(BaseException):
    """What no code of ours catches."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die at a write: before its first byte, or with half of it on the disk."""
    left = step

    def dying(name: str):
        writer = getattr(steps, name)

        def write(path: Path, data: bytes, **options: object) -> None:
            nonlocal left
            if left == 0:
                path.with_name(f".{path.name}.00.partial").write_bytes(data[: len(data) // 2])
                raise KilledError
            left -= 1
            writer(path, data, **options)

        return write

    for name in ("write_atomically", "create_secret"):
        monkeypatch.setattr(steps, name, dying(name))


def test_a_call_that_was_killed_anywhere_is_completed_by_the_next(tmp_path: Path) -> None:
    whole = Federation(tmp_path / "whole")
    whole.provision()
    for step in range(100):
        federation = Federation(tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                federation.provision()
            except KilledError:
                pass
            else:
                break
        early = {name: content for name, content in federation.files().items() if name in SECRETS}
        federation.provision()
        after = federation.files()
        assert after.keys() == whole.files().keys()
        assert not changed(early, after) & early.keys()
        for site in ("italy", "spain"):
            SiteKit.read(federation.out / "sites" / site, now=NOW)
        ServerKit.read(federation.out / "server", now=NOW)
        assert federation.files() == after
    assert step == len(whole.files()) - 1  # the signing key is written elsewhere


def test_a_renewal_that_was_killed_leaves_each_kit_whole_or_is_completed(
    federation: Federation,
) -> None:
    federation.provision()
    federation.request("italy")
    federation.provision()
    late = NOW + 350 * DAY
    for step in range(100):
        out = federation.out
        shutil.copytree(out, federation.folder / "saved", dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                federation.provision(late)
            except KilledError:
                pass
            else:
                break
        nodes = NodeList.read(out / "server" / "nodes.json").nodes
        federation.provision(late)
        after = NodeList.read(out / "server" / "nodes.json").nodes
        assert after["italy"].public_key == nodes["italy"].public_key
        assert after["italy"].expires == SiteKit.read(out / "sites/italy", now=late).expires
        shutil.rmtree(out)
        shutil.move(federation.folder / "saved", out)
    assert step == 8  # certificate, three kits with signatures, nodes


def test_only_one_call_is_at_work(federation: Federation) -> None:
    federation.provision()
    with (
        held_alone(federation.out, ConfigError("held")),
        pytest.raises(ConfigError, match="another call of provision is at work"),
    ):
        federation.provision()


def test_a_folder_of_something_else_is_left_alone(federation: Federation) -> None:
    federation.out.mkdir()
    (federation.out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="found something else"):
        federation.provision()
    assert federation.files().keys() == {"thesis.tex"}


def test_another_federations_folder_is_left_alone(federation: Federation) -> None:
    federation.provision()
    before = federation.files()
    federation.write(name="another")
    with pytest.raises(ConfigError, match=r"ca\.pem: belongs to the federation 'covid-icu'"):
        federation.provision()
    assert federation.files() == before


@pytest.mark.parametrize(
    "name",
    [
        *("authority/ca.pem", "authority/ca.key", "server/signing.key", "server/server.key"),
        *("server/server.pem", "server/nodes.json", "server/kit.json", "server/task.toml"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_stays(federation: Federation, name: str) -> None:
    federation.provision()
    (federation.out / name).write_bytes(b"damaged")
    before = federation.files()
    with pytest.raises(ConfigError) as caught:
        federation.provision(NOW, renew=True)
    assert str(federation.out / name) in str(caught.value)
    assert federation.files() == before


@pytest.mark.parametrize("name", ["authority/ca.pem", "server/signing.key", "server/nodes.json"])
def test_what_cannot_be_made_again_is_missed(federation: Federation, name: str) -> None:
    federation.provision()
    (federation.out / name).unlink()
    with pytest.raises(ConfigError, match="missing") as caught:
        federation.provision()
    assert str(federation.out / name) in str(caught.value)
    assert not (federation.out / name).exists()


@pytest.mark.parametrize("name", SECRETS)
def test_another_key_in_the_place_of_one_is_noticed(federation: Federation, name: str) -> None:
    federation.provision()
    other = Federation(federation.folder / "other")
    other.provision()
    shutil.copy(other.out / name, federation.out / name)
    if name == "server/server.key":
        assert federation.actions()["server certificate"] == "changed"
        return
    with pytest.raises(ConfigError, match="is not the key"):
        federation.provision(renew=True)


def test_a_certificate_of_another_authority_is_replaced(federation: Federation) -> None:
    federation.provision()
    other = Authority.create(federation.folder / "other", federation="covid-icu", now=NOW)
    server = ServerKit.read(federation.out / "server", now=NOW)
    key = read_key(server.server_key).public_key()
    foreign = other.issue(key, server.host, now=NOW, expires=server.expires)
    server.server_certificate.write_bytes(foreign)
    assert federation.actions()["server certificate"] == "changed"
    assert server.server_certificate.read_bytes() != foreign


def test_a_kit_that_was_changed_is_made_again(federation: Federation) -> None:
    federation.provision()
    (federation.out / "sites/italy/ca.pem").write_text("another")
    before = federation.files()
    assert federation.actions()["kit of italy"] == "made"
    assert changed(before, federation.files()) <= {
        f"sites/italy/{name}" for name in ("ca.pem", "kit.json", "kit.sig")
    }


def test_a_folder_that_cannot_be_written_is_named(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "put", full)
    with pytest.raises(ConfigError, match=r"README\.md: .*No space left"):
        federation.provision()
