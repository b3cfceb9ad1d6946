"""A model's card, ``MODEL_CARD.md``: from what the run's files say, and nothing else.

After Mitchell et al., "Model cards for model reporting", FAT* 2019, arXiv 1810.03993.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from medfusion.atomic_files import make_folder, write_atomically
from medfusion.digests import file_sha256
from medfusion.errors import DataError
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.report.initial_weights import initial_weights_in_words
from medfusion.evaluation.report.wording import counted, epsilon, number
from medfusion.models.contract import trainable_state
from medfusion.models.registry import modalities_of
from medfusion.models.saved import SavedModel, load_model

_UNKNOWN = "unknown"
_PURPOSES = {
    "multilabel": "To estimate, from one study, how likely each of its labels is.",
    "multiclass": "To estimate, from one study, how likely each of its classes is.",
    "regression": "To estimate one number from one study.",
    "detection": "To find boxes around what its labels name in one image.",
}
_NO_FIGURES = (  # of summary.json: what is no figure of quality
    *("schema", "sites", "rounds", "seconds", "bytes_up", "bytes_down", "seed", "ema"),
    *("client_dp", "selected"),
)


def write_card(model_dir: Path, out: Path) -> None:
    """Write the card of the model in ``model_dir``; the run folder is the one above it.

    Raises
    ------
    DataError, ConfigError
        If the model cannot be loaded, or a file of the run folder is damaged.
    """
    saved = load_model(model_dir)
    summary = _summary(model_dir.resolve().parent / "summary.json")
    about = {
        **_model(saved),
        **_data(saved, summary),
        **_figures(saved, summary),
        **_privacy(saved.card.get("privacy")),
        **_provenance(saved, model_dir, summary),
        "calibration": _calibration(saved),
    }
    template = files("medfusion.export").joinpath("card.md.j2").read_text(encoding="utf-8")
    page = Environment(undefined=StrictUndefined, trim_blocks=False)  # noqa: S701 (no HTML)
    text = page.from_string(template).render(about)
    make_folder(out.parent)
    write_atomically(out, text.rstrip() + "\n", durable=False)


def _summary(path: Path) -> dict[str, Any]:
    """Return ``summary.json``; empty where the model does not lie in its run folder."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise DataError(f"{path}: not JSON; expected the summary of a finished run") from None
    return found


def _model(saved: SavedModel) -> dict[str, Any]:
    selection = {
        "federated": "selected from histograms of all hospitals",
        "local": "selected by each hospital from its own",
        "none": "all of the task's",
    }[saved.selection_method]
    if saved.selection is not None:
        selection += f": {', '.join(saved.selection.features) or 'none'}"
    return {
        "run": _plain(saved.card.get("run") or _UNKNOWN),
        "purpose": _PURPOSES[saved.task.task.kind],
        "model": {"name": saved.options.name},
        "modalities": modalities_of(saved.options, saved.task),
        "parameters": f"{sum(p.numel() for p in trainable_state(saved.module).values()):,}",
        "selection": _plain(selection),
        "initial": initial_weights_in_words(saved.card) or "drawn from the seed",
        "labels": [_plain(name) for name in saved.task.labels.names],
        "task": {"name": _plain(saved.task.task.name), "kind": saved.task.task.kind},
    }


def _data(saved: SavedModel, summary: Mapping[str, Any]) -> dict[str, Any]:
    sites = [
        {"name": _plain(name), "patients": f"{site['patients']:,}"}
        for name, site in summary.get("sites", {}).items()
    ]
    planned = saved.card.get("privacy", {}).get("sites", {})
    if not sites:
        sites = [
            {"name": _plain(name), "patients": f"{plan['patients_public']:,}"}
            for name, plan in planned.items()
        ]
    total = sum(int(site["patients"].replace(",", "")) for site in sites)
    told = f"Trained at {counted(len(sites), 'hospital')}." if sites else "Hospitals: unknown."
    return {
        "sites": sites,
        "hospitals": told,
        "patients": counted(total, "patient") if sites else "an unknown number of patients",
    }


