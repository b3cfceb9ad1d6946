"""What a deployed Node lets in, asked as a coordinator would, and what its audit log then holds."""

import hashlib
import json
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord
from node_asker import NodeAsker
from tabular_cohort import write_ward

from client.node.approvals import runs_of
from client.node.audit_log import LOG, AuditLog
from client.node.trainer import Trainer
from medfusion.errors import AuditLogError, ConfigError, FederationError, WaitingError
from medfusion.federation.authority import Authority
from medfusion.federation.signatures import SigningKey
from medfusion.transport.requests import (
    CONFIG,
    REQUEST_KEY,
    Request,
    read_error,
    request_content,
    run_content,
)

RUN = ("privacy.enabled=true", "training.steps=1", "privacy.target_epsilon=4")
KINDS = ("select", "train", "evaluate", "deliver")


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return write_ward(tmp_path_factory.mktemp("ward"), sites=("north",)).parent


@pytest.fixture
def key(tmp_path):
    return SigningKey.create(tmp_path / "signing.key")


def asking(data):
    """The site of ``data``, whose people approve each run."""
    policy = data.config.policy.model_copy(update={"approve": "ask"})
    return replace(data, config=data.config.model_copy(update={"policy": policy}))


def deployed(ward, state, *overrides, **options):
    return NodeAsker(ward, state, *RUN, *overrides, simulated=False, **options)


def signed(ward, state, key, *overrides, **options):
    authority = Authority(federation="heart", signing_key=key.public)
    return deployed(ward, state, *overrides, authority=authority, **options)


def signature(key, settings, federation="heart", purpose="run"):
    return key.sign(purpose, run_content(federation, settings))


def events(state, *kinds):
    found = AuditLog(state).verify()
    assert found.broken is None
    return [event for event in found.events if not kinds or event.event in kinds]


def test_what_the_coordinator_signed_is_served(ward, tmp_path, key):
    asker = signed(ward, tmp_path / "state", key)
    good = signature(key, asker.settings)
    assert [read_error(asker.ask(kind, signature=good)) for kind in KINDS[:3]] == [None] * 3
    assert read_error(asker.node.handle("describe", request_content(Request()))) is None


@pytest.mark.parametrize("wrong", ["none", "empty", "key", "federation", "purpose", "settings"])
def test_what_it_did_not_sign_is_refused_before_anything_is_looked_at(
    ward, tmp_path, key, wrong, monkeypatch
):
    asker = signed(ward, tmp_path / "state", key)
    other = asker.settings.model_copy(update={"rounds": 3})
    found = {
        "none": None,
        "empty": "",
        "key": signature(SigningKey.create(tmp_path / "other"), asker.settings),
        "federation": signature(key, asker.settings, federation="lung"),
        "purpose": signature(key, asker.settings, purpose="kit"),
        "settings": signature(key, other),
    }[wrong]
    for name in ("check_settings", "Trainer"):
        monkeypatch.setattr(f"client.node.node.{name}", lambda *_, **__: pytest.fail("looked at"))
    monkeypatch.setattr("client.node.admission.run_plan", lambda *_, **__: pytest.fail("planned"))
    for kind in ("describe", *KINDS):
        error = read_error(asker.ask(kind, signature=found))
        assert isinstance(error, FederationError)
        assert "not signed for federation 'heart'" in str(error)
    assert asker.node._ledger.book.head.count == 1
    assert runs_of(tmp_path / "state").all() == []
    assert len(events(tmp_path / "state", "refused")) == 5


def test_what_is_signed_are_the_settings_as_they_travel(ward, tmp_path, key):
    """An option that a newer Node knows and an older coordinator did not name changes nothing."""
    asker = signed(ward, tmp_path / "state", key)
    content = request_content(Request(settings=asker.settings), asker.record)
    data = json.loads(str(content[CONFIG][REQUEST_KEY]))
    del data["settings"]["report_loss"]  # its default
    older = json.dumps({"federation": "heart", "settings": data["settings"]}, sort_keys=True)
    data["signature"] = key.sign("run", older.replace(", ", ",").replace(": ", ":").encode())
    content[CONFIG] = ConfigRecord({REQUEST_KEY: json.dumps(data), "server-round": 1})
    assert read_error(asker.node.handle("train", content)) is None


def test_a_site_stays_with_its_first_coordinator(ward, tmp_path, key):
    state = tmp_path / "state"
    signed(ward, state, key)
    kept = json.loads((state / "coordinator.json").read_text())
    assert kept == {"schema": 1, "federation": "heart", "signing_key": key.public}
    signed(ward, state, key)
    other = SigningKey.create(tmp_path / "other")
    for authority in (
        Authority(federation="heart", signing_key=other.public),
        Authority(federation="lung", signing_key=key.public),
    ):
        with pytest.raises(FederationError, match=r"coordinator\.json.*'heart'.*remove the file"):
            deployed(ward, state, authority=authority)
    (state / "coordinator.json").write_text("{}")
    with pytest.raises(FederationError, match="damaged"):
        signed(ward, state, key)


