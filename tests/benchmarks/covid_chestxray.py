"""Regimes and modalities on real chest X-rays, vitals and notes of five regions.

    MEDFUSION_DATA=DIR python tests/benchmarks/covid_chestxray.py OUT [--seeds 2] [--folds 5]

``DIR/covid_chestxray`` is the user's own copy of the data. Without privacy, each patient tested
once; both tables are `medfusion compare`'s. Interrupted, the same command goes on.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

MODALITIES = "image,tabular,text,image+tabular,image+tabular+text"


def main() -> None:
    """Import the data and run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    a = parser.parse_args()
    source = Path(os.environ["MEDFUSION_DATA"]) / "covid_chestxray"
    medfusion = [sys.executable, "-c", "from medfusion.cli.main import app; app()"]
    cohort = a.out / "cohort"
    if not cohort.exists():
        command = ["cohort", "import", "covid-chestxray", str(source), str(cohort)]
        subprocess.run([*medfusion, *command], check=True)
    sets = [part for value in a.overrides for part in ("--set", value)]
    common = [
        *("--set", "privacy.enabled=false", *sets),
        *("--folds", str(a.folds), "--seeds", str(a.seeds)),
    ]
    config = str(cohort / "config.toml")
    for name, arms in (
        ("regimes", ["--regimes", "pooled,local,federated"]),
        ("modalities", ["--regimes", "federated", "--vary", f"model.modalities={MODALITIES}"]),
    ):
        command = ["compare", config, "--out", str(a.out / name), *arms, *common]
        subprocess.run([*medfusion, *command], check=True)


if __name__ == "__main__":
    main()
