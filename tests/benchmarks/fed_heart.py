"""FLamby's Fed-Heart-Disease benchmark with the strategies of this project.

    MEDFUSION_DATA=DIR python tests/benchmarks/fed_heart.py --out FILE [--chosen]

``DIR/fed_heart`` is the user's own copy of the four files and of FLamby's result tables. Splits,
z-scores, batches of 4, 15 rounds of 100 steps, learning rates and the 5 seeds are FLamby's; the
coordinator's half of each method, and the site's half of SCAFFOLD, are those that a run uses
(`server.strategies`). Local steps are plain numpy. FILE gets all figures as JSON; the table that
is printed sets the means beside the published ones, with differences.

``--chosen`` adds methods at rates chosen by cross-validation on the training patients alone
(3 folds at each centre), by AUROC.

Two published means differ by more than .02 for reasons read in FLamby's source; a line for each
shows what it comes to:

FedAdam, uncorrected
    Flower's FedAdam corrects the bias of its moments, FLamby's does not, and so takes steps of up
    to six times the length at the same learning rate.
Cyclic, no transfer
    FLamby's sites train copies of their own in turn and never hand one on; what is evaluated is
    the first site's. Ours hands the model on.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flamby_federation import CYCLIC_RATE, Federated, cyclic_without_transfer, run_federated
from flamby_heart import (
    SEEDS,
    Centre,
    Floats,
    Part,
    adam,
    figures,
    pooled,
    published,
    read_centres,
)

# FLamby's config_heart_disease.json, in our options' names.
_ADAPTIVE = {"beta_1": 0.9, "beta_2": 0.999, "tau": 1e-8}
METHODS: dict[str, Federated] = {
    "FedAvg100": Federated("fedavg", 1e-3),
    "FedProx100": Federated("fedprox", 1e-3, {"proximal_mu": 0.01}),
    "Scaffold100": Federated("scaffold", 1e-3, {"server_learning_rate": 1.0}),
    "FedAdam100": Federated("fedadam", 1e-2, {"eta": 1e-2, **_ADAPTIVE}),
    "FedYogi100": Federated("fedyogi", 3.162e-3, {"eta": 1e-2, **_ADAPTIVE}),
    "FedAdagrad100": Federated("fedadagrad", 3.162e-3, {"eta": 0.316228, "tau": 1e-8}),
    "FedAdam, uncorrected": Federated(
        "fedadam", 1e-2, {"eta": 1e-2, **_ADAPTIVE}, uncorrected=True
    ),
    "Cyclic100": Federated("cyclic", CYCLIC_RATE),
}
_NAMESAKES = {"FedAdam, uncorrected": "FedAdam100", "Cyclic, no transfer": "Cyclic100"}
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
CANDIDATES: dict[str, list[Federated]] = {
    "fedavg, chosen": [Federated("fedavg", rate) for rate in RATES],
    "scaffold, chosen": [Federated("scaffold", rate) for rate in RATES],
    "feddyn, chosen": [
        Federated("feddyn", rate, {"alpha": alpha}) for rate in RATES for alpha in (0.1, 1.0)
    ],
}
Result = dict[str, dict[str, float]]  # figure by name, by test part


def main() -> None:
    """Run all methods over all seeds; write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chosen", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    source = Path(os.environ["MEDFUSION_DATA"]) / "fed_heart"
    centres, everyone = read_centres(source)
    methods = dict(METHODS)
    if a.chosen:
        methods |= {name: _best(centres, tried) for name, tried in CANDIDATES.items()}
    found = {
        seed: {
            name: evaluated(w, centres, everyone)
            for name, w in _trained(centres, everyone, methods, seed).items()
        }
        for seed in SEEDS
    }
    theirs = published(source / "flamby")
    results = {name: _summary([found[s][name] for s in SEEDS]) for name in found[SEEDS[0]]}
    a.out.write_text(
        json.dumps(
            {
                "schema": 1,
                "seeds": list(SEEDS),
                "settings": {name: vars(method) for name, method in methods.items()},
                "published_accuracy": theirs,
                "mean": results,
                "by_seed": {str(seed): found[seed] for seed in SEEDS},
            },
            indent=2,
        )
        + "\n"
    )
    show(results, theirs)