def _figures(saved: SavedModel, summary: Mapping[str, Any]) -> dict[str, Any]:
    headline = measures_of(saved.task).headline
    rows = [
        (f"{key}, {name}" if name else key, number(value) if value is not None else "undefined")
        for key, told in summary.items()
        if key not in _NO_FIGURES and (key, told) != ("calibration", None)
        for name, value in (told.items() if isinstance(told, dict) else [("", told)])
        if (value is None or isinstance(value, int | float)) and not name.startswith("wanted_")
    ]
    noised = saved.card.get("privacy", {}).get("enabled")
    intro = (
        "On the hospitals' test patients, summed over the hospitals"
        f"{', with the noise of its privacy' if noised else ''}; from the run's `summary.json`. "
        "How many test patients there were is unknown to this file: of few, even 1 says little."
    )
    return {
        "figures": [(_plain(name), value) for name, value in rows],
        "figures_intro": intro
        if summary
        else "Unknown: there is no `summary.json` above the model.",
        "headline": headline.name,
        "site_figures": [
            (
                _plain(name),
                "undefined" if site.get(headline.key) is None else number(site[headline.key]),
            )
            for name, site in summary.get("sites", {}).items()
        ],
    }


def _calibration(saved: SavedModel) -> str:
    fitted = saved.calibration
    if fitted is None:
        return "none was fitted."
    return (
        f"{fitted.method}, with prediction sets meant to hold the truth for "
        f"{fitted.coverage:.0%} of patients; `predict` and `evaluate` apply it."
    )


def _privacy(told: Mapping[str, Any] | None) -> dict[str, Any]:
    if told is None:
        return {"privacy": "Unknown: the model does not tell.", "budgets": [], "limits": []}
    if not told["enabled"]:
        words = (
            "None. The weights were trained without differential privacy and may reveal that a "
            "patient was among those trained on: treat them as the patients' data."
        )
        return {"privacy": words, "budgets": [], "limits": ["It must not leave the federation."]}
    words = (
        "Differential privacy of each patient at each hospital: whatever the model and the figures "
        "released of it tell, it would tell about as much (within a factor of e^epsilon, up to a "
        "probability of delta) if that patient's record were replaced by an empty one. Selection "
        "of features, training and released figures are counted. A patient of several hospitals "
        "pays the sum."
    )
    limits = ["Noise for privacy costs quality, most of all for rare labels."]
    if told.get("simulated"):
        words += (
            " **Simulated**: the noise came from the run's public seed, so these figures show what "
            "a deployment would cost, and protect nobody."
        )
        limits.append("Its privacy was simulated: treat it as a model without any.")
    return {"privacy": words, "budgets": _budgets(told["sites"]), "limits": limits}


def _budgets(sites: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            _plain(name),
            epsilon(plan["epsilon"]),
            *(number(plan[key]) for key in ("delta", "noise_multiplier", "max_grad_norm")),
            number(plan["sample_rate"]),
            number(plan["steps_per_round"] * plan["rounds"]),
        ]
        for name, plan in sites.items()
    ]


def _provenance(saved: SavedModel, model_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    strategy = _UNKNOWN
    config = model_dir.resolve().parent / "config.toml"
    if config.exists() and summary:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
        strategy = content.get("strategy", {}).get("name", _UNKNOWN)
    return {
        "rounds": summary.get("rounds", _UNKNOWN),
        "seed": saved.card.get("seed", _UNKNOWN),
        "strategy": strategy,
        "task_sha256": saved.task.sha256,
        "weights_sha256": file_sha256(model_dir / "model.safetensors"),
        "card_sha256": file_sha256(model_dir / "model.json"),
        "frozen_sha256": _frozen(saved.card.get("frozen_sha256", _UNKNOWN)),
    }


def _frozen(digest: str) -> str:
    return "none are frozen" if digest == hashlib.sha256().hexdigest() else digest


def _plain(text: str) -> str:
    """Return a name that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|")
