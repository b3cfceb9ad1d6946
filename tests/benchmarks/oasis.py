"""OASIS-1: every fusion and regime on the same folds, and what a step costs.

    MEDFUSION_DATA=DIR python tests/benchmarks/oasis.py OUT [--target age|sex|dementia] \
        [--fusions none,tabular,...] [--regimes pooled,local,federated] [--seeds 3] [--folds 5] \
        [--size 40,48,40] [--rounds 30] [--width 8] [--backbone resnet|vgg] [--set key=value]...
    python tests/benchmarks/oasis.py --cost

``DIR/oasis1`` is the user's own copy. Everything goes through ``medfusion cohort import`` and what
``medfusion compare`` does, without privacy; only what a line names differs from the imported
``config.toml``. Patients are dealt to four artificial sites (two for dementia), all scans of a
subject to one. A ridge regression (logistic for labels) on the voxels, its penalty chosen inside
the training patients of each fold (all scans of a subject on one side), is the baseline of the
pooled regime. The paper's network for brain age is ``--backbone vgg --set model.stages=3``; the
other is usual. Results lie under ``OUT/TARGET-SIZE``. Interrupted, the same command goes on.

``--cost`` times a step at 64x96x64 on one core, for the paper's network and for the plain one, with
and without privacy: processor seconds of the median of five steps of eight volumes, and the peak
memory of a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import time
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import GroupKFold

from medfusion.cli.compare import run_plan
from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import plan_arms
from medfusion.comparison.compare import Comparison
from medfusion.comparison.results import figures_of
from medfusion.comparison.trials import deal_folds
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.images import ImageCache
from medfusion.data.site_data import SiteData
from medfusion.data.split import TEST, TRAIN
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.models.options import Fusion, HyperFusionOptions
from medfusion.models.registry import build_model
from medfusion.objectives.registry import objective_of
from medfusion.privacy.dp_sgd import engine_for

FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
NAMES = {"age": "oasis1", "sex": "oasis1-sex", "dementia": "oasis1-dementia"}
# Few are demented: sites that differ more would leave one of them without any.
PARTITIONS = {
    "age": Partition(sites=4),
    "sex": Partition(sites=4),
    "dementia": Partition(sites=2, alpha=5.0),
}
_COST_SIZE, _BATCH, _STEPS = (64, 96, 64), 8, 5


def prepare(out: Path, target: str, size: list[int]) -> Path:
    """Import the cohort of a target at a size, once, below ``out``; return its config."""
    cohort = out / "cohort"
    if not cohort.exists():
        source = Path(os.environ["MEDFUSION_DATA"]) / "oasis1"
        importer(NAMES[target]).run(source, cohort, PARTITIONS[target])
    task = cohort / "task.toml"
    text, changed = re.subn(r"(?m)^size = \[.*\]$", f"size = {size}", task.read_text())
    assert changed == 1, "expected one size in the imported task"
    task.write_text(text)
    return cohort / "config.toml"


def compare(a: argparse.Namespace) -> None:
    """Run all arms and the baseline, and print figures and differences to ``none``."""
    size = [int(side) for side in a.size.split(",")]
    # Another target or size is another cohort, with results of its own.
    out = a.out / f"{a.target}-{'x'.join(map(str, size))}"
    config = prepare(out, a.target, size)
    chosen = [f"run.rounds={a.rounds}", f"model.width={a.width}", f"model.backbone={a.backbone}"]
    arms = plan_arms(
        config,
        overrides=["privacy.enabled=false", "evaluation.every=0", *chosen, *a.settings],
        regimes=a.regimes.split(","),
        vary=[f"model.fusion={a.fusions}"],
    )
    sites = load_sites(arms[0].config)
    plan = Comparison.plan(arms, sites, seeds=a.seeds, folds=a.folds)
    result = run_plan(plan, out / "compare")
    key = plan.truth.measures.headline.key
    linear = baseline(sites, a.folds, out / "cache")
    of_linear = figures_of(linear[None, None], plan.truth)[key].macro(0)
    print(f"{'linear on voxels':40} {of_linear.mean:.3f} {of_linear.ci95}")
    for index, arm in enumerate(result["arms"]):
        pairs = [d for d in result["differences"] if d["a"] == index]
        told = {shown(result["arms"][d["b"]]): [round(x, 3) for x in d[key]["ci95"]] for d in pairs}
        print(f"{shown(arm):40} {arm[key]['mean']:.3f} {arm[key]['ci95']}  minus: {told}")


def shown(arm: dict[str, Any]) -> str:
    """Return an arm's regime and fusion."""
    return f"{arm['regime']} {arm['settings']['model.fusion']}"