@pytest.mark.parametrize("version", ["99.0.0", "1.0", None, 3])
def test_another_version_is_refused_whatever_else_it_sends(ward, tmp_path, version):
    asker = deployed(ward, tmp_path)
    data = {"version": version, "settings": {"new": 1}, "unheard_of": 1}
    content = request_content(Request())
    content[CONFIG] = ConfigRecord({REQUEST_KEY: json.dumps(data)})
    error = read_error(asker.node.handle("train", content))
    assert isinstance(error, FederationError)
    assert "upgrade" in str(error)


def test_a_run_waits_until_it_is_approved(ward, tmp_path, monkeypatch):
    asker = deployed(ward, tmp_path, change=asking)
    with monkeypatch.context() as patch:
        patch.setattr("client.node.node.Trainer", lambda *_: pytest.fail("begun"))
        for kind in KINDS:
            error = read_error(asker.ask(kind))
            assert isinstance(error, WaitingError)
            assert f"site approve {asker.settings.run_id} SITE" in str(error)
    assert asker.node._ledger.book.head.count == 1  # nothing is reserved
    (record,) = runs_of(tmp_path).all()
    assert (record.run_id, record.status) == (asker.settings.run_id, "waiting")
    runs_of(tmp_path).decide(record.run_id, "approved", by="ada")
    assert read_error(asker.ask("train")) is None
    runs_of(tmp_path).decide(record.run_id, "denied", by="bob")
    for kind in KINDS:
        assert "has denied it" in str(read_error(asker.ask(kind)))
    seen = [(e.event, e.details.get("by")) for e in events(tmp_path, "seen", "approved", "denied")]
    assert seen == [("seen", None), ("approved", "ada"), ("denied", "bob")]


def test_what_people_are_told_is_what_the_run_does(ward, tmp_path):
    asker = deployed(ward, tmp_path, change=asking)
    asker.ask("select")
    (record,) = runs_of(tmp_path).all()
    summary = record.summary
    assert summary.task_sha256 == asker.data.task.sha256
    assert (summary.model, summary.modalities, summary.rounds) == ("logistic", ("tabular",), 2)
    runs_of(tmp_path).decide(record.run_id, "approved", by="ada")
    assert read_error(asker.ask("train")) is None
    assert summary.epsilon == asker.node._trainer._plan.epsilon()
    assert 3.9 < summary.epsilon <= 4
    assert summary.delta == asker.data.config.policy.delta
    leaves = {part.what: part.times for part in summary.leaves}
    assert leaves == {
        "selection histograms": 1,
        "model updates": 2,
        "score histograms": asker.settings.evaluations,
        "score histograms of the calibration patients": 1,
    }


def test_an_approval_is_for_exactly_these_settings(ward, tmp_path):
    asker = deployed(ward, tmp_path, change=asking)
    asker.ask("train")
    runs_of(tmp_path).decide("ward", "approved", by="ada")
    other = asker.settings.model_copy(update={"rounds": 3})
    error = read_error(asker.ask("train", settings=other))
    assert "knows it with other settings" in str(error)
    assert read_error(asker.ask("train")) is None


def test_a_policy_that_approves_lists_the_run_all_the_same(ward, tmp_path):
    asker = deployed(ward, tmp_path)
    assert read_error(asker.ask("train")) is None
    (record,) = runs_of(tmp_path).all()
    assert (record.status, record.decided_by) == ("approved", 'policy (approve = "always")')
    runs_of(tmp_path).decide("ward", "denied", by="ada")
    assert "has denied it" in str(read_error(asker.ask("train")))


def test_a_refusal_by_policy_asks_nobody(ward, tmp_path):
    asker = deployed(ward, tmp_path, "privacy.target_epsilon=9", change=asking)
    error = read_error(asker.ask("train"))
    assert isinstance(error, ConfigError)
    assert "at most 8" in str(error)
    assert runs_of(tmp_path).all() == []
    (refused,) = events(tmp_path, "refused")
    assert refused.details["reason"] == str(error)
    assert refused.run == asker.settings.run_id