def _trained(
    centres: Mapping[str, Centre], everyone: Centre, methods: Mapping[str, Federated], seed: int
) -> dict[str, Floats]:
    """Return the weights of each method for one seed."""
    start = initial_weights(seed)
    models = {"Pooled Training": adam(start, everyone.train, np.random.default_rng(seed))}
    for number, centre in enumerate(centres.values()):
        models[f"Local {number}"] = adam(start, centre.train, np.random.default_rng(seed))
    parts = {name: centre.train for name, centre in centres.items()}
    for name, method in methods.items():
        models[name] = run_federated(method, parts, start, seed=seed)
    models["Cyclic, no transfer"] = cyclic_without_transfer(parts, start, seed=seed)
    return models


def initial_weights(seed: int) -> Floats:
    """Return torch's initial weights of a linear layer, as FLamby's baseline has them."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(13, 1)
    weights: Floats = torch.cat([layer.weight[0], layer.bias]).detach().double().numpy()
    return weights


def evaluated(
    w: Floats, centres: Mapping[str, Centre], everyone: Centre
) -> dict[str, dict[str, float]]:
    """Return the figures on all test patients, and on each centre's."""
    parts = {"pooled": everyone.test} | {name: centre.test for name, centre in centres.items()}
    return {name: figures(w, part) for name, part in parts.items()}


def _best(centres: Mapping[str, Centre], tried: list[Federated]) -> Federated:
    """Return the method of the highest AUROC in cross-validation on training patients."""
    folds = 3

    def score(method: Federated) -> float:
        reached = []
        for fold in range(folds):
            kept, held = {}, []
            for name, centre in centres.items():
                part = np.random.default_rng(7).permutation(len(centre.train.y)) % folds
                kept[name] = Part(centre.train.x[part != fold], centre.train.y[part != fold])
                held.append(Part(centre.train.x[part == fold], centre.train.y[part == fold]))
            w = run_federated(method, kept, initial_weights(0), seed=fold)
            reached.append(figures(w, pooled(held))["auroc"])
        return float(np.mean(reached))

    return max(tried, key=score)


def _summary(seeds: list[dict[str, dict[str, float]]]) -> Result:
    """Return means over seeds; None where a figure is undefined in any of them."""
    return {
        part: {figure: _mean([one[part][figure] for one in seeds]) for figure in seeds[0][part]}
        for part in seeds[0]
    }


def _mean(values: list[Any]) -> Any:
    return None if None in values else float(np.mean(values))


def show(results: Mapping[str, Result], theirs: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line for each method."""
    print(
        f"{'':20} {'accuracy':>8} {'published':>9} {'differs':>7}   {'centres':>7} "
        f"{'published':>9} {'differs':>7}   {'AUROC':>6} {'balanced':>8}"
    )
    for name, result in results.items():
        ours = [_accuracy(result, lambda part: part == "pooled")]
        ours.append(_accuracy(result, lambda part: part != "pooled"))
        line = f"{name:20}"
        known = theirs.get(_NAMESAKES.get(name, name))
        for value, wanted in zip(ours, (True, False), strict=True):
            line += f" {value:8.3f}"
            if known is None:
                line += f" {'-':>9} {'':>7}  "
            else:
                listed = [v for part, v in known.items() if (part == "pooled") == wanted]
                line += f" {np.mean(listed):9.3f} {value - np.mean(listed):+7.3f}  "
        pooled_ = result["pooled"]
        print(f"{line} {pooled_['auroc']:6.3f} {pooled_['balanced']:8.3f}")


def _accuracy(result: Result, wanted: Callable[[str], bool]) -> float:
    return float(np.mean([f["accuracy"] for part, f in result.items() if wanted(part)]))


if __name__ == "__main__":
    main()
