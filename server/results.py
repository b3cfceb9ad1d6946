"""Writes a run's results: rounds as they end, then model, histograms, report, summary."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medfusion.atomic_files import write_atomically, write_json
from medfusion.code_digest import code_sha256
from medfusion.evaluation.calibration import Calibration
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.report.build import build_report
from medfusion.models.saved import OWN_PARTS, save_model
from medfusion.transport.arrays import from_record
from server.federated_metrics import federated_metrics
from server.federated_subgroups import subgroup_figures
from server.run_state import SUMMARY, Outcome, RunContext


def model_card(context: RunContext, outcome: Outcome) -> dict[str, Any]:
    """Return the content of ``model.json``: all that is needed to use the model, and its price."""
    config, selection = context.config, outcome.progress.selection
    initial = outcome.initial_weights
    return {
        "schema": 1,
        "run": config.run.name,
        "task": context.task.to_json(),
        "task_sha256": context.task.sha256,
        "model": config.model.model_dump(mode="json"),
        "frozen_sha256": outcome.frozen_sha256,
        "initial_weights": initial.model_dump(mode="json") if initial else None,
        "seed": config.run.seed,
        "selection_method": config.selection.method,
        "top_n": config.selection.top_n,
        "selection": selection.to_json() if selection else None,
        "ema": config.server.ema,
        "personalisation": config.personalisation.model_dump(mode="json"),
        "privacy": {
            "enabled": config.privacy.enabled,
            "simulated": context.simulated,
            "sites": {
                name: asdict(plan) | {"epsilon": plan.epsilon()}
                for name, plan in context.plans.items()
            },
        },
    }


def write_results(
    context: RunContext,
    outcome: Outcome,
    card: dict[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write the run folder's results; ``summary.json`` comes last and says that all are there.

    A power cut does not belie it: each is on the disk before the next is written.
    """
    folder, labels, found = context.folder, context.task.labels.names, outcome.progress.histograms
    whole = from_record(outcome.arrays) | from_record(outcome.unshared)
    if context.config.personalisation.local != "none":
        card = card | {OWN_PARTS: "initial"}
    save_model(folder / "model", whole, card, calibration)
    counts = measures_of(context.task).score_counts(next(iter(found.values())))
    histograms = {
        "schema": 1,
        "sensitivity": context.last_sensitivity,
        "labels": list(labels),
        "bins": None if counts is None else counts.shape[-1],
        "sites": {name: array.tolist() for name, array in found.items()},
        "calibration": {
            name: array.tolist() for name, array in outcome.progress.calibration.items()
        },
        "subgroups": {name: array.tolist() for name, array in outcome.progress.subgroups.items()},
    }
    write_json(folder / "histograms.json", histograms, durable=True)
    summary = _summary(context, outcome, calibration)
    build_report(folder, summary=summary)
    write_json(folder / SUMMARY, summary, durable=True)


def write_rounds(folder: Path, rounds: list[dict[str, Any]]) -> None:
    """Write ``rounds.jsonl``, a line for each round so far."""
    lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in rounds)
    write_atomically(folder / "rounds.jsonl", lines, durable=False)


def _summary(
    context: RunContext, outcome: Outcome, calibration: Calibration | None
) -> dict[str, Any]:
    progress, measures = outcome.progress, measures_of(context.task)
    shown = dict.fromkeys(("auroc_macro", measures.headline.key))
    sites: dict[str, Any] = {}
    covered = calibration.test["sites"] if calibration else {}
    for name, site in context.roster.sites.items():
        histogram = progress.histograms.get(name)
        own = None
        if histogram is not None:
            own = federated_metrics(
                measures, {name: histogram}, context.plans, sensitivity=context.last_sensitivity
            )
        plan = context.plans.get(name)
        sites[name] = {
            "patients": site.patients_public,
            **{key: own[key] if own else None for key in shown},
            "coverage": covered[name]["coverage"] if name in covered else None,
            "epsilon": plan.epsilon() if plan else None,
            "delta": plan.delta if plan else None,
            "max_epsilon": site.max_epsilon if plan else None,
        }
    overall = federated_metrics(
        measures, progress.histograms, context.plans, sensitivity=context.last_sensitivity
    )
    return {
        "schema": 1,
        **overall,
        "calibration": _calibration_json(calibration),
        "subgroups": subgroup_figures(context, progress.subgroups),
        "sites": sites,
        "rounds": len(progress.rounds),
        **asdict(progress.cost),
        "seed": context.config.run.seed,
        "ema": context.config.server.ema,
        "client_dp": outcome.client_dp,
        "selected": progress.selected,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Return what the results were computed with; ``code`` is a digest of `medfusion`."""
    installed = {name: version(name) for name in ("medfusion", "torch", "flwr", "numpy")}
    return {**installed, "python": platform.python_version(), "code": code_sha256()}


def _calibration_json(calibration: Calibration | None) -> dict[str, Any] | None:
    """Return what ``summary.json`` says of a calibration; its file in the model folder has more."""
    if calibration is None:
        return None
    figures = {
        key: value for key, value in calibration.test.items() if key not in ("labels", "sites")
    }
    wanted = {
        "wanted_coverage": calibration.coverage,
        "wanted_sensitivity": calibration.sensitivity,
    }
    return {"method": calibration.method, **wanted, **figures}