def baseline(sites: list[SiteData], folds: int, cache: Path) -> np.ndarray:
    """Return outputs [N, 1] of a linear model on the pooled voxels, in the order of the truth."""
    found = []
    for data in deal_folds(sites, folds):
        parts = [(site, site.part(TRAIN)) for site in data.sites]
        x = np.concatenate([voxels(studies, site.task, cache) for site, studies in parts])
        y = np.concatenate([studies.labels[:, 0] for _, studies in parts])
        task, known = data.pooled.task, ~np.isnan(y)
        regression = task.task.kind == "regression"
        alphas = np.logspace(0, 6, 13)
        subjects = np.concatenate([studies.patient_ids for _, studies in parts])
        inner = by_subject(subjects[known])
        model: Any = (
            RidgeCV(alphas, cv=inner)
            if regression
            else LogisticRegressionCV(Cs=1 / alphas, cv=inner)
        )
        model.fit(x[known], y[known])
        for site in data.sites:
            rows = voxels(site.part(TEST), site.task, cache)
            if not len(rows):
                continue
            if regression:
                low, high = task.labels.range
                told = 2 * (model.predict(rows) - low) / (high - low) - 1
            else:
                told = model.decision_function(rows)
            found.append(told)
    outputs: np.ndarray = np.concatenate(found)[:, None]
    return outputs


def by_subject(subjects: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return five splits of scans, [N] subjects, that leave all scans of a subject together."""
    return list(GroupKFold(5).split(subjects, groups=subjects))


def voxels(studies: Studies, task: Task, cache: Path) -> np.ndarray:
    """Return [N, voxels] in [0, 1]; every scan is there."""
    assert task.image is not None
    images = ImageCache(cache, task.image)
    rows = images.rows(studies.images)
    flat: np.ndarray = np.asarray(images.array[rows], np.float32).reshape(len(rows), -1) / 255
    return flat


def cost() -> None:
    """Print seconds and memory of a step, each arm in a process of its own."""
    context = multiprocessing.get_context("spawn")
    for private in (False, True):
        for fusion in ("none", "hyperfusion"):
            with context.Pool(1) as pool:
                seconds, mib = pool.apply(step_cost, (fusion, private))
            print(f"{fusion:12} private={private!s:5} {seconds:7.2f} s  {mib:7.0f} MiB", flush=True)


def step_cost(fusion: Fusion, private: bool) -> tuple[float, float]:
    """Return the processor seconds of a step, and the peak memory in MiB."""
    torch.set_num_threads(1)
    task = Task.parse(
        {
            "task": {"name": "cost", "kind": "multiclass"},
            "image": {"dims": 3, "size": list(_COST_SIZE)},
            "features": {"age": {"kind": "numeric", "low": 0, "high": 100}},
            "labels": {"column": "state", "names": ["CN", "MCI", "AD"]},
        },
        where="cost",
    )
    model = build_model(HyperFusionOptions(fusion=fusion), task, seed=0)
    objective, known = objective_of(task), torch.ones(_BATCH, 3)
    labels = torch.eye(3)[torch.arange(_BATCH) % 3]
    tabular = torch.randn(_BATCH, 1, 6)
    tabular[..., 2] = 1.0
    inputs = {
        "image": torch.randn(_BATCH, 1, *_COST_SIZE),
        "image_present": torch.ones(_BATCH) > 0,
        "tabular": tabular,
    }
    engine, times = engine_for(model), []

    def losses() -> torch.Tensor:
        return objective.per_sample_loss(model(inputs), labels, known)

    for _ in range(_STEPS):
        began = time.process_time()
        if private:
            engine.gradients(losses)
        else:
            losses().sum().backward()
            model.zero_grad()
        times.append(time.process_time() - began)
    return median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Compare on the data, or measure what a step costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--target", choices=tuple(NAMES), default="age")
    parser.add_argument("--fusions", default=",".join(FUSIONS))
    parser.add_argument("--regimes", default="pooled,local,federated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--size", default="40,48,40")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--backbone", choices=("resnet", "vgg"), default="resnet")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--cost", action="store_true")
    a = parser.parse_args()
    if a.cost:
        cost()
        return
    if a.out is None:
        parser.error("OUT: expected a folder for the results")
    compare(a)
    print(json.dumps({key: str(value) for key, value in vars(a).items()}))


if __name__ == "__main__":
    main()
