"""The coordinator's app and real Nodes: a signed private run, and a hospital that approves late."""

import json

import numpy as np
from fake_sites import FakeGrid
from flwr.app import Context, RecordDict
from node_asker import SECRET
from tabular_cohort import write_ward

from client.node.approvals import runs_of
from client.node.audit_log import AuditLog
from client.node.node import Node
from client.node.state import NodeState
from medfusion.config import config_text, load_config
from medfusion.data.site_data import load_site_data
from medfusion.data.task import Task
from medfusion.federation.authority import Authority
from medfusion.federation.signatures import SigningKey
from medfusion.transport.requests import run_content
from server.app import app
from server.run_state import run_settings

KINDS = {"query.describe": "describe", "query.select": "select", "query.deliver": "deliver"}


class Hospital:
    """A real Node behind the fake grid."""

    def __init__(self, folder, state, authority):
        data = load_site_data(folder)
        self.state = state
        ledger = NodeState(state).ledger(data.name, witnesses=state.parent / "witnesses")
        self.node = Node(data, NodeState(state), SECRET, ledger, authority=authority)

    def answer(self, kind, content):
        return self.node.handle(KINDS.get(kind, kind), content)


def test_a_hospital_that_approves_after_the_first_round_takes_part_from_the_next(tmp_path):
    path = write_ward(tmp_path / "ward")
    south = path.parent / "sites" / "south"
    toml = south / "site.toml"
    toml.write_text(toml.read_text() + '[policy]\napprove = "ask"\n')
    config = load_config(
        path,
        [
            "run.rounds=3",
            "training.steps=2",
            "privacy.enabled=true",
            "privacy.target_epsilon=8",
            "server.min_sites=1",
            "server.round_timeout=60",
        ],
    )
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text(config_text(config))
    key = SigningKey.create(tmp_path / "signing.key")
    settings = run_settings(config, Task.load(config.run.task))
    signature = key.sign("run", run_content("heart", settings))
    authority = Authority(federation="heart", signing_key=key.public)
    hospitals = [
        Hospital(path.parent / "sites" / name, tmp_path / f"{name}.state", authority)
        for name in ("north", "south")
    ]
    grid = FakeGrid(dict(enumerate(hospitals, start=1)))

    def before(kind, number):
        if kind == "train" and number == 2:
            runs_of(tmp_path / "south.state").decide("ward", "approved", by="ada")

    grid.before = before
    run_config = {"config": str(out / "config.toml"), "out": str(out), "signature": signature}
    app(grid, Context(1, 1, {}, state=RecordDict(), run_config=run_config))

    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["sites"]["south"]["status"] for line in lines] == ["waiting", "ok", "ok"]
    assert [line["sites"]["north"]["status"] for line in lines] == ["ok", "ok", "ok"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["selected"] == ["north"]
    assert np.isfinite(summary["sites"]["south"]["epsilon"])
    assert (tmp_path / "south.state" / "models" / settings.run_id / "model.safetensors").exists()
    events = AuditLog(tmp_path / "south.state").verify()
    assert events.broken is None
    answered = [
        (e.details["kind"], e.details["round"]) for e in events.events if e.event == "answered"
    ]
    assert answered == [
        ("describe", 0),
        ("train", 2),
        ("train", 3),
        ("evaluate", 3),
        ("deliver", 0),
    ]
