"""What one bad hospital of four does to the model, by strategy, on Fed-Heart-Disease.

    MEDFUSION_DATA=DIR python tests/benchmarks/bad_sites.py

In turn each hospital trains on flipped outcomes, or multiplies its update by 100. Printed is the
pooled AUROC on the test patients of all four, as they are: mean over hospitals and FLamby's 5
seeds, and the worst. The data are those of ``fed_heart.py``. Krum's guarantee takes more than
2 f + 2 sites for f bad ones, which four sites do not give it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fed_heart import initial_weights
from flamby_federation import Federated, run_federated
from flamby_heart import SEEDS, Part, figures, read_centres

_RATE = 1e-2
METHODS = {
    "fedavg": Federated("fedavg", _RATE),
    "fedmedian": Federated("fedmedian", _RATE),
    "fedtrimmedavg": Federated("fedtrimmedavg", _RATE, {"beta": 0.25}),
    "multikrum": Federated(
        "multikrum", _RATE, {"num_malicious_nodes": 1, "num_nodes_to_select": 2}
    ),
}


def main() -> None:
    """Run all attacks on all methods and print a line for each method."""
    centres, everyone = read_centres(Path(os.environ["MEDFUSION_DATA"]) / "fed_heart")
    honest = {name: centre.train for name, centre in centres.items()}

    def reached(method: Federated, parts: Mapping[str, Part], bad: str | None) -> list[float]:
        factors = {} if bad is None else {bad: 100.0}
        models = [
            run_federated(method, parts, initial_weights(seed), seed=seed, exaggerated=factors)
            for seed in SEEDS
        ]
        return [figures(np.nan_to_num(w), everyone.test)["auroc"] for w in models]

    print(f"{'':14} none bad  flipped: mean  worst  x 100: mean  worst")
    for name, method in METHODS.items():
        flipped, scaled = [], []
        for bad, part in honest.items():
            flipped += reached(method, honest | {bad: Part(part.x, 1 - part.y)}, None)
            scaled += reached(method, honest, bad)
        line = f"{name:14} {np.mean(reached(method, honest, None)):8.3f}"
        for values, width in ((flipped, 13), (scaled, 11)):
            line += f"  {np.mean(values):{width}.3f} {min(values):6.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
