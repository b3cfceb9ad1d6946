"""What a Node refuses, and in which words."""

import json
import shutil
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord
from logistic_asker import Asker

from medfusion.config import load_config
from medfusion.data.site_data import load_site_data
from medfusion.errors import ConfigError, FederationError
from medfusion.federation.versions import own_version
from medfusion.models.contract import trainable_state
from medfusion.transport.arrays import to_record
from medfusion.transport.requests import (
    CONFIG,
    Request,
    read_error,
    request_content,
)
from server.run_state import run_settings


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


@pytest.mark.parametrize(
    ("demanded", "secure", "said"),
    [
        (3, None, "threshold = unset: this site sends updates only into sums of at least 3 sites"),
        (3, 2, "threshold = 2"),
        (3, 3, None),
        (0, None, None),
    ],
)
def test_a_site_demands_that_updates_travel_masked(cohort, tmp_path, demanded, secure, said):
    def demanding(data):
        policy = data.config.policy.model_copy(update={"min_masked_sites": demanded})
        return replace(data, config=data.config.model_copy(update={"policy": policy}))

    masked = [] if secure is None else [f"server.secure_aggregation.threshold={secure}"]
    asker = Asker(cohort, tmp_path, *masked, simulated=False, change=demanding)
    error = read_error(asker.ask("select"))
    assert (error is None) if said is None else (said in str(error))


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
