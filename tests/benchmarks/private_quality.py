"""What privacy costs: AUROC at several epsilons beside the same model without privacy.

    python tests/benchmarks/private_quality.py OUT --set synthetic|covid [--seeds 2] [--folds K] \
        [--epsilons 8,3,1] [--arms logistic,network,path] [--option key=value]...

``synthetic`` writes the cohort of 4 x 2,000 patients; ``covid`` imports
``$MEDFUSION_DATA/covid_chestxray`` and deals folds. Everything is ``medfusion compare``, federated,
with all modalities:

logistic
    `logistic` of all modalities: fixed features, a convex loss.
network
    MedFusionNet from scratch.
path
    MedFusionNet with its linear path, the network's rates at a twentieth, as in the demo.

Every arm runs without privacy too, under the settings of `OPEN`. What is told beside it is the
difference of the two means, from the same test patients; ``compare.json`` holds the paired
differences between epsilons. Interrupted, the same command goes on.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from figure_cells import cells, number_text
from synthetic_quality import medfusion

ALL = 'model.modalities=["image","tabular","text"]'
MODELS = {
    "logistic": ("model.name=logistic",),
    "network": ("model.name=medfusion_net",),
    "path": ("model.name=medfusion_net", "model.linear_path=true"),
}
FEW_LARGE_STEPS = (
    "training.recipe=private",
    "training.batch_size=1024",
    "training.optimizer=sgd",
    "training.learning_rate=4",
)
AS_THE_DEMO = (
    "training.steps=8",
    "training.batch_size=256",
    "training.optimizer=sgd",
    "training.momentum=0.9",
    "training.learning_rate=1.5",
    "training.rate_multipliers={image=0.05, tabular=0.05, text=0.05, head=0.05}",
)
PRIVATE = {"logistic": FEW_LARGE_STEPS, "network": FEW_LARGE_STEPS, "path": AS_THE_DEMO}
OPEN = (
    "privacy.enabled=false",
    "evaluation.every=0",
    "training.optimizer=adamw",
    "training.batch_size=32",
    "training.learning_rate=2e-3",
    "training.schedule=cosine",
)
ROUNDS = {"logistic": (40, 20), "network": (20, 20), "path": (8, 20)}  # private, open


def main() -> None:
    """Make the cohort, run each arm with and without privacy, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", choices=("synthetic", "covid"), required=True, dest="name")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int)
    parser.add_argument("--epsilons", default="8,3,1")
    parser.add_argument("--arms", default="logistic,network,path")
    parser.add_argument("--option", action="append", default=[], help="key=value of the config")
    a = parser.parse_args()
    out = a.out / a.name
    config = cohort(a.name, out / "cohort")
    folds = ("--folds", str(a.folds)) if a.folds else ()
    common = ("--regimes", "federated", "--seeds", str(a.seeds), *folds)
    for arm in a.arms.split(","):
        private, free = (("--set", f"run.rounds={count}") for count in ROUNDS[arm])
        model = sets(ALL, *MODELS[arm], *a.option)
        free_out, private_out = out / f"{arm}-open", out / arm
        medfusion("compare", config, "--out", str(free_out), *common, *model, *sets(*OPEN), *free)
        vary = ("--vary", f"privacy.target_epsilon={a.epsilons}")
        told = (*model, *sets(*PRIVATE[arm]), *private, *vary)
        medfusion("compare", config, "--out", str(private_out), *common, *told)
        show(arm, read(free_out), read(private_out))


def cohort(name: str, folder: Path) -> str:
    """Write or import the cohort unless that is done; return its config."""
    if not folder.exists():
        if name == "synthetic":
            size = ("--sites", "4", "--patients", "2000", "--seed", "0")
            medfusion("cohort", "synth", str(folder), *size)
        else:
            source = Path(os.environ["MEDFUSION_DATA"]) / "covid_chestxray"
            medfusion("cohort", "import", "covid-chestxray", str(source), str(folder))
    return str(folder / "config.toml")


def sets(*texts: str) -> tuple[str, ...]:
    """Return the command's ``--set`` arguments."""
    return tuple(part for text in texts for part in ("--set", text))


def read(folder: Path) -> dict[str, Any]:
    """Read what ``medfusion compare`` left."""
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def show(name: str, free: dict[str, Any], private: dict[str, Any]) -> None:
    """Print a line for each epsilon, and what it lacks to the model without privacy."""
    (without,) = free["arms"]
    base = without["auroc_macro"]["mean"]
    print(f"{name:9} no privacy  {' '.join(cells(without['auroc_macro']))}")
    for arm in private["arms"]:
        epsilon = arm["settings"]["privacy.target_epsilon"]
        reached = arm["auroc_macro"]["mean"]
        lost = None if None in (reached, base) else reached - base
        told = " ".join(cells(arm["auroc_macro"]))
        print(f"{name:9} epsilon {epsilon:<3} {told}  minus no privacy {number_text(lost, '+')}")


if __name__ == "__main__":
    main()
