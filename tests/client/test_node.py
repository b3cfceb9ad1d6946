"""What a Node answers and what it refuses, asked directly."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from node_asker import NodeAsker

from client.node.state import NodeState
from client.node.trainer import Trainer
from medfusion.config import load_config
from medfusion.data.site_data import load_site_data
from medfusion.data.thresholds import feature_label_histograms, first_study_per_patient
from medfusion.errors import ConfigError, FederationError
from medfusion.federation.versions import own_version
from medfusion.models.contract import trainable_state
from medfusion.models.saved import load_model
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    METRICS,
    WEIGHT_KEY,
    Request,
    read_error,
    read_histograms,
    read_reply,
    request_content,
)
from server.run_state import run_settings


class Asker(NodeAsker):
    usual = ("model.name=logistic", "run.rounds=2")


def bytes_of(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in record.items()}


def test_describe_tells_public_facts_only(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    facts = read_reply(asker.node.handle("describe", request_content(Request())))
    assert set(facts) == {
        *("site", "task", "patients_public", "label_coverage", "delta", "max_epsilon")
    }
    assert facts["patients_public"] == asker.data.config.site.patients_public


def test_selection_counts_one_study_of_each_training_patient(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.enabled=false")
    train = asker.data.part(0)
    one = train.take(first_study_per_patient(train.patient_ids))
    expected = feature_label_histograms(one.features, one.labels, asker.data.task)
    np.testing.assert_array_equal(read_histograms(asker.ask("select", arrays=None)), expected)


def test_metrics_count_one_study_of_each_test_patient(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.enabled=false")
    test = asker.data.part(2)
    one = test.take(first_study_per_patient(test.patient_ids))
    assert len(one) < len(test)
    counted = read_histograms(asker.ask("evaluate")).sum(axis=(1, 2))
    np.testing.assert_array_equal(counted, (~np.isnan(one.labels)).sum(axis=0))


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
    other = (
        Asker(cohort, tmp_path / "c", secret=b"another".ljust(32))
        .ask("train")
        .array_records[ARRAYS]
    )
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
    assert "rounds 1 to 2" in str(read_error(asker.ask("train", round=3)))


def test_going_back_and_forth_between_runs_renews_no_limit(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.target_epsilon=2")
    changed = asker.ask("train").array_records[ARRAYS]
    other = asker.settings.model_copy(update={"seed": 5})
    assert read_error(asker.ask("train", settings=other)) is None
    assert "released already" in str(read_error(asker.ask("train", arrays=changed)))


def test_a_second_run_must_fit_beside_the_first_also_after_a_restart(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    first = asker.ask("train").array_records[ARRAYS]
    other = asker.settings.model_copy(update={"seed": 5})
    for node in (asker, Asker(cohort, tmp_path)):
        message = str(read_error(node.ask("train", settings=other)))
        assert "does not fit: epsilon 7.9" in message
        assert "0 of its 2 rounds fit" in message
        assert str(tmp_path) not in message
    again = Asker(cohort, tmp_path).ask("train").array_records[ARRAYS]
    assert bytes_of(first) == bytes_of(again)


def test_a_restarted_node_sends_the_stored_reply(cohort, tmp_path, monkeypatch):
    first = Asker(cohort, tmp_path).ask("train")
    monkeypatch.setattr(Trainer, "_fit", lambda *_: pytest.fail("computed again"))
    again = Asker(cohort, tmp_path).ask("train")
    assert bytes_of(first.array_records[ARRAYS]) == bytes_of(again.array_records[ARRAYS])
    assert first.metric_records == again.metric_records


def test_a_reply_that_is_no_longer_kept_comes_out_the_same(cohort, tmp_path):
    first = Asker(cohort, tmp_path, "run.rounds=3")
    replies = [first.ask("train", round=number) for number in (1, 2, 3)]
    again = Asker(cohort, tmp_path, "run.rounds=3")
    assert again.node._ledger.stored(next(iter(again.node._ledger.book.charges.values()))) is None
    reply = again.ask("train", round=1)
    assert read_error(reply) is None
    assert bytes_of(reply.array_records[ARRAYS]) == bytes_of(replies[0].array_records[ARRAYS])


def test_a_release_that_failed_was_charged_and_can_be_had_once(cohort, tmp_path, monkeypatch):
    asker = Asker(cohort, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_fit", lambda *_: 1 / 0)
        assert "ZeroDivisionError" in str(read_error(asker.ask("train")))
    book = asker.node._ledger.book
    assert [charge.reply_sha256 for charge in book.charges.values()] == [None]
    assert read_error(asker.ask("train")) is None
    assert len(book.charges) == 1


def test_a_run_without_privacy_leaves_the_ledger_empty(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "privacy.enabled=false")
    for _ in range(2):
        assert read_error(asker.ask("train")) is None
    assert asker.node._ledger.book.head.count == 1


def test_a_broken_ledger_is_told_to_the_log_alone(cohort, tmp_path, caplog):
    asker = Asker(cohort, tmp_path, simulated=False)
    next((tmp_path / "witnesses").iterdir()).unlink()
    message = str(read_error(asker.ask("train")))
    assert "its Node's log tells" in message
    assert str(tmp_path) not in message
    assert str(tmp_path) in caplog.text


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
        state.pop("bias.weight")
    elif damage == "shape":
        state["bias.weight"] = state["bias.weight"][:-1]
    else:
        state["bias.weight"][0] = float("nan")
    assert isinstance(read_error(asker.ask("train", arrays=to_record(state))), FederationError)


def test_unknown_settings_from_the_wire_are_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    content = request_content(Request(settings=asker.settings))
    content[CONFIG] = ConfigRecord(
        {"request": json.dumps({"version": own_version(), "settings": {"code": "import os"}})}
    )
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


def card_of(asker, **changes):
    settings = asker.settings
    return {
        "schema": 1,
        "task": asker.data.task.to_json(),
        "task_sha256": settings.task_sha256,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "selection_method": settings.selection.method,
        "top_n": settings.selection.top_n,
        "selection": None,
    } | changes


def test_the_delivered_model_can_be_loaded(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    assert read_error(asker.ask("deliver", card=card_of(asker))) is None
    saved = load_model(asker.state.model_folder(asker.settings.run_id))
    assert saved.task.sha256 == asker.data.task.sha256


@pytest.mark.parametrize(
    "change", [{"task_sha256": "0"}, {"model": {"name": "x"}}, {"selection": {"thresholds": []}}]
)
def test_a_description_of_another_model_is_refused(cohort, tmp_path, change):
    asker = Asker(cohort, tmp_path)
    error = read_error(asker.ask("deliver", card=card_of(asker, **change)))
    assert "differs from the run" in str(error)


def test_the_secret_is_made_once_and_private(tmp_path):
    state = NodeState(tmp_path / "state")
    secret = state.secret()
    assert len(secret) == 32
    assert NodeState(tmp_path / "state").secret() == secret
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o777 == 0o600


def test_under_local_selection_the_delivered_model_reads_what_the_site_chose(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local", "selection.top_n=1")
    mask = read_reply(asker.ask("train"))["selected"]
    assert read_error(asker.ask("deliver", card=card_of(asker))) is None
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


def noise_of(asker):
    """The noise in the private selection histograms."""
    plain = feature_label_histograms(*one_of_each(asker), asker.data.task)
    return read_histograms(asker.ask("select", arrays=None)) - plain


def one_of_each(asker):
    train = asker.data.part(0)
    one = train.take(first_study_per_patient(train.patient_ids))
    return one.features, one.labels


def moved_patient(data):
    """The same studies, one patient in another part of the split."""
    split = data.split.copy()
    first = data.studies.patient_ids == data.studies.patient_ids[0]
    split[first] = 1 - split[first].clip(0, 1)
    return replace(data, split=split)


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (["training.learning_rate=0.5"], None),
        (["run.seed=8"], None),
        ([], moved_patient),
    ],
)
def test_other_settings_or_data_get_other_noise(cohort, tmp_path, overrides, change):
    """With the same noise, a coordinator could subtract one reply from the other."""
    usual = Asker(cohort, tmp_path / "a")
    other = Asker(cohort, tmp_path / "b", *overrides, change=change)
    other.settings = other.settings.model_copy(update={"run_id": usual.settings.run_id})
    first, second = noise_of(usual), noise_of(other)
    assert not np.isclose(first, second, atol=0.1).mean() > 0.1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2


def test_changed_images_get_other_noise(cohort, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    image = next((copy / "sites").glob("*/images/*"))
    other = next(path for path in (copy / "sites").glob("*/images/*") if path != image)
    image.write_bytes(other.read_bytes())
    digests = []
    for folder in (cohort, copy):
        asker = NodeAsker(folder, tmp_path / folder.name, "model.modalities=['image']")
        trainer = Trainer(
            asker.data,
            asker.settings,
            tmp_path / "cache",
            bytes(32),
            asker.node._ledger,
            kept=tmp_path / "kept",
            exact=None,
        )
        digests.append(trainer._data_sha256)
    assert digests[0] != digests[1]


def test_a_crafted_model_does_not_tell_whose_scores_it_broke(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    state = {name: value.detach().clone() for name, value in trainable_state(asker.model).items()}
    width = asker.model.feature_rows()["linear.tabular.weight"].width
    state["linear.tabular.weight"][:, 0], state["linear.tabular.weight"][:, width] = 3e38, -3e38
    state["bias.weight"][:] = -3e38
    reply = asker.ask("evaluate", round=2, arrays=to_record(state))
    assert read_error(reply) is None
    assert np.isfinite(read_histograms(reply)).all()


def test_deployed_what_is_wrong_with_the_data_stays_at_the_site(cohort, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    image = next((copy / "sites").glob("*/images/*"))
    image.write_bytes(image.read_bytes()[:60])
    for simulated in (True, False):
        asker = Asker(
            copy,
            tmp_path / str(simulated),
            "model.name=medfusion_net",
            "model.modalities=['image']",
            simulated=simulated,
        )
        message = str(read_error(asker.ask("train")))
        assert ("row" in message) is simulated
    assert "row" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy.enabled=false"], "under differential privacy only"),
        (["model.name=medfusion_net", "model.text.encoder='/etc/passwd'"], "found a path"),
        (["model.name=medfusion_net", "model.text.encoder='../up'"], "found a path"),
        (
            ["model.name=medfusion_net", "model.init='/etc/passwd'", "model.frozen_stages=1"],
            "torchvision's cache, found a path",
        ),
    ],
)
def test_a_deployed_node_refuses_what_a_simulation_may(cohort, tmp_path, overrides, message):
    asker = Asker(cohort, tmp_path, simulated=False)
    config = load_config(cohort / "config.toml", ["run.rounds=2", *overrides])
    settings = run_settings(config, asker.data.task)
    assert message in str(read_error(asker.ask("train", settings=settings)))


def test_too_few_patients_for_the_policy_are_refused(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, change=lambda data: replace(data, patients_public=9))
    assert "min_patients = 10" in str(read_error(asker.ask("train")))


def test_as_many_patients_as_the_policy_asks_for_are_enough(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, change=lambda data: replace(data, patients_public=10))
    assert [read_error(asker.ask(kind)) for kind in ("describe", "train")] == [None, None]


def test_a_small_site_does_not_even_tell_how_small(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, change=lambda data: replace(data, patients_public=9))
    for kind in ("describe", "train"):
        message = str(read_error(asker.ask(kind)))
        assert "min_patients = 10" in message
        assert "9" not in message


@pytest.mark.parametrize(("kind", "part"), [("select", 0), ("train", 0), ("evaluate", 2)])
def test_exact_releases_about_too_few_patients_stay(cohort, tmp_path, kind, part):
    """One patient short of the policy, however many studies; under privacy nobody asks."""

    def allowing(data, minimum):
        policy = data.config.policy.model_copy(
            update={"allow_without_privacy": True, "min_patients": minimum}
        )
        config = data.config.model_copy(update={"policy": policy})
        return replace(data, config=config, patients_public=200)

    def answer(minimum, *overrides):
        asker = Asker(
            cohort,
            tmp_path / f"{minimum}{len(overrides)}",
            *overrides,
            simulated=False,
            change=lambda data: allowing(data, minimum),
        )
        return read_error(asker.ask(kind))

    data = load_site_data(next((cohort / "sites").iterdir()))
    patients = len(set(data.part(part).patient_ids))
    assert answer(patients, "privacy.enabled=false") is None
    refusal = answer(patients + 1, "privacy.enabled=false")
    assert isinstance(refusal, FederationError)
    assert f"min_patients = {patients + 1}" in str(refusal)
    assert answer(patients + 1) is None


def test_local_selection_keeps_its_histograms(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local")
    assert "stay here" in str(read_error(asker.ask("select", arrays=None)))


def test_training_noise_depends_on_the_settings_too(cohort, tmp_path):
    """The seed changes nothing in a private round but the key of its noise."""
    usual, other = Asker(cohort, tmp_path / "a"), Asker(cohort, tmp_path / "b", "run.seed=8")
    other.settings = other.settings.model_copy(update={"run_id": usual.settings.run_id})
    first, second = (asker.ask("train").array_records[ARRAYS] for asker in (usual, other))
    assert bytes_of(first) != bytes_of(second)
