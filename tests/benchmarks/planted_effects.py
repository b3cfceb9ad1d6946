"""Each planted effect, with the part of the model that exists for it and without it.

    python tests/benchmarks/planted_effects.py [PART ...] [--seeds 5]

Small data sets made on the spot, equal budget with and without, AUROC on fresh studies: means
over the seeds with the range, and the range of the differences seed by seed. On an idle core
expect about five minutes for all. What each modality is worth is told by `ablation.py` on the
synthetic cohort, where every modality carries what the others lack.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from planted import measure
from planted_parts import EFFECTS


def main() -> None:
    """Measure the effects asked for, or all, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(EFFECTS))
    parser.add_argument("--seeds", type=int, default=5)
    a = parser.parse_args()
    unknown = set(a.parts) - set(EFFECTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; expected some of {', '.join(EFFECTS)}")
    torch.set_num_threads(1)
    table = Table("part", "planted", "truth", "with", "without", "with minus without")
    for name in a.parts or EFFECTS:
        effect = EFFECTS[name]
        runs = []
        for seed in range(a.seeds):
            runs.append(measure(effect, seed))
            shown = ", ".join(f"{key} {value:.3f}" for key, value in runs[-1].items())
            print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
        columns = [spread([run[key] for run in runs]) for key in ("truth", "with", "without")]
        gains = [run["with"] - run["without"] for run in runs]
        table.add_row(name, effect.planted, *columns, spread(gains, "+"))
    Console(width=140).print(table)


def spread(values: list[float], sign: str = "") -> str:
    """Return mean (lowest to highest)."""
    mean = sum(values) / len(values)
    return f"{mean:{sign}.3f} ({min(values):{sign}.3f} to {max(values):{sign}.3f})"


if __name__ == "__main__":
    main()
