"""A small finished run, written as the server writes one."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from medfusion.data.task import Task
from medfusion.data.thresholds import feature_label_histograms, select_features
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.metrics import Metrics
from medfusion.evaluation.score_histograms import metrics_from_histogram, score_histogram

LABELS = ("went_icu", "in_icu", "survival")
TASK = Task.parse(
    {
        "task": {"name": "covid-icu", "kind": "multilabel", "bins": 32},
        "image": {"size": [64, 64]},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 120, "unit": "year"},
            "temperature": {"kind": "numeric", "low": 30, "high": 45, "unit": "°C"},
            "smoker": {"kind": "binary"},
            "view": {"kind": "categorical", "values": ["PA", "AP", "L"]},
        },
        "labels": {"names": LABELS},
    },
    where="test",
)
PLAN = {
    "patients_public": 240,
    "delta": 1e-5,
    "sample_rate": 0.13333333,
    "expected_batch": 32.0,
    "steps_per_round": 8,
    "rounds": 12,
    "max_grad_norm": 1.0,
    "noise_multiplier": 0.93217,
    "selection_noise": 4.317,
    "metrics_noise": 1.2,
    "metrics_releases": 1,
    "epsilon": 7.9871,
}


def draw_histograms(names: list[str], *, private: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for name in names:
        truth = (rng.random((400, 3)) < (0.35, 0.2, 0.7)).astype(float)
        truth[:, 2] = truth[:, 2] if name != names[-1] else 1.0  # a site without negatives
        logits = rng.normal((1.6, 1.0, 0.5) * truth - (1.4, 1.8, -0.4), 1.0)
        known = rng.random(truth.shape) < 0.7
        histogram = score_histogram(logits, truth, known, bins=32 if private else 256)
        noise = 1.2 * np.sqrt(3) if private else 0.0
        found[name] = histogram + rng.normal(0, 1, histogram.shape) * noise
    return found


def write_rounds(path: Path, names: list[str], overall: Metrics, *, private: bool) -> None:
    rng = np.random.default_rng(1)
    lines = []
    for number in range(1, 13):
        growth = 1 - np.exp(-number / 4)
        auroc = {
            label: 0.5 + growth * ((area or 0.5) - 0.5) + rng.normal(0, 0.01)
            for label, area in zip(LABELS, overall.auroc, strict=True)
        }
        metrics = {"auroc_macro": float(np.mean(list(auroc.values()))), "auroc": auroc}
        failed = names[0] if number == 4 else None
        lines.append(
            {
                "schema": 1,
                "round": number,
                "seconds": 3.1 + rng.random(),
                "bytes_up": 3_200_000,
                "bytes_down": 3_400_000,
                "update_norm": float(2 / np.sqrt(number)),
                "sites": {
                    name: {
                        "seconds": 1 + rng.random(),
                        "status": "failed" if name == failed else "ok",
                    }
                    for name in names
                },
                "metrics": None if private and number < 12 else metrics,
                "evaluated": [] if private and number < 12 else names,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_card(path: Path, names: list[str], *, private: bool) -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((600, 3)) < (0.35, 0.2, 0.7)).astype(float)
    features = np.column_stack(
        [
            np.clip(rng.normal(55 + 14 * labels[:, 0], 15), 0, 120),
            np.clip(rng.normal(37 + labels[:, 1], 1), 30, 45),
            rng.random(600) < 0.3 + 0.3 * labels[:, 0],
            rng.integers(0, 2, 600) + (rng.random(600) < 0.4) * (1 - labels[:, 2]),
        ]
    ).astype(float)
    selection = select_features(feature_label_histograms(features, labels, TASK), TASK, 3)
    card = {
        "schema": 1,
        "run": "covid-icu-pilot",
        "task": TASK.to_json(),
        "task_sha256": TASK.sha256,
        "model": {"name": "medfusion_net", "size": "tiny", "modalities": ["image", "tabular"]},
        "selection_method": "federated",
        "selection": selection.to_json(),
        "privacy": {
            "enabled": private,
            "simulated": True,
            "sites": dict.fromkeys(names, PLAN) if private else {},
        },
    }
    path.parent.mkdir()
    path.write_text(json.dumps(card), encoding="utf-8")


def write_run(
    folder: Path, *, private: bool, sites: tuple[str, ...] = ("italy", "spain", "usa")
) -> Path:
    """Write a run folder of ``sites``, the first of which failed once."""
    names = list(sites)
    folder.mkdir(parents=True)
    histograms = draw_histograms(names, private=private)
    overall = metrics_from_histogram(np.sum(list(histograms.values()), axis=0))
    summary: dict[str, Any] = {
        "schema": 1,
        **overall.to_json(LABELS),
        "selected": names,
        "sites": {
            name: {
                "patients": 240,
                "auroc_macro": metrics_from_histogram(histograms[name]).auroc_macro,
                "epsilon": PLAN["epsilon"] if private else None,
                "delta": PLAN["delta"] if private else None,
                "max_epsilon": 10.0 if private else None,
            }
            for name in names
        },
        "rounds": 12,
        "seconds": 43.21,
        "bytes_up": 38_400_000,
        "bytes_down": 40_800_000,
        "seed": 0,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_rounds(folder / "rounds.jsonl", names, overall, private=private)
    stored = {
        "schema": 1,
        "labels": LABELS,
        "bins": 32 if private else 256,
        "sites": {name: array.tolist() for name, array in histograms.items()},
    }
    (folder / "histograms.json").write_text(json.dumps(stored), encoding="utf-8")
    write_card(folder / "model" / "model.json", names, private=private)
    config = '[run]\nname = "covid-icu-pilot"\nrounds = 12\nseed = 0\n\n[model]\nname = "x"\n'
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return folder


def task_of(kind: str) -> Task:
    labels: dict[str, Any] = {
        "multilabel": {"names": LABELS},
        "multiclass": {"column": "state", "names": ["well", "ill", "worse"]},
        "regression": {"names": ["stay"], "low": 0, "high": 50, "unit": "day"},
        "detection": {"names": ["right_lung", "left_lung"]},
    }[kind]
    parts: dict[str, Any] = {
        "task": {"name": kind, "kind": kind},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 120}},
        "labels": labels,
    }
    if kind == "detection":
        parts |= {"image": {"size": [32, 32]}, "boxes": {"most": 2}}
    return Task.parse(parts, where="test")


def draw_studies(kind: str, seed: int, *, studies: int = 60) -> tuple[np.ndarray, ...]:
    """Return outputs, truth and what is known, as `Measures.release` takes them."""
    rng = np.random.default_rng(seed)
    if kind == "regression":
        truth = rng.uniform(5, 45, (studies, 1))
        return (truth - 25) / 25 + rng.normal(0, 0.2, truth.shape), truth, np.ones_like(truth)
    if kind == "detection":  # both lungs in every study: no study is without one
        corners = np.array([[0.1, 0.1, 0.4, 0.9], [0.6, 0.1, 0.9, 0.9]])
        truth = np.concatenate([np.ones(2), corners.ravel(), [1, 2]])
        boxes = 32 * corners + rng.normal(0, 1.5, (studies, 2, 4))
        rest = np.stack([rng.uniform(0.3, 0.9, (studies, 2)), np.tile([1, 2], (studies, 1))], -1)
        outputs = np.concatenate([boxes, rest], axis=-1)
        return outputs, np.tile(truth, (studies, 1)), np.ones((studies, 2))
    truth = np.eye(3)[rng.integers(0, 3, studies)]
    return rng.normal(2 * truth, 1.0), truth, np.ones_like(truth)


def write_run_of_kind(folder: Path, kind: str) -> Path:
    """Write a small run folder, without privacy, of any kind of task."""
    task = task_of(kind)
    measures, names = measures_of(task), ("north", "south")
    drawn = [draw_studies(kind, seed) for seed in range(len(names))]
    releases = [measures.release(*one, noised=False) for one in drawn]
    summary = measures.summary(np.sum(releases, axis=0))
    headline = measures.headline.key
    nothing = {"patients": 100, "epsilon": None, "delta": None, "max_epsilon": None}
    sites = {
        name: nothing | {"auroc_macro": None, headline: measures.summary(release)[headline]}
        for name, release in zip(names, releases, strict=True)
    }
    cost = {"seconds": 2.0, "bytes_up": 1000, "bytes_down": 2000}
    line = {"schema": 1, "update_norm": 1.0, "metrics": summary, "evaluated": list(names), **cost}
    line["sites"] = {name: {"status": "ok", "seconds": 1.0} for name in names}
    lines = [json.dumps({**line, "round": number}) for number in (1, 2)]
    found = {
        "summary.json": {**summary, "sites": sites, "rounds": 2, "seed": 0, **cost},
        "histograms.json": {
            "sites": {n: one.tolist() for n, one in zip(names, releases, strict=True)}
        },
        "model/model.json": {
            "run": f"{kind}-pilot",
            "task": task.to_json(),
            "model": {"name": "net"},
            "privacy": {"enabled": False, "simulated": True, "sites": {}},
        },
    }
    (folder / "model").mkdir(parents=True)
    for name, content in found.items():
        (folder / name).write_text(json.dumps({"schema": 1, **content}))
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    return folder