@pytest.mark.parametrize("selection", ["federated", "local"])
def test_a_site_that_is_approved_late_trains_without_having_selected(ward, tmp_path, selection):
    """Others selected; it comes to the second round, with their selection, under its own plan."""
    early = deployed(ward, tmp_path / "early", f"selection.method={selection}")
    chosen = None
    if selection == "federated":
        assert read_error(early.ask("select")) is None
        own = early.node._trainer.own_selection()
        assert own is not None
        chosen = own.to_json()
    late = deployed(ward, tmp_path / "late", f"selection.method={selection}", change=asking)
    assert isinstance(read_error(late.ask("train", selection=chosen)), WaitingError)
    runs_of(tmp_path / "late").decide("ward", "approved", by="ada")
    for kind in ("train", "evaluate"):
        assert read_error(late.ask(kind, round=2, selection=chosen)) is None
    kinds = [charge.slot[1] for charge in late.node._ledger.book.charges.values()]
    assert kinds == (["select"] if selection == "local" else []) + ["train", "evaluate"]


def test_the_log_tells_all_that_left_and_what_was_sent_again(ward, tmp_path):
    asker = deployed(ward, tmp_path)
    for _ in range(2):
        assert read_error(asker.ask("train")) is None
    started, seen, approved, first, again = events(tmp_path)
    assert (started.event, seen.event, approved.event) == ("started", "seen", "approved")
    assert started.details["authority"] is None
    (charge,) = asker.node._ledger.book.charges.values()
    for event, replayed in ((first, False), (again, True)):
        assert event.event == "answered"
        assert event.run == asker.settings.run_id
        assert (event.details["kind"], event.details["round"]) == ("train", 1)
        assert event.details["sha256"] == charge.reply_sha256
        assert event.details["replayed"] is replayed
    stored = asker.node._ledger.stored(charge)
    assert stored is not None
    assert first.details["bytes"] == len(stored)
    assert hashlib.sha256(stored).hexdigest() == charge.reply_sha256


def test_a_delivered_model_is_logged(ward, tmp_path):
    asker = deployed(ward, tmp_path)
    settings = asker.settings
    card = {
        "task": asker.data.task.to_json(),
        "task_sha256": settings.task_sha256,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "selection": None,
        "selection_method": settings.selection.method,
        "top_n": settings.selection.top_n,
    }
    assert read_error(asker.ask("deliver", card=card)) is None
    assert [e.event for e in events(tmp_path)[-2:]] == ["delivered", "answered"]


def test_nothing_leaves_that_the_log_does_not_hold(ward, tmp_path, monkeypatch):
    asker = deployed(ward, tmp_path)
    genuine = AuditLog.append

    def full(log, event, run, details):
        if event == "answered":
            raise AuditLogError(f"{tmp_path}: no space left")
        genuine(log, event, run, details)

    monkeypatch.setattr(AuditLog, "append", full)
    reply = asker.ask("train")
    error = read_error(reply)
    assert "audit log: unusable at this site" in str(error)
    assert str(tmp_path) not in str(error)
    assert set(reply) == {"reply"}


def test_a_node_does_not_start_on_a_log_that_was_edited(ward, tmp_path):
    deployed(ward, tmp_path)
    path = tmp_path / LOG
    path.write_text(path.read_text().replace("started", "stopped"))
    with pytest.raises(AuditLogError, match=r"audit\.jsonl: line 1 was edited"):
        deployed(ward, tmp_path)


def test_a_simulation_keeps_neither_log_nor_approvals(ward, tmp_path):
    asker = NodeAsker(ward, tmp_path, *RUN, change=asking)
    assert read_error(asker.ask("train")) is None
    assert not {path.name for path in tmp_path.iterdir()} & {LOG, "runs", "coordinator.json"}


def test_the_log_never_repeats_what_a_foreign_error_says(ward, tmp_path, monkeypatch):
    asker = deployed(ward, tmp_path)

    def fail(*_):
        raise ValueError("patient 4711")

    monkeypatch.setattr(Trainer, "train", fail)
    asker.ask("train")
    asker.node.handle("x" * 10_000, request_content(Request()))
    text = (tmp_path / LOG).read_text()
    assert "4711" not in text
    assert max(map(len, text.splitlines())) < 2_500


def test_the_log_is_not_filled_by_what_nobody_approved(ward, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("client.node.admission.time.monotonic", lambda: now[0])
    monkeypatch.setattr("client.node.admission._HOURLY", 3)
    asker = deployed(ward, tmp_path)

    def describe():
        return read_error(asker.node.handle("describe", request_content(Request())))

    def nonsense():
        return read_error(asker.node.handle("nonsense", request_content(Request())))

    assert [describe() for _ in range(2)] == [None, None]
    assert "unknown request" in str(nonsense())
    assert "describe: asked more than 3 times in an hour" in str(describe())
    assert "unknown request" in str(nonsense())
    assert [len(events(tmp_path, kind)) for kind in ("answered", "refused")] == [2, 1]
    assert read_error(asker.ask("train")) is None  # an approved run goes on
    now[0] += 3600
    nonsense()
    assert [event.details["left_out"] for event in events(tmp_path, "refused")] == [0, 3]
