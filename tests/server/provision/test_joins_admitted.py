"""Who is admitted, who is not, and who is no longer."""

import json
import shutil
from pathlib import Path

import pytest
from federations import NOW, Federation

from medfusion.errors import ConfigError
from medfusion.federation.join import JoinRequest
from medfusion.federation.node_key import NodeKey, key_fingerprint
from medfusion.federation.nodes import AdmittedNode, NodeList


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(tmp_path)
    made.provision()
    return made


def admitted(federation: Federation) -> dict[str, AdmittedNode]:
    return dict(NodeList.read(federation.out / "server" / "nodes.json").nodes)


def refused(federation: Federation, message: str) -> None:
    """Expect a refusal that admits nobody and changes no kit."""
    before = federation.files()
    with pytest.raises(ConfigError, match=message):
        federation.provision()
    assert federation.files() == before


def lose_key(federation: Federation, site: str) -> str:
    """Let a hospital that lost its key join again; return the new one's fingerprint."""
    (federation.kit(site) / "node.key").unlink()
    return key_fingerprint(JoinRequest.read(federation.request(site)).public_key)


def test_a_request_is_admitted_as_long_as_its_kit_holds(federation: Federation) -> None:
    request = JoinRequest.read(federation.request("italy"))
    (step,) = [step for step in federation.provision() if step.subject == "node of italy"]
    assert step.action == "admitted"
    assert key_fingerprint(request.public_key) in step.detail
    (node,) = admitted(federation).values()
    assert (node.public_key, node.revoked) == (request.public_key, False)
    assert node.may_take_part(NOW)
    shutil.rmtree(federation.out / "requests")
    assert federation.actions()["node of italy"] == "kept"


def test_requests_may_have_any_name(federation: Federation) -> None:
    path = federation.request("italy")
    path.rename(path.with_name("mail from italy (2).json"))
    federation.provision()
    assert admitted(federation).keys() == {"italy"}


def write_request(federation: Federation, *, name: str = "covid-icu", site: str = "italy") -> Path:
    key = NodeKey.create(federation.folder / "some.key")
    path = federation.out / "requests" / "some.json"
    request = JoinRequest.by(key, federation=name, site=site)
    path.write_text(json.dumps(request.model_dump()))
    return path


def test_a_request_for_another_federation_is_refused(federation: Federation) -> None:
    write_request(federation, name="another")
    refused(federation, r"some\.json: asks to join the federation 'another'")


def test_a_request_for_an_unknown_site_is_refused(federation: Federation) -> None:
    write_request(federation, site="itly")
    refused(federation, r"some\.json: asks for the site 'itly', .* \(did you mean 'italy'\?\)")


def test_a_request_for_a_revoked_site_is_refused(federation: Federation) -> None:
    write_request(federation)
    federation.write("italy\nrevoked = true", "spain")
    refused(federation, r"some\.json: asks for the site 'italy', which is revoked")


def test_a_request_whose_proof_does_not_hold_is_refused(federation: Federation) -> None:
    path = federation.request("italy")
    other = NodeKey.create(federation.folder / "thief.key")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"public_key": other.public}))
    refused(federation, r"join-italy\.json: expected a proof")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "site": "italy", "more": 1}'])
def test_a_damaged_request_is_refused(federation: Federation, content: str) -> None:
    (federation.out / "requests" / "join.json").write_text(content)
    refused(federation, r"requests/join\.json: ")


def test_one_key_for_two_sites_is_refused(federation: Federation) -> None:
    key = write_request(federation, site="italy")
    key.rename(key.with_name("first.json"))
    write_request(federation, site="spain")
    refused(federation, r"some\.json: asks for the key of the site 'italy'")
    (federation.out / "requests" / "some.json").unlink()
    federation.provision()
    federation.write("italy\nrevoked = true", "spain")
    federation.provision()
    write_request(federation, site="spain")
    refused(federation, r"some\.json: asks for the key of the site 'italy'")


def test_two_keys_for_one_site_are_refused(federation: Federation) -> None:
    federation.request("italy")
    write_request(federation, site="italy")
    refused(federation, r"some\.json: another file beside it asks for another key of 'italy'")


def test_another_key_is_admitted_only_if_the_coordinator_names_it(federation: Federation) -> None:
    federation.request("italy")
    federation.provision()
    fingerprint = lose_key(federation, "italy")
    refused(
        federation, rf'write rejoin = "{fingerprint}" below \[sites.italy\]'.replace("+", r"\+")
    )
    other = "SHA256:" + "A" * 43
    federation.write(f'italy\nrejoin = "{other}"', "spain")
    refused(federation, "was admitted with another")
    federation.write(f'italy\nrejoin = "{fingerprint}"', "spain")
    assert federation.actions()["node of italy"] == "admitted"
    assert key_fingerprint(admitted(federation)["italy"].public_key) == fingerprint
    assert federation.actions()["node of italy"] == "kept"
    lose_key(federation, "italy")  # what was written admits no further key
    refused(federation, "was admitted with another")


def test_a_revoked_site_is_revoked_and_its_kit_left_alone(federation: Federation) -> None:
    federation.request("italy")
    federation.request("spain")
    federation.provision()
    before = federation.files()
    federation.write("italy\nrevoked = true", "spain")
    actions = federation.actions()
    assert actions["node of italy"] == "revoked"
    assert "kit of italy" not in actions
    nodes = admitted(federation)
    assert (nodes["italy"].revoked, nodes["spain"].revoked) == (True, False)
    assert not nodes["italy"].may_take_part(NOW)
    assert {n for n, c in federation.files().items() if before[n] != c} == {"server/nodes.json"}
    assert federation.actions()["node of italy"] == "kept"
    federation.write()
    assert federation.actions()["node of italy"] == "admitted"
    assert federation.files() == before


def test_a_site_that_is_taken_out_is_revoked(federation: Federation) -> None:
    federation.request("italy")
    federation.provision()
    federation.write("spain")
    assert federation.actions()["node of italy"] == "revoked"
    assert admitted(federation)["italy"].revoked
    assert admitted(federation).keys() == {"italy"}


@pytest.mark.parametrize("obstacle", ["request", "key"])
def test_a_revocation_waits_for_nothing(federation: Federation, obstacle: str) -> None:
    federation.request("italy")
    federation.provision()
    federation.write("italy\nrevoked = true", "spain")
    if obstacle == "request":
        (federation.out / "requests" / "x.json").write_text("damaged")
    else:
        (federation.out / "authority" / "ca.key").unlink()
    with pytest.raises(ConfigError):
        federation.provision(renew=True)
    assert admitted(federation)["italy"].revoked


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: nodes["italy"].pop("expires"),
        lambda nodes: nodes["italy"].update(public_key="ssh-rsa AAAA"),
        lambda nodes: nodes["italy"].update(role="chief"),
        lambda nodes: nodes.update({"../x": nodes["italy"]}),
        lambda nodes: nodes.update(spain=nodes["italy"]),
    ],
)
def test_a_damaged_list_is_refused(federation: Federation, change) -> None:
    federation.request("italy")
    federation.provision()
    path = federation.out / "server" / "nodes.json"
    data = json.loads(path.read_text())
    change(data["nodes"])
    path.write_text(json.dumps(data))
    refused(federation, r"server/nodes\.json: ")
