"""Writes a finished run: model, summary, rounds, histograms, report."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medfusion.config import RunConfig
from medfusion.data.task import Task
from medfusion.models.saved import save_model
from medfusion.privacy.plan import DpPlan
from medfusion.transport.arrays import from_record
from server.federated_metrics import federated_metrics
from server.rounds import Outcome


def model_card(
    config: RunConfig,
    task: Task,
    outcome: Outcome,
    plans: dict[str, DpPlan],
    *,
    simulated: bool,
) -> dict[str, Any]:
    """Return the content of ``model.json``: all that is needed to use the model, and its price."""
    return {
        "schema": 1,
        "run": config.run.name,
        "task": task.to_json(),
        "task_sha256": task.sha256,
        "model": config.model.model_dump(mode="json"),
        "seed": config.run.seed,
        "selection_method": config.selection.method,
        "top_n": config.selection.top_n,
        "selection": outcome.selection.to_json() if outcome.selection else None,
        "privacy": {
            "enabled": config.privacy.enabled,
            "simulated": simulated,
            "sites": {
                name: asdict(plan) | {"epsilon": plan.epsilon()} for name, plan in plans.items()
            },
        },
    }


def write_results(
    folder: Path,
    config: RunConfig,
    task: Task,
    outcome: Outcome,
    plans: dict[str, DpPlan],
    card: dict[str, Any],
) -> dict[str, Any]:
    """Write the run folder's results and return the summary."""
    overall = federated_metrics(outcome.histograms, plans)
    sites: dict[str, Any] = {}
    for name, site in outcome.sites.items():
        histogram = outcome.histograms.get(name)
        own = federated_metrics({name: histogram}, plans) if histogram is not None else None
        plan = plans.get(name)
        sites[name] = {
            "patients": site.patients_public,
            "auroc_macro": own.auroc_macro if own else None,
            "epsilon": plan.epsilon() if plan else None,
            "delta": plan.delta if plan else None,
        }
    summary = {
        "schema": 1,
        **overall.to_json(task.labels.names),
        "sites": sites,
        "rounds": len(outcome.rounds),
        "seconds": round(sum(line["seconds"] for line in outcome.rounds), 3),
        "bytes_up": sum(line["bytes_up"] for line in outcome.rounds),
        "bytes_down": sum(line["bytes_down"] for line in outcome.rounds),
        "seed": config.run.seed,
    }
    save_model(folder / "model", from_record(outcome.arrays), card)
    histograms = {
        "schema": 1,
        "labels": list(task.labels.names),
        "bins": next(iter(outcome.histograms.values())).shape[-1],
        "sites": {name: array.tolist() for name, array in outcome.histograms.items()},
    }
    write_json(folder / "histograms.json", histograms)
    lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in outcome.rounds)
    write_text(folder / "rounds.jsonl", lines)
    write_json(folder / "summary.json", summary)
    from medfusion.evaluation.report.build import build_report  # plotly takes a while to load

    build_report(folder)
    return summary


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON without NaN, whole or not at all."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
