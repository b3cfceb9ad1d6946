"""What a Node answers and what it refuses, asked directly."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from client.node.node import Node
from client.node.policy import Releases
from client.node.state import NodeState
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data
from medfusion.data.thresholds import feature_label_histograms, first_study_per_patient
from medfusion.errors import ConfigError, FederationError
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.models.saved import load_model
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    METRICS,
    ROUND_KEY,
    WEIGHT_KEY,
    Request,
    read_error,
    read_histograms,
    read_reply,
    request_content,
)
from server.rounds import run_settings


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node") / "cohort"
    write_cohort(folder, sites=1, patients=80, seed=1)
    return folder


class Asker:
    """Asks a fresh Node as the coordinator would."""

    def __init__(self, cohort, state, *overrides, secret=b"secret"):
        self.config = load_config(
            cohort / "config.toml", ["model.name=logistic", "run.rounds=2", *overrides]
        )
        self.data = load_site_data(next((cohort / "sites").iterdir()))
        self.settings = run_settings(self.config, self.data.task)
        self.state = NodeState(state)
        self.node = Node(self.data, self.state, secret)
        self.model = build_model(self.settings.model, self.data.task, seed=0)

    def ask(self, kind, *, round=1, arrays=True, settings=None, **parts):
        request = Request(settings=settings or self.settings, **parts)
        record = to_record(trainable_state(self.model)) if arrays is True else arrays
        content = request_content(request, record or None)
        content[CONFIG][ROUND_KEY] = round
        return self.node.handle(kind, content)


def bytes_of(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in record.items()}


def test_describe_tells_public_facts_only(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    facts = read_reply(asker.node.handle("describe", request_content(Request())))
    assert set(facts) == {"site", "task", "patients_public", "delta", "max_epsilon"}
    assert facts["patients_public"] == asker.data.config.site.patients_public


def test_selection_counts_one_study_of_each_training_patient(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.enabled=false")
    train = asker.data.part(0)
    one = train.take(first_study_per_patient(train.patient_ids))
    expected = feature_label_histograms(one.features, one.labels, asker.data.task)
    np.testing.assert_array_equal(read_histograms(asker.ask("select", arrays=None)), expected)


def test_selection_noise_has_the_planned_size(cohort, tmp_path):
    plain = read_histograms(
        Asker(cohort, tmp_path / "a", "privacy.enabled=false").ask("select", arrays=None)
    )
    asker = Asker(cohort, tmp_path / "b")
    noise = read_histograms(asker.ask("select", arrays=None)) - plain
    plan = asker.node._trainer._plan
    expected = plan.selection_noise * np.sqrt(
        len(asker.data.task.features) * len(asker.data.task.labels.names)
    )
    assert noise.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)


def test_the_same_request_gets_the_same_noise_and_another_site_secret_other_noise(cohort, tmp_path):
    first = Asker(cohort, tmp_path / "a").ask("train").array_records[ARRAYS]
    asker = Asker(cohort, tmp_path / "b")
    again = asker.ask("train").array_records[ARRAYS]
    repeated = asker.ask("train").array_records[ARRAYS]
    other = Asker(cohort, tmp_path / "c", secret=b"another").ask("train").array_records[ARRAYS]
    assert bytes_of(first) == bytes_of(again) == bytes_of(repeated)
    assert bytes_of(first) != bytes_of(other)


def test_weight_is_the_declared_count_and_the_loss_stays(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    metrics = asker.ask("train").metric_records[METRICS]
    assert dict(metrics) == {WEIGHT_KEY: asker.data.patients_public}
    open_asker = Asker(
        cohort,
        tmp_path / "b",
        "privacy.enabled=false",
        "strategy.name=qfedavg",
        "strategy.client_learning_rate=0.1",
    )
    assert set(open_asker.ask("train").metric_records[METRICS]) == {WEIGHT_KEY, "train_loss"}


def test_a_second_release_of_a_round_is_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    reply = asker.ask("train")
    changed = from_record(reply.array_records[ARRAYS])
    error = read_error(asker.ask("train", arrays=to_record(changed)))
    assert isinstance(error, FederationError)
    assert "released already" in str(error)
    assert read_error(asker.ask("train", round=2, arrays=to_record(changed))) is None
    assert "pays for 2 releases" in str(read_error(asker.ask("train", round=3)))


def test_going_back_and_forth_between_runs_renews_no_limit(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    changed = asker.ask("train").array_records[ARRAYS]
    other = asker.settings.model_copy(update={"seed": 5})
    assert read_error(asker.ask("train", settings=other)) is None
    assert "released already" in str(read_error(asker.ask("train", arrays=changed)))


def test_releases_are_counted_by_kind():
    releases = Releases(rounds=1, evaluations=2)
    releases.admit("train", 1, "a")
    releases.admit("train", 1, "a")
    releases.admit("evaluate", 1, "a")
    releases.admit("evaluate", 2, "b")
    for kind, number in (("train", 2), ("evaluate", 3)):
        with pytest.raises(FederationError, match="pays for"):
            releases.admit(kind, number, "c")


def test_more_epsilon_than_the_site_allows_is_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.target_epsilon=9")
    for kind in ("select", "train", "evaluate"):
        error = read_error(asker.ask(kind))
        assert isinstance(error, ConfigError)
        assert "at most 8" in str(error)


def test_a_run_of_another_task_is_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    other = asker.settings.model_copy(update={"task_sha256": "0" * 64})
    assert "same task.toml" in str(read_error(asker.ask("train", settings=other)))


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_a_model_that_does_not_fit_is_refused(cohort, tmp_path, damage):
    asker = Asker(cohort, tmp_path)
    state = {name: value.detach().clone() for name, value in trainable_state(asker.model).items()}
    if damage == "missing":
        state.pop("linear.bias")
    elif damage == "shape":
        state["linear.bias"] = state["linear.bias"][:-1]
    else:
        state["linear.bias"][0] = float("nan")
    assert isinstance(read_error(asker.ask("train", arrays=to_record(state))), FederationError)


def test_unknown_settings_from_the_wire_are_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    content = request_content(Request(settings=asker.settings))
    content[CONFIG] = ConfigRecord({"request": '{"settings": {"code": "import os"}}'})
    assert isinstance(read_error(asker.node.handle("train", content)), ConfigError)
    assert "unknown request" in str(read_error(asker.node.handle("exec", content)))


def test_a_foreign_error_leaves_without_its_text(cohort, tmp_path, monkeypatch):
    asker = Asker(cohort, tmp_path)

    def fail(request):
        raise ValueError("patient 4711")

    monkeypatch.setitem(asker.node._serve, "train", fail)
    message = str(read_error(asker.ask("train")))
    assert "ValueError" in message
    assert "4711" not in message


def test_the_delivered_model_can_be_loaded(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    card = {
        "schema": 1,
        "task": asker.data.task.to_json(),
        "model": {"name": "logistic"},
        "seed": 0,
        "selection_method": "none",
        "top_n": 8,
        "selection": None,
    }
    assert read_error(asker.ask("deliver", card=card)) is None
    saved = load_model(asker.state.model_folder(asker.settings.run_id))
    assert saved.task.sha256 == asker.data.task.sha256


def test_the_secret_is_made_once_and_private(tmp_path):
    state = NodeState(tmp_path / "state")
    secret = state.secret()
    assert len(secret) == 32
    assert NodeState(tmp_path / "state").secret() == secret
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o777 == 0o600


def test_under_local_selection_the_delivered_model_reads_what_the_site_chose(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local", "selection.top_n=1")
    mask = read_reply(asker.ask("train"))["selected"]
    card = {
        "schema": 1,
        "task": asker.data.task.to_json(),
        "model": {"name": "logistic"},
        "seed": 0,
        "selection_method": "local",
        "top_n": 1,
        "selection": None,
    }
    assert read_error(asker.ask("deliver", card=card)) is None
    saved = load_model(asker.state.model_folder(asker.settings.run_id))
    assert saved.selection is not None
    columns = asker.data.task.columns
    chosen = {c.feature for c, is_chosen in zip(columns, mask, strict=True) if is_chosen}
    assert set(saved.selection.features) == chosen


def test_local_selection_reports_its_mask(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local", "selection.top_n=1")
    mask = read_reply(asker.ask("train"))["selected"]
    assert len(mask) == len(asker.data.task.columns)
    assert 0 < sum(mask) < len(mask)
