"""What each part of MedFusionNet is worth: switched off one at a time, on the same patients.

    [MEDFUSION_DATA=DIR] python tests/benchmarks/ablation.py OUT --cohort synthetic \
        [--seeds 2] [--folds 5] [--regime federated] [--set key=value]... \
        [--parts fpn,exchange] [--add key=value [key=value ...]]...

Each part taken away, and each ``--add`` (an arm with further settings), is set against the full
model: same seeds, same test patients, AUROC differences with paired 95 % intervals over
resamples of patients, and for each seed. Prints a table; writes ``OUT/ablation.json`` and
``OUT/ablation.html``. Runs without privacy unless ``--set privacy.enabled=true``. Interrupted,
the same command goes on; finished runs are used again by later commands with the same OUT.

``DIR/covid_chestxray``, ``DIR/nih_chestxray14``, ``DIR/cervical`` are the user's own copies of
the data. The cost is arms x seeds x folds runs: with the defaults and two idle cores, expect 10
to 20 minutes for synthetic and covid each, less for the others.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablation_arms import Change, plan_changes
from ablation_results import result_of, show, write_result

from medfusion.cli.compare import run_plan
from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import Arm
from medfusion.comparison.compare import Comparison


@dataclass(frozen=True)
class Cohort:
    """How a cohort is made, and how it is tested unless the user says otherwise."""

    command: tuple[str, ...]
    seeds: int
    folds: int | None
    source: str | None = None


COHORTS = {
    "synthetic": Cohort(("synth",), seeds=2, folds=None),
    "covid": Cohort(("import", "covid-chestxray"), seeds=2, folds=5, source="covid_chestxray"),
    "nih": Cohort(("import", "nih-chestxray14"), seeds=2, folds=5, source="nih_chestxray14"),
    "cervical": Cohort(("import", "uci-cervical"), seeds=3, folds=5, source="cervical"),
}


def main() -> None:
    """Make the cohort, run all arms, print and write what they show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--cohort", choices=COHORTS, required=True)
    parser.add_argument("--patients", type=int, default=2000, help="a site, synthetic only")
    parser.add_argument("--seeds", type=int, help="default: as the cohort is small or large")
    parser.add_argument("--folds", type=int, help="0: the sites' own split")
    parser.add_argument("--regime", choices=("federated", "pooled", "local"), default="federated")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--parts", help="by commas, '' for none; default: all that the model has")
    parser.add_argument("--add", action="append", nargs="+", default=[], dest="additions")
    a = parser.parse_args()
    defaults = COHORTS[a.cohort]
    full, changes = plan_changes(
        make_cohort(a.out, a.cohort, a.patients) / "config.toml",
        overrides=["privacy.enabled=false", *a.overrides],
        regime=a.regime,
        parts=None if a.parts is None else [name for name in a.parts.split(",") if name],
        additions=a.additions,
    )
    plan = plan_runs(
        full,
        changes,
        seeds=a.seeds or defaults.seeds,
        folds=(defaults.folds if a.folds is None else a.folds) or None,
    )
    run_plan(plan, a.out / "compare")
    about = {"cohort": a.cohort, "regime": a.regime, "overrides": a.overrides}
    result = result_of(plan, changes, a.out / "compare", about)
    write_result(result, a.out)
    show(result)
    print(a.out / "ablation.html")


def make_cohort(out: Path, name: str, patients: int) -> Path:
    """Return the folder of the cohort, made now unless an earlier command has."""
    cohort = COHORTS[name]
    if cohort.source is None:
        folder = out / f"cohort-{name}-{patients}"
        arguments = ["--sites", "4", "--patients", str(patients), "--seed", "0"]
    else:
        folder = out / f"cohort-{name}"
        arguments = [str(Path(os.environ["MEDFUSION_DATA"]) / cohort.source)]
    if not folder.exists():
        code = "from medfusion.cli.main import app; app()"
        command = [sys.executable, "-c", code, "cohort", *cohort.command, *arguments]
        subprocess.run([*command, str(folder)], check=True)
    return folder


def plan_runs(full: Arm, changes: Sequence[Change], *, seeds: int, folds: int | None) -> Comparison:
    """Lay out the runs of all arms, the full model's first."""
    sites = load_sites(full.config)
    arms = [full, *(change.arm for change in changes)]
    return Comparison.plan(arms, sites, seeds=seeds, folds=folds)


if __name__ == "__main__":
    main()
