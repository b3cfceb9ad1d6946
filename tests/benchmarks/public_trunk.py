"""What a public trunk saves under privacy: covid-chestxray behind one trained on NIH's X-rays.

    MEDFUSION_DATA=DIR python tests/benchmarks/public_trunk.py OUT [--seeds 2] [--folds 5] \
        [--public-rounds 20] [--set key=value]...

``DIR/nih_chestxray14`` plays the public set: a federation trains on its images without privacy.
The hospitals of ``DIR/covid_chestxray`` then train at the epsilon of their imported config, from
drawn weights, and from the public model with none, two or all four of its convolutional stages
frozen: frozen weights get no noise. ``--set`` holds for these four arms, whose architecture is to
stay that of the public model. Interrupted, the same command goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from figure_cells import cells, gaps_to_first
from real_sets import imported, medfusion

from medfusion.cli.compare import run_plan
from medfusion.cli.compose import load_sites
from medfusion.comparison.arms import Arm, plan_arms
from medfusion.comparison.compare import Comparison

_FROZEN = (0, 2, 4)


def main() -> None:
    """Train the public model, run the arms, print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--public-rounds", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    a = parser.parse_args()
    public = train_public(a.out.resolve(), rounds=a.public_rounds)
    config = imported("covid", a.out.resolve() / "covid-chestxray")
    arms = [one(config, a.overrides, {"start": "drawn"})]
    for stages in _FROZEN:
        sets = [*a.overrides, f"model.init={public}", f"model.frozen_stages={stages}"]
        arms.append(one(config, sets, {"start": "public", "frozen": stages}))
    first = arms[0].config
    plan = Comparison.plan(arms, load_sites(first), seeds=a.seeds, folds=a.folds)
    result = run_plan(plan, a.out / "compare")
    print(f"epsilon {first.privacy.target_epsilon:g} a site and run")
    gaps = gaps_to_first(result, "auroc_macro")
    for arm, (gap, gap_ends) in zip(result["arms"], gaps, strict=True):
        mean, ends = cells(arm["auroc_macro"])
        print(f"{arm['settings']!s:36} {mean} ({ends})  {gap} ({gap_ends})")
    print(f"{result['n_patients']} patients, {result['seeds']} seeds, folds {result['folds']}")


def train_public(out: Path, *, rounds: int) -> Path:
    """Train on the public images, as its user would; return the model's folder."""
    config, run = imported("nih", out / "nih-chestxray14"), out / "public"
    sets = (
        "privacy.enabled=false",
        'model.modalities=["image"]',
        "evaluation.every=0",
        f"run.rounds={rounds}",
    )
    options = [option for text in sets for option in ("--set", text)]
    medfusion("simulate", str(config), "--out", str(run), *options)
    return run / "model"


def one(config: Path, sets: list[str], settings: dict[str, object]) -> Arm:
    """Return the federated arm of some settings under a short name."""
    (arm,) = plan_arms(config, overrides=sets, regimes=["federated"])
    return replace(arm, settings=settings)


if __name__ == "__main__":
    main()
