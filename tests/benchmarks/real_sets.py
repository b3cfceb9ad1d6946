"""MedFusionNet on real data, beside scikit-learn's models on the same folds.

    MEDFUSION_DATA=DIR python tests/benchmarks/real_sets.py OUT --set nih|cervical|covid \
        [--folds 5] [--seeds 5] [--regimes pooled,local,federated] [--option key=value]...

``DIR/nih_chestxray14``, ``DIR/cervical``, ``DIR/covid_chestxray`` are the user's own copies of
the data; the first two are dealt to four sites with Dirichlet 0.5. Arms are `medfusion
compare`'s regimes and, where there are several modalities, each of them alone, federated;
without privacy. Baselines train on the pooled training studies of each fold and score the same
test studies. Writes ``OUT/SET/real_sets.json`` and prints what `real_sets_report` makes of it.
Interrupted, the same command goes on.

Legend: S seeds, N test studies, L labels.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from baselines import Baseline, FoldInputs, fold_scores
from real_sets_report import Scored, Scores, report, show

from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import Arm, plan_arms
from medfusion.comparison.compare import Comparison
from medfusion.comparison.trials import FoldData, deal_folds, scores_of
from medfusion.data.split import TEST

DEALT = ("--sites", "4", "--alpha", "0.5")
SETS = {
    "nih": ("nih-chestxray14", "nih_chestxray14", DEALT),
    "cervical": ("uci-cervical", "cervical", DEALT),
    "covid": ("covid-chestxray", "covid_chestxray", ()),
}


def main() -> None:
    """Import, run, score the baselines, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", choices=SETS, required=True, dest="name")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--regimes", default="pooled,local,federated")
    parser.add_argument("--option", action="append", default=[], help="key=value of the config")
    a = parser.parse_args()
    out = a.out / a.name
    config = imported(a.name, out / "cohort")
    overrides = ["privacy.enabled=false", *a.option]
    command = Command(config, out / "compare", overrides, a.folds, a.seeds)
    arms = command.run(["--regimes", a.regimes], regimes=a.regimes.split(","))
    modalities = sorted(arms[0].config.model.modalities or modalities_of(arms[0]))
    if len(modalities) > 1:
        each = f"model.modalities={','.join(modalities)}"
        arms += command.run(
            ["--regimes", "federated", "--vary", each], regimes=["federated"], vary=[each]
        )
    sites = load_sites(arms[0].config)
    plan = Comparison.plan(arms, sites, seeds=a.seeds, folds=a.folds)
    scored = [*arm_scores(plan, modalities, out / "compare")]
    scored += baseline_scores(plan, deal_folds(sites, a.folds), modalities)
    result = {"schema": 1, "set": a.name, "options": a.option, "folds": a.folds, "seeds": a.seeds}
    result |= report(scored, plan.truth)
    (out / "real_sets.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    show(result)
    print(out / "real_sets.json")


def medfusion(*arguments: str) -> None:
    """Run a command of ours in a process of its own, its output passed on."""
    code = "from medfusion.cli.main import app; app()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def imported(name: str, cohort: Path) -> Path:
    """Import the set unless that is done; return its config."""
    importer, folder, options = SETS[name]
    if not cohort.exists():
        source = Path(os.environ["MEDFUSION_DATA"]) / folder
        medfusion("cohort", "import", importer, str(source), str(cohort), *options)
    return cohort / "config.toml"


@dataclass(frozen=True)
class Command:
    """``medfusion compare`` with what all its calls share; finished runs are used again."""

    config: Path
    out: Path
    overrides: Sequence[str]
    folds: int
    seeds: int

    def run(self, arguments: Sequence[str], **arms: Sequence[str]) -> list[Arm]:
        """Run the command; return its arms."""
        sets = chain.from_iterable(("--set", text) for text in self.overrides)
        count = ("--folds", str(self.folds), "--seeds", str(self.seeds))
        medfusion("compare", str(self.config), "--out", str(self.out), *sets, *count, *arguments)
        return list(plan_arms(self.config, overrides=self.overrides, **arms))


def modalities_of(arm: Arm) -> tuple[str, ...]:
    """Return what the task offers."""
    return load_sites(arm.config)[0].task.modalities


def arm_scores(plan: Comparison, modalities: Sequence[str], out: Path) -> list[Scored]:
    """Read the arms' logits that ``medfusion compare`` left."""
    scored = []
    for arm, trials in zip(plan.arms, plan.trials, strict=True):
        read = arm.settings.get("model.modalities", modalities)
        used = "+".join(read)
        scores = [np.concatenate([scores_of(t, out=out) for t in seed]) for seed in trials]
        name = f"MedFusionNet, {arm.regime}, {used}"
        scored.append(Scored(name, arm.regime, used, np.stack(scores)))
    return scored


def baseline_scores(
    plan: Comparison, dealt: Sequence[FoldData], modalities: Sequence[str]
) -> list[Scored]:
    """Score both kinds on each modality and on all of them, fold by fold."""
    groups = [(one,) for one in modalities]
    groups += [tuple(modalities)] if len(modalities) > 1 else []
    baselines = [Baseline(kind, group) for kind in ("logistic", "boosting") for group in groups]
    parts: dict[Baseline, list[Scores]] = {baseline: [] for baseline in baselines}
    labels = []
    for fold in dealt:
        inputs = FoldInputs(fold.pooled)
        labels.append(fold.pooled.part(TEST).labels)
        for baseline in baselines:
            scores = fold_scores(baseline, inputs, range(plan.seeds))
            parts[baseline].append(scores.astype(np.float32))
    same = np.nan_to_num(np.concatenate(labels), nan=0.0)
    assert np.array_equal(same, plan.truth.labels), "expected the studies in the arms' order"
    return [
        Scored(str(baseline), "baseline", "+".join(baseline.modalities), np.concatenate(rows, 1))
        for baseline, rows in parts.items()
    ]


if __name__ == "__main__":
    main()
