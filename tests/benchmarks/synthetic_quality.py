"""What a federation reaches on the synthetic cohort, where the truth is known.

    python tests/benchmarks/synthetic_quality.py OUT [--patients 2000] [--rounds 30] [--seeds 1] \
        [--set key=value]... [--quick]

Without privacy, with the settings in `OPEN`: pooled and federated arms over the modalities, the
same test patients in all, with paired intervals; the oracle's AUROC on those patients' studies; the
planted cut points against the selected ones. At epsilon 8: the federated arm with all modalities.
``--quick`` leaves out single modalities and the private arm. Interrupted, the same command goes
on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.metrics import roc_auc_score

from medfusion.data.site_data import load_site_data
from medfusion.data.split import TEST

MODALITIES = ("image", "tabular", "text", "image+tabular+text")
OPEN = (
    "privacy.enabled=false",
    "training.batch_size=16",
    "training.learning_rate=2e-3",
    "training.schedule=cosine",
    "model.auxiliary_heads=0.3",
    "evaluation.every=0",
)


def medfusion(*arguments: str) -> None:
    """Run a command of ours in a process of its own, its output passed on."""
    code = "from medfusion.cli.main import app; app()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def oracle_auroc(cohort: Path) -> float:
    """Macro AUROC of the true probabilities on the test studies with known labels."""
    truth = pd.read_csv(cohort / "oracle.csv").set_index(["site", "study_id"])
    rows = []
    for folder in sorted((cohort / "sites").iterdir()):
        test = load_site_data(folder).part(TEST)
        names = load_site_data(folder).task.labels.names
        frame = pd.DataFrame(test.labels, columns=[f"y.{name}" for name in names])
        frame.index = pd.MultiIndex.from_product([[folder.name], test.study_ids])
        rows.append(frame)
    labels = pd.concat(rows)
    scores = truth.loc[labels.index]
    values = []
    for name in names:
        known = labels[f"y.{name}"].notna().to_numpy()
        values.append(roc_auc_score(labels[f"y.{name}"][known], scores[name][known]))
    return sum(values) / len(values)


def arm_of(result: dict[str, Any], regime: str, modalities: str) -> tuple[int, dict[str, Any]]:
    """Find an arm of a comparison by regime and modalities."""
    for index, arm in enumerate(result["arms"]):
        value = arm["settings"].get("model.modalities", "image+tabular+text")
        value = "+".join(value) if isinstance(value, list) else value
        if arm["regime"] == regime and value == modalities:
            return index, arm
    raise SystemExit(f"no arm {regime}, {modalities}")


def show_difference(result: dict[str, Any], what: str, a: int, b: int) -> None:
    """Print arm a minus arm b with its paired interval."""
    for row in result["differences"]:
        if {row["a"], row["b"]} == {a, b}:
            sign = 1 if row["a"] == a else -1
            low, high = sorted(sign * end for end in row["auroc_macro"]["ci95"])
            print(f"{what}: {sign * row['auroc_macro']['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
            return
    first, second = (result["arms"][i]["auroc_macro"]["mean"] for i in (a, b))
    print(f"{what}: {first - second:+.3f} (this pair has no interval)")


def show_cut_points(cohort: Path, model: Path) -> None:
    """Compare the planted cut points with the selected ones."""
    planted = json.loads((cohort / "oracle.json").read_text())["cut_points"]
    selection = json.loads((model / "model.json").read_text())["selection"]["thresholds"]
    chosen = {(t["feature"], t["label"]): t for t in selection}
    for cut in planted:
        found = chosen.get((cut["feature"], cut["label"]))
        told = f"{found['value']:g} {found['direction']}, J {found['score']:.2f}" if found else "-"
        print(
            f"  {cut['label']}: planted {cut['feature']} {cut['value']:g} {cut['direction']}, "
            f"selected {told}"
        )


def main() -> None:
    """Run both comparisons and print what they show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    modalities = MODALITIES[-1:] if a.quick else MODALITIES
    cohort = a.out / "cohort"
    if not cohort.exists():
        size = ("--sites", "4", "--patients", str(a.patients), "--seed", "0")
        medfusion("cohort", "synth", str(cohort), *size)
    config = str(cohort / "config.toml")
    common = ("--set", f"run.rounds={a.rounds}", "--seeds", str(a.seeds))
    medfusion(
        *("compare", config, "--out", str(a.out / "open"), "--regimes", "pooled,federated"),
        *("--vary", f"model.modalities={','.join(modalities)}"),
        *(part for text in (*OPEN, *a.overrides) for part in ("--set", text)),
        *common,
    )
    if not a.quick:
        medfusion(
            *("compare", config, "--out", str(a.out / "private"), "--regimes", "federated"),
            *("--set", "privacy.target_epsilon=8", *common),
        )
    result = json.loads((a.out / "open" / "compare.json").read_text())
    print(f"oracle, all modalities, test studies: {oracle_auroc(cohort):.3f}")
    everything, _ = arm_of(result, "federated", MODALITIES[-1])
    pooled, _ = arm_of(result, "pooled", MODALITIES[-1])
    show_difference(result, "federated minus pooled, all modalities", everything, pooled)
    singles = [arm_of(result, "federated", name) for name in modalities[:-1]]
    if singles:
        best = max(singles, key=lambda pair: pair[1]["auroc_macro"]["mean"])[0]
        show_difference(result, "all modalities minus the best single one", everything, best)
    run = a.out / "selection"
    if not (run / "summary.json").exists():
        quick = ("--set", "model.name=logistic", "--set", "run.rounds=1")
        medfusion(
            *("simulate", config, "--out", str(run), "--set", "privacy.enabled=false", *quick)
        )
    print("cut points, federated selection without privacy:")
    show_cut_points(cohort, run / "model")


if __name__ == "__main__":
    main()
