"""Boxes around the lungs: regimes, and the four rows of MDF-Net's ablation, on the same patients.

    medfusion cohort import covid-lungs COPY lungs
    python tests/benchmarks/lungs.py lungs/config.toml OUT [--arms pooled,federated,...] \
        [--seeds 3] [--folds 3] [--rounds 40] [--set key=value]...

Without privacy. A federated round averages models that took a few steps each at hospitals of 12 to
65 training patients, where the pooled one took the steps of all: ``federated x3`` has three local
epochs in a round. ``3-D``, ``1-D`` and ``no fusion`` are ``pooled`` with parts of the fusion left
out. Printed are AP at IoU .5, AP and AR, and the difference of AP from the first arm with a paired
95% interval over resamples of patients. Interrupted, the same command goes on. An arm costs seeds x
folds runs of some two minutes on one core.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from figure_cells import cells, gaps_to_first

from medfusion.cli.compare import run_plan
from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import plan_arms
from medfusion.comparison.compare import Comparison

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pooled": ("pooled", ()),
    "federated": ("federated", ()),
    "federated x3": ("federated", ("training.local_epochs=3",)),
    "local": ("local", ()),
    "3-D": ("pooled", ("model.fusion_1d=false",)),
    "1-D": ("pooled", ("model.fusion_3d=none",)),
    "no fusion": ("pooled", ("model.fusion_3d=none", "model.fusion_1d=false")),
}


def main() -> None:
    """Run the arms and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", type=known_arms, default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    a = parser.parse_args()
    usual = ["privacy.enabled=false", "evaluation.every=0", f"run.rounds={a.rounds}"]
    arms = []
    for name in a.arms:
        regime, sets = ARMS[name]
        overrides = [*usual, *a.overrides, *sets]
        (arm,) = plan_arms(a.config, overrides=overrides, regimes=[regime])
        arms.append(replace(arm, settings={"arm": name}))
    plan = Comparison.plan(arms, load_sites(arms[0].config), seeds=a.seeds, folds=a.folds)
    show(run_plan(plan, a.out))


def known_arms(text: str) -> list[str]:
    """Return the names between commas, each of an arm."""
    names = text.split(",")
    for name in names:
        if name not in ARMS:
            raise argparse.ArgumentTypeError(
                f"expected names of arms between commas ({', '.join(ARMS)}), found {name!r}"
            )
    return names


def show(result: dict[str, Any]) -> None:
    """Print a line for each arm."""
    keys = ("ap50", "ap", "ar")
    print(f"{'arm':14} {'AP@.5':22} {'AP':22} {'AR':22} AP minus the first's")
    for arm, gap in zip(result["arms"], gaps_to_first(result, "ap"), strict=True):
        figures = " ".join(f"{shown(cells(arm[key])):22}" for key in keys)
        print(f"{arm['settings']['arm']:14} {figures} {shown(gap)}")
    print(f"{result['n_patients']} patients, {result['seeds']} seeds, folds {result['folds']}")


def shown(pair: tuple[str, str]) -> str:
    """Return a figure with its interval."""
    return f"{pair[0]} ({pair[1]})"


if __name__ == "__main__":
    main()
