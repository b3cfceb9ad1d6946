"""A hospital joins: its key is as Flower and OpenSSH read it, its request proves that it has it."""

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from federations import NOW, Federation
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    sign_message,
    uses_nist_ec_curve,
    verify_signature,
)

from medfusion.errors import ConfigError
from medfusion.federation.join import JoinRequest, join
from medfusion.federation.kit import SiteKit
from medfusion.federation.node_key import NodeKey, is_signed_by_node, key_fingerprint


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.provision()
    return made


@pytest.fixture
def kit(federation: Federation, tmp_path: Path) -> Path:
    return Path(shutil.copytree(federation.out / "sites" / "italy", tmp_path / "kit"))


def test_the_key_is_one_that_flower_takes(kit: Path, tmp_path: Path) -> None:
    join(kit, now=NOW)
    private = load_ssh_private_key((kit / "node.key").read_bytes(), None)  # as the SuperNode does
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert uses_nist_ec_curve(private.public_key())
    assert stat.S_IMODE((kit / "node.key").stat().st_mode) == 0o600
    text = JoinRequest.read(kit / "join-italy.json").public_key
    (tmp_path / "node.pub").write_text(text)
    registered = try_load_public_key(tmp_path / "node.pub")  # as flwr supernode register does
    assert registered == public_key_to_bytes(private.public_key())
    signature = sign_message(private, b"now")
    assert verify_signature(bytes_to_public_key(registered), b"now", signature)


def test_the_key_is_one_that_openssh_takes(kit: Path) -> None:
    joined = join(kit, now=NOW)

    def told(*options: str) -> str:
        command = ["ssh-keygen", *options, "-f", str(kit / "node.key")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert told("-y") == JoinRequest.read(joined.request).public_key
    size, fingerprint, *_, kind = told("-l").split()
    assert (size, fingerprint, kind) == ("384", joined.key_fingerprint, "(ECDSA)")


def test_a_key_of_ssh_keygen_is_taken_as_it_is(kit: Path) -> None:
    path = kit / "node.key"
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True)
    before = path.read_bytes()
    joined = join(kit, now=NOW)
    assert path.read_bytes() == before
    public = path.with_suffix(".key.pub").read_text().strip()
    assert JoinRequest.read(joined.request).public_key == public


def test_joining_again_keeps_the_key_and_the_kit(kit: Path) -> None:
    first = join(kit, now=NOW)
    key = (kit / "node.key").read_bytes()
    second = join(kit, now=NOW)
    assert (kit / "node.key").read_bytes() == key
    assert second.key_fingerprint == first.key_fingerprint
    assert SiteKit.read(kit, now=NOW) == first.kit
    assert b"PRIVATE" not in first.request.read_bytes()


def test_a_fingerprint_is_compared_however_it_was_typed(kit: Path) -> None:
    fingerprint = SiteKit.read(kit, now=NOW).fingerprint
    join(kit, fingerprint=fingerprint.replace("-", " ").upper(), now=NOW)


@pytest.mark.parametrize("wrong", ["", "0000", "0000-" * 7 + "0000"])
def test_another_fingerprint_is_refused_before_a_key_is_made(kit: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=SiteKit.read(kit, now=NOW).fingerprint):
        join(kit, fingerprint=wrong, now=NOW)
    fingerprint = SiteKit.read(kit, now=NOW).fingerprint
    with pytest.raises(ConfigError, match="do not use the kit"):
        join(kit, fingerprint=fingerprint[:-5], now=NOW)  # a part of it is not it
    assert not (kit / "node.key").exists()


def test_a_kit_that_is_refused_gets_no_key(kit: Path) -> None:
    (kit / "ca.pem").write_text("another authority")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        join(kit, now=NOW)
    assert not (kit / "node.key").exists()


def test_a_key_that_others_may_read_is_refused(kit: Path) -> None:
    join(kit, now=NOW)
    (kit / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"node\.key: .* found mode 0640; .* chmod 600"):
        join(kit, now=NOW)


def other_key(which: str, folder: Path) -> bytes:
    if which == "damaged":
        return b""
    if which == "another format":
        key = ec.generate_private_key(ec.SECP384R1())
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    bits, passphrase = ("256", "") if which == "another curve" else ("384", "secret")
    path = folder / "other"
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", bits, "-N", passphrase, "-f", str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


@pytest.mark.parametrize("which", ["damaged", "another format", "another curve", "a passphrase"])
def test_another_key_in_its_place_is_refused_and_stays(
    kit: Path, tmp_path: Path, which: str
) -> None:
    path, content = kit / "node.key", other_key(which, tmp_path)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"node\.key: expected a private key of OpenSSH"):
        join(kit, now=NOW)
    assert path.read_bytes() == content


@pytest.mark.parametrize("field", ["federation", "site", "public_key", "proof"])
def test_a_request_holds_for_what_its_sender_wrote(kit: Path, tmp_path: Path, field: str) -> None:
    path = join(kit, now=NOW).request
    other = NodeKey.create(tmp_path / "other.key")
    changed = {
        "federation": "another",
        "site": "spain",
        "public_key": other.public,
        "proof": other.sign(b"something"),
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: changed[field]}))
    with pytest.raises(ConfigError, match=r"join-italy\.json: expected a proof"):
        JoinRequest.read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " italy@example.org",
        lambda text: text + "\n",
        lambda text: text[:-8],
        lambda _: "",
        lambda _: "\ud800",
        lambda _: (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2mU8Q2Zr2Cq8mG7l7r0m0m1m2m3m4m5m6m7m8m9m0m"
        ),
    ],
)
def test_a_public_key_has_one_spelling(kit: Path, change) -> None:
    path = join(kit, now=NOW).request
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"public_key": change(data["public_key"])}))
    with pytest.raises(ConfigError, match=r"public_key( =|:) "):
        JoinRequest.read(path)


def test_what_is_no_signature_signs_nothing(tmp_path: Path) -> None:
    key = NodeKey.create(tmp_path / "node.key")
    assert is_signed_by_node(key.public, b"content", key.sign(b"content"))
    for signature in ("", "?", "é", "AAAA", key.sign(b"contents")):
        assert not is_signed_by_node(key.public, b"content", signature)
    assert isinstance(load_ssh_public_key(key.public.encode()), ec.EllipticCurvePublicKey)
    assert key_fingerprint(key.public).startswith("SHA256:")
