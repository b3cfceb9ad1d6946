"""Who may take part: what was admitted is let in, all else is shut out, whatever was lost."""

from datetime import UTC, datetime, timedelta

import pytest
from kits import write_kits
from tabular_cohort import write_ward

from medfusion.errors import FederationError
from medfusion.federation.documents import document_text
from medfusion.federation.kit import ServerKit
from medfusion.federation.nodes import NodeList
from server.deployment.node_registry import NodeRegistry


class FakeFlower:
    """Refuses to shut out whom it does not know, as Flower does."""

    def __init__(self):
        self.known = {}
        self.next = 1
        self.asked = 0

    def nodes(self):
        self.asked += 1
        return {node: {"status": "online"} for node in self.known}

    def register(self, public_key, name):
        self.known[self.next] = (name, public_key.read_text().strip())
        self.next += 1
        return self.next - 1

    def unregister(self, node_id):
        if node_id not in self.known:
            raise FederationError("Node not found")
        del self.known[node_id]

    @property
    def names(self):
        return sorted(name for name, _ in self.known.values())


@pytest.fixture
def flower():
    return FakeFlower()


@pytest.fixture
def registry(tmp_path, flower):
    task = write_ward(tmp_path / "ward").parent / "task.toml"
    kits = write_kits(tmp_path / "federation", task, ["north", "south"])
    (kits / "server" / "state").mkdir()
    found = NodeRegistry(ServerKit.read(kits / "server"), flower, kits / "server" / "state")
    found.bring_up_to_date()
    return found


def change(tmp_path, site, **update):
    path = tmp_path / "federation" / "kits" / "server" / "nodes.json"
    nodes = NodeList.read(path).nodes
    changed = {**nodes, site: nodes[site].model_copy(update=update)}
    path.write_text(document_text(NodeList(nodes=changed)))


def test_the_admitted_are_let_in_once(registry, flower):
    assert flower.names == ["north", "south"]
    asked = flower.asked
    registry.bring_up_to_date()
    assert flower.asked == asked  # a look is free
    assert set(registry.registered.values()) == set(flower.known)


@pytest.mark.parametrize(
    "update", [{"revoked": True}, {"expires": datetime.now(UTC) - timedelta(seconds=1)}]
)
def test_the_revoked_and_the_expired_are_shut_out(registry, flower, tmp_path, update):
    change(tmp_path, "north", **update)
    registry.bring_up_to_date()
    assert flower.names == ["south"]
    assert set(registry.registered) == {"south"}


@pytest.mark.parametrize("lost", ["note", "database", "one node", "damaged note"])
def test_revocation_goes_on_whatever_was_lost(registry, flower, tmp_path, lost):
    note = tmp_path / "federation" / "kits" / "server" / "state" / "registered.json"
    if lost == "note":
        note.unlink()
    elif lost == "damaged note":
        note.write_text("{")
    elif lost == "database":
        flower.known.clear()
    else:  # killed between shutting out and noting it
        flower.unregister(registry.registered["north"])
    change(tmp_path, "north", revoked=True)
    registry.bring_up_to_date()
    registry.bring_up_to_date()
    assert flower.names == ["south"]
    assert set(registry.registered.values()) == set(flower.known)
