"""The report's words on how to do the run again, and what to compare."""

import shlex

from medfusion.evaluation.report.run_folder import Run

_NAMES = {
    "config.toml": "Settings, config.toml",
    "model/model.json": "Model card, model/model.json",
    "model/model.safetensors": "Weights, model/model.safetensors",
    "model/calibration.json": "Calibration, model/calibration.json",
}


def commands(run: Run) -> list[tuple[str, str]]:
    """Return (what it does, command) pairs; the run folder is named by its last part."""
    folder = shlex.quote(run.folder.resolve().name)
    found = []
    if run.config and run.privacy.get("simulated"):
        found.append(("Run it again", f"medfusion simulate {folder}/config.toml --out again"))
    found.append(("Measure it at a hospital", f"medfusion evaluate {folder}/model SITE --json"))
    if run.privacy.get("enabled"):
        found.append(("Attack its privacy plan", f"medfusion audit {folder}"))
    found.append(("Build this page anew", f"medfusion report {folder}"))
    return found


def same_in_words(run: Run) -> str:
    """Say how far another run would be the same."""
    if run.privacy.get("simulated"):
        return (
            "The same settings, data, versions and machine give the same weights, bit for bit, on "
            "a processor in float32: all randomness, that of privacy too, comes from the seed."
        )
    if run.privacy.get("enabled"):
        return (
            "The noise comes from secrets that never leave the hospitals, so a second run has "
            "other weights, and costs its epsilon again."
        )
    return "The same settings, data, versions and machines give the same weights in float32."


def facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, value) pairs: seed, versions, hashes."""
    versions = run.summary.get("versions") or {}
    found = [("Seed", str(run.summary["seed"]))]
    found += [(name, str(version)) for name, version in versions.items()]
    if run.task is not None:
        found.append((f"Task {run.task.task.name}, SHA-256", run.task.sha256))
    if run.card.get("frozen_sha256"):
        found.append(("Frozen weights, SHA-256", run.card["frozen_sha256"]))
    return [*found, *((f"{_NAMES[name]}, SHA-256", value) for name, value in run.hashes.items())]
