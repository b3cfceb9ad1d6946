"""Strategies and personalisation on hospitals that differ, on the same patients.

    python tests/benchmarks/unequal_sites.py CONFIG OUT [--seeds 2] [--folds K] \
        [--strategies fedavg,scaffold] [--kept none,head] [--set key=value]...

CONFIG is that of a cohort: ``medfusion cohort synth`` makes hospitals with scanners, prevalences,
tables and missing modalities of their own, ``medfusion cohort import covid-chestxray`` real ones.
Each strategy is run with what sites keep for themselves: nothing, their heads (FedPer; FedRep, in
``turns`` of four steps and the rest of the round), their norms (FedBN), or a model of their own
after training: by fine-tuning, or pulled towards the common one (Ditto). All train by SGD at one
constant rate, which SCAFFOLD and FedNova need to know.

Printed are macro AUROC, its difference from FedAvg that keeps nothing with a paired 95 % interval
over resamples of patients, and the worst site. Runs without privacy. Interrupted, the same
command goes on. The cost is arms x seeds x folds runs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from figure_cells import cells, gaps_to_first

from medfusion.cli.compare import run_plan
from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import Arm, plan_arms
from medfusion.comparison.compare import Comparison

STRATEGIES = {
    "fedavg": ("strategy.name=fedavg",),
    "fedprox": ("strategy.name=fedprox", "strategy.proximal_mu=0.1"),
    "scaffold": ("strategy.name=scaffold",),
    "feddyn": ("strategy.name=feddyn",),
    "fednova": ("strategy.name=fednova",),
    "label_aware": ("strategy.name=label_aware",),
}
KEPT = {
    "none": (),
    "head": ("personalisation.local=head",),
    "turns": ("personalisation.local=head", "personalisation.own_steps=4"),
    "norms": ("personalisation.local=norms",),
    "fine-tuned": ("personalisation.steps=20",),
    "ditto": ("personalisation.steps=20", "personalisation.pull=1.0"),
}
# Label-aware averaging with local heads is FedAvg; the others count steps of what is shared.
_LEFT_OUT = {
    ("label_aware", "head"),
    ("label_aware", "turns"),
    ("scaffold", "turns"),
    ("fednova", "turns"),
}
USUAL = (
    "privacy.enabled=false",
    "training.optimizer=sgd",
    "training.schedule=constant",
    "training.rate_multipliers={}",
    "training.learning_rate=0.05",
)


def main() -> None:
    """Run all arms and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--kept", default=",".join(KEPT))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    a = parser.parse_args()
    arms = arms_of(
        a.config, a.overrides, strategies=a.strategies.split(","), kept=a.kept.split(",")
    )
    plan = Comparison.plan(arms, load_sites(arms[0].config), seeds=a.seeds, folds=a.folds)
    show(run_plan(plan, a.out))


def arms_of(
    config: Path, overrides: Sequence[str], *, strategies: Sequence[str], kept: Sequence[str]
) -> list[Arm]:
    """Return the legal arms, the first of which the others are set against."""
    arms = []
    for strategy, own in product(strategies, kept):
        if (strategy, own) in _LEFT_OUT:
            continue
        sets = [*USUAL, *overrides, *STRATEGIES[strategy], *KEPT[own]]
        personal = any(text.startswith("personalisation.steps") for text in KEPT[own])
        regimes = ["personalised" if personal else "federated"]
        (arm,) = plan_arms(config, overrides=sets, regimes=regimes)
        arms.append(replace(arm, settings={"strategy": strategy, "kept": own}))
    return arms


def show(result: dict[str, Any]) -> None:
    """Print a line for each arm."""
    print(f"{'strategy':12} {'kept':10} AUROC  difference  95% interval     worst site")
    gaps = gaps_to_first(result, "auroc_macro")
    for arm, (gap, ends) in zip(result["arms"], gaps, strict=True):
        mean, _ = cells(arm["auroc_macro"])
        worst = arm["worst_site"] or {"auroc_macro": float("nan"), "site": "-"}
        strategy, own = arm["settings"]["strategy"], arm["settings"]["kept"]
        print(
            f"{strategy:12} {own:10} {mean}  {gap:10}  {ends:15}  "
            f"{worst['auroc_macro']:.3f} {worst['site']}"
        )
    print(f"{result['n_patients']} patients, {result['seeds']} seeds, folds {result['folds']}")


if __name__ == "__main__":
    main()
