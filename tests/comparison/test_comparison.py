import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tabular_cohort import write_ward

from medfusion.atomic_files import replacing
from medfusion.comparison.arms import plan_arms
from medfusion.comparison.compare import Comparison, check_folder
from medfusion.comparison.trials import deal_folds, finish
from medfusion.config import load_config
from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST, TRAIN
from medfusion.data.tensors import StudyTensors
from medfusion.errors import DataError, FederationError, UsageError
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model

torch.set_num_threads(1)
SITES = ("north", "south")


class Silent:
    def __init__(self):
        self.trials, self.arms = [], []

    def trial_done(self, trial):
        self.trials.append(trial.name)

    def arm_done(self, index, arm, figure):
        self.arms.append((index, arm.regime, figure))


def one_by_one(runner, out):
    def finish_all(trials):
        for trial in trials:
            finish(trial, runner, out=out)
            yield trial

    return finish_all


def run(comparison: Comparison, runner, out: Path, observer=None):
    return comparison.run(one_by_one(runner, out), out, observer or Silent())


class FakeRunner:
    """Fits `logistic` to the training studies of all sites, without any federation."""

    def __init__(self, fail_at: int | None = None):
        self.runs, self._fail_at = [], fail_at

    def __call__(self, config, sites, *, config_path, out, cache):
        assert load_config(config_path) == config
        if len(self.runs) == self._fail_at:
            raise FederationError("the quorum is lost")
        self.runs.append((out.name, [site.name for site in sites]))
        task = sites[0].task
        model = build_model(config.model, task, seed=config.run.seed)
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        for site in sites * 30:
            data = StudyTensors.build(
                site.part(TRAIN), task, selection=None, modalities=("tabular",)
            )
            optimiser.zero_grad()
            logits = model(data.inputs(torch.arange(len(data))))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, data.labels, data.known
            )
            loss.backward()
            optimiser.step()
        card = {
            "task": task.to_json(),
            "model": config.model.model_dump(mode="json"),
            "seed": config.run.seed,
            "selection": None,
            "selection_method": "none",
            "top_n": 8,
        }
        save_model(out / "model", trainable_state(model), card)
        (out / "summary.json").write_text("{}")
        if config.selection.method == "local":
            for site in sites:
                shutil.copytree(out / "model", out / "delivered" / site.name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_ward(tmp_path / "ward")


def sites_of(config: Path):
    return [load_site_data(config.parent / "sites" / name) for name in SITES]


def reads_notes(config: Path):
    """Give the task notes, which no study has."""
    folder = config.parent
    added = {"task.toml": "[text]\nmax_tokens = 8\n"}
    added |= {f"sites/{name}/site.toml": '[columns.notes]\nfrom = ""\n' for name in SITES}
    for name, lines in added.items():
        (folder / name).write_text((folder / name).read_text() + lines)


def plan(config: Path, *, seeds=1, folds=None, **options) -> Comparison:
    return Comparison.plan(plan_arms(config, **options), sites_of(config), seeds=seeds, folds=folds)


def test_regimes_score_the_same_patients_with_their_own_models(config, tmp_path):
    runner, observer = FakeRunner(), Silent()
    result = run(plan(config), runner, tmp_path / "out", observer)
    assert [sites for _, sites in runner.runs] == [
        ["pooled"],
        ["north"],
        ["south"],
        ["north", "south"],
    ]
    pooled, local, _ = result["arms"]
    # Age works in opposite directions at the two sites: only a model of one's own can use it.
    for site in ("north", "south"):
        assert local["per_site"][site]["auroc_macro"] > 0.9
        assert pooled["per_site"][site]["auroc_macro"] < 0.85
    assert [arm["regime"] for arm in result["arms"]] == ["pooled", "local", "federated"]
    # The dose works alike, so every arm finds it, if scores and studies stand side by side.
    assert all(arm["auroc"]["dead"]["mean"] > 0.9 for arm in result["arms"])
    counts = [{s: v["n_patients"] for s, v in arm["per_site"].items()} for arm in result["arms"]]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0].values()) == result["n_patients"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    assert [(i, r) for i, r, _ in observer.arms] == [(0, "pooled"), (1, "local"), (2, "federated")]
    assert observer.arms[1][2] == pytest.approx(local["auroc_macro"]["mean"])


def test_every_arm_scores_the_studies_in_the_order_of_the_truth(config):
    comparison = plan(config, regimes=["pooled", "local", "federated"], folds=3)
    truth = comparison.truth
    for arm in comparison.trials:
        parts = [s.part(TEST) for seed in arm for trial in seed for s in trial.sites]
        np.testing.assert_array_equal(
            np.concatenate([part.labels for part in parts]),
            np.where(truth.known > 0, truth.labels, np.nan),
        )


def test_another_slice_in_a_folder_is_another_run(config, tmp_path):
    (site, _), folder = sites_of(config), tmp_path / "volume"
    folder.mkdir()
    missing = [None] * (len(site.studies) - 1)
    site = replace(site, studies=replace(site.studies, images=(folder, *missing)))

    def digest():
        (dealt,) = deal_folds([site], None)
        return dealt.digests[site.name]

    found = [digest()]  # of an empty folder
    for name, size in (("1.dcm", 5), ("1.dcm", 6), ("2.dcm", 5)):
        (folder / name).write_bytes(bytes(size))
        found.append(digest())
    (folder / "2.dcm").rename(folder / "3.dcm")
    found.append(digest())
    assert len(set(found)) == 5
    (folder / ".index").write_bytes(b"hidden")
    assert digest() == found[-1]


@pytest.mark.parametrize("named", ["model.init", "model.text.encoder"])
def test_another_content_of_a_file_that_the_config_names_is_another_run(config, tmp_path, named):
    reads_notes(config)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        (folder / name).write_bytes(b"one")

    def names():
        overrides = ["model.name=medfusion_net", f"{named}={folder}"]
        return list(plan(config, overrides=overrides, seeds=2).distinct_trials)

    before = names()
    assert names() == before
    (folder / "model.safetensors").write_bytes(b"other")
    assert set(names()).isdisjoint(before)


def test_the_truth_tells_fold_and_site_of_each_study(config):
    comparison = plan(config, regimes=["federated"], folds=3)
    truth, ((trials,),) = comparison.truth, comparison.trials
    for fold, trial in enumerate(trials):
        for site in trial.sites:
            here = (truth.folds == fold) & (truth.sites == site.name)
            expected = [f"{site.name}/{patient}" for patient in site.part(TEST).patient_ids]
            assert truth.patients[here].tolist() == expected
            assert len(set(truth.folds_and_sites[here])) == 1
    assert len(set(truth.folds_and_sites)) == 6
    assert not plan(config).truth.folds.any()


def test_folds_test_each_patient_once_in_every_arm(config, tmp_path):
    comparison = plan(config, folds=4)
    studies = sum(len(site.studies) for site in sites_of(config))
    assert len(comparison.truth.patients) == studies
    for arm in comparison.trials:
        tested = [
            {(site.name, p) for site in trial.sites for p in site.part(TEST).patient_ids}
            for trial in arm[0]
        ]
        assert sum(len(group) for group in tested) == 120
        for trial in arm[0]:
            for site in trial.sites:
                train = set(site.part(TRAIN).patient_ids)
                assert not train & set(site.part(TEST).patient_ids)
    observer = Silent()
    result = run(plan(config, folds=4), FakeRunner(), tmp_path / "out", observer)
    assert result["n_patients"] == 120
    for (*_, shown), arm in zip(observer.arms, result["arms"], strict=True):
        assert shown == pytest.approx(arm["auroc_macro"]["mean"])
    assert all(arm["auroc"]["dead"]["mean"] > 0.9 for arm in result["arms"])


def test_seeds_count_up_from_the_configs_own(config):
    comparison = plan(config, seeds=2, regimes=["federated"], overrides=["run.seed=5"])
    assert [seed[0].config.run.seed for seed in comparison.trials[0]] == [5, 6]


def test_a_finished_run_is_not_run_again(config, tmp_path):
    out = tmp_path / "out"
    interrupted = FakeRunner(fail_at=2)
    with pytest.raises(FederationError, match=r"arm \(local\), run local-south.*quorum is lost"):
        run(plan(config), interrupted, out)
    assert not (out / "compare.json").exists()
    resumed = FakeRunner()
    result = run(plan(config), resumed, out)
    assert [sites for _, sites in resumed.runs] == [["south"], ["north", "south"]]
    whole = run(plan(config), FakeRunner(), tmp_path / "whole")
    assert result == whole
    more = FakeRunner()
    run(plan(config, seeds=2, regimes=["federated", "local"]), more, out)
    assert len(more.runs) == 3  # the second seed only


def test_a_run_that_only_lacks_its_scores_is_scored(config, tmp_path):
    result = run(plan(config, regimes=["pooled"]), FakeRunner(), tmp_path)
    (logits,) = tmp_path.rglob("logits.npy")
    logits.unlink()
    runner = FakeRunner()
    assert run(plan(config, regimes=["pooled"]), runner, tmp_path) == result
    assert runner.runs == []


def test_under_local_selection_a_run_is_done_once_the_sites_models_are_kept(config, tmp_path):
    comparison = plan(config, regimes=["federated"], overrides=["selection.method=local"])
    result = run(comparison, FakeRunner(), tmp_path)
    (logits,) = tmp_path.rglob("logits.npy")
    for lost, runs in (([], 0), ([logits.parent / "delivered"], 1)):
        logits.unlink()
        for folder in lost:
            shutil.rmtree(folder)
        runner = FakeRunner()
        assert run(comparison, runner, tmp_path) == result
        assert len(runner.runs) == runs


def test_changed_data_or_settings_run_again(config, tmp_path):
    before = set(plan(config, regimes=["local", "federated"]).distinct_trials)
    assert before == set(plan(config, regimes=["local", "federated"]).distinct_trials)
    table = config.parent / "sites" / "south" / "studies.csv"
    *lines, last = table.read_text().splitlines()
    turned = last[:-1] + ("0" if last[-1] == "1" else "1")
    table.write_text("\n".join([*lines, turned]) + "\n")
    after = set(plan(config, regimes=["local", "federated"]).distinct_trials)
    assert {name.split("-seed")[0] for name in before & after} == {"local-north"}
    assert not after & set(plan(config, overrides=["run.rounds=3"]).distinct_trials)


def test_arms_share_the_runs_that_are_the_same(config, tmp_path):
    comparison = plan(
        config, regimes=["pooled", "federated"], vary=["strategy.name=fedavg,fedmedian"]
    )
    assert len(comparison.distinct_trials) == 3
    runner = FakeRunner()
    result = run(comparison, runner, tmp_path / "out")
    assert len(runner.runs) == 3
    assert result["arms"][0]["auroc"] == result["arms"][2]["auroc"]


def test_sites_without_test_patients_are_refused(tmp_path):
    config = write_ward(tmp_path / "ward")
    task = config.parent / "task.toml"
    task.write_text(task.read_text().replace("test = 0.3", "test = 0.0"))
    with pytest.raises(DataError, match="found none"):
        plan(config)


def test_only_an_own_or_empty_folder_is_taken(tmp_path):
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    for name in ("runs", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "compare.json").write_text("{}")
    with replacing(tmp_path / "compare.json", durable=False) as partial:
        partial.touch()
        check_folder(tmp_path)  # a kill here leaves the file
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="choose another --out"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="choose another --out"):
        check_folder(tmp_path / "thesis.txt")
