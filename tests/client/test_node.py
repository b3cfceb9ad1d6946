"""What a Node answers, asked directly."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord
from logistic_asker import Asker
from node_asker import NodeAsker

from client.node.state import NodeState
from client.node.trainer import Trainer
from medfusion.data.thresholds import feature_label_histograms, first_study_per_patient
from medfusion.errors import FederationError
from medfusion.models.contract import trainable_state
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    ARRAYS,
    METRICS,
    WEIGHT_KEY,
    Request,
    read_error,
    read_histograms,
    read_reply,
    request_content,
)


def bytes_of(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in record.items()}


def test_describe_tells_public_facts_only(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    facts = read_reply(asker.node.handle("describe", request_content(Request())))
    assert set(facts) == {
        *("site", "task", "patients_public", "label_coverage", "delta", "max_epsilon", "signer")
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


def test_the_secret_is_made_once_and_private(tmp_path):
    state = NodeState(tmp_path / "state")
    secret = state.secret()
    assert len(secret) == 32
    assert NodeState(tmp_path / "state").secret() == secret
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o777 == 0o600


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


def test_local_selection_keeps_its_histograms(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local")
    assert "stay here" in str(read_error(asker.ask("select", arrays=None)))


def test_training_noise_depends_on_the_settings_too(cohort, tmp_path):
    """The seed changes nothing in a private round but the key of its noise."""
    usual, other = Asker(cohort, tmp_path / "a"), Asker(cohort, tmp_path / "b", "run.seed=8")
    other.settings = other.settings.model_copy(update={"run_id": usual.settings.run_id})
    first, second = (asker.ask("train").array_records[ARRAYS] for asker in (usual, other))
    assert bytes_of(first) != bytes_of(second)
