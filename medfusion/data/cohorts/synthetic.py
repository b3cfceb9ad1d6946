"""The synthetic cohort: hospitals that differ, a planted signal, and the truth beside them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfusion.data.cohorts.synthetic_hospitals import Hospital, hospital
from medfusion.data.cohorts.synthetic_images import draw_images
from medfusion.data.cohorts.synthetic_notes import write_note
from medfusion.data.cohorts.synthetic_signal import (
    CUT_POINTS,
    FEATURES,
    LABELS,
    NOISE_FEATURES,
    Findings,
    Presence,
    draw_findings,
    draw_labels,
    known_probabilities,
    parts_of,
)
from medfusion.data.cohorts.synthetic_tables import Row, number_text, site_sections, write_table
from medfusion.data.cohorts.writing import (
    SiteSummary,
    new_folder,
    write_config,
    write_site,
    write_task,
    write_text,
)
from medfusion.data.task import CategoricalFeature
from medfusion.errors import UsageError

_INTERCEPTS = np.array([-0.9, -1.2, -1.6, -1.6, -3.3])
_MODALITIES = ("image", "tabular", "text")
_REPEAT_STUDIES = (0.85, 0.10, 0.05)  # share of patients with one, two and three studies
_JPEG_QUALITY = 95
_SMALLEST_COHORT = 20


def write_cohort(
    out: Path, *, sites: int = 4, patients: int = 400, seed: int = 0, image_size: int = 32
) -> list[SiteSummary]:
    """Write a cohort of ``sites`` hospitals with ``patients`` each; the same seed, the same bytes.

    ``out`` gets ``task.toml``, ``config.toml``, ``sites/NAME/``, and the truth, which no site
    sees: ``oracle.csv`` and ``oracle.json`` with the planted cut points. In ``oracle.csv``, the
    column of a label is its probability given what the study holds, and ``label.modality``
    the probability given only that modality. ``image_size`` is in pixels. A hospital does not
    change when others are added.

    Raises
    ------
    UsageError
        If a number is out of range, or ``out`` is not a new or empty folder.
    """
    _check("sites", sites, 1, 1000)
    _check("patients", patients, _SMALLEST_COHORT, 1_000_000)
    _check("seed", seed, 0, 2**63 - 1)
    _check("image size", image_size, 32, 64)
    with new_folder(out) as folder:
        task = write_task(folder, _task_sections(image_size))
        summaries, oracle = [], []
        for index in range(sites):
            place = hospital(index)
            truth = _write_hospital(
                folder, place, patients=patients, image_size=image_size, seed=(seed, index)
            )
            oracle += truth
            summaries.append(write_site(folder, place.name, **site_sections(place)))
        _write_oracle(folder, oracle, seed)
        batch = min(256, max(16, patients // 6))  # large batches are what privacy asks for
        write_config(
            folder, task=task, sites=sites, rounds=10, batch_size=batch, learning_rate=3e-3
        )
    return summaries


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name}: expected {low} to {high}, found {value}")


def _task_sections(image_size: int) -> dict[str, Any]:
    """Content of ``task.toml``."""
    return {
        "task": {
            "name": "synthetic-chest",
            "kind": "multilabel",
            "patient": "patient_id",
            "study": "study_id",
            "bins": 32,
        },
        "split": {"seed": 0, "calibration": 0.1, "test": 0.2},
        "image": {"column": "image", "dims": 2, "size": [image_size] * 2, "channels": 1},
        "text": {"column": "notes", "max_tokens": 64},
        "features": {name: feature.model_dump() for name, feature in FEATURES.items()},
        "labels": {"names": list(LABELS)},
    }


def _write_hospital(
    root: Path, place: Hospital, *, patients: int, image_size: int, seed: tuple[int, int]
) -> list[list[str]]:
    """Write a hospital's table and images; return its rows of the oracle."""
    # A stream for each use, so that another image size, say, leaves the patients the same.
    streams = [np.random.default_rng([*seed, use]) for use in range(5)]
    owner, studies = _visits(patients, streams[0])
    names = [f"{place.name}-{i:06d}" for i in owner]
    study_ids = [f"{name}-{visit}" for name, visit in zip(names, studies, strict=True)]
    findings = draw_findings(owner, streams[0])
    parts = parts_of(findings)
    bias = _INTERCEPTS + np.array(place.bias)
    logits = bias + parts.features.sum(axis=1) + parts.image + parts.text
    labels = draw_labels(logits, streams[0])
    presence, known = _losses(place, len(owner), streams[1])
    images = _write_images(root, place, findings, presence.image, image_size, streams[2])
    rows = _rows(findings, labels, presence, known, streams[3])
    for row, patient, study, image in zip(rows, names, study_ids, images, strict=True):
        row |= {"patient_id": patient, "study_id": study, "image": image}
    write_table(root / "sites" / place.name / place.table, rows, place)
    columns = [known_probabilities(parts, presence, bias, streams[4])]
    columns += [
        known_probabilities(parts, presence.only({name}), bias, streams[4]) for name in _MODALITIES
    ]
    table = np.concatenate(columns, axis=1)
    return [
        [place.name, study, *(f"{p:.6f}" for p in line)]
        for study, line in zip(study_ids, table, strict=True)
    ]


def _visits(patients: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the patient and the running number of each study, int64 [N] each."""
    counts = rng.choice([1, 2, 3], size=patients, p=_REPEAT_STUDIES)
    owner = np.repeat(np.arange(patients), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return owner, np.arange(len(owner)) - first + 1


def _losses(
    place: Hospital, count: int, rng: np.random.Generator
) -> tuple[Presence, NDArray[np.bool_]]:
    """Draw what each study keeps, and which labels are known, bool [N, L]."""
    features = rng.random((count, len(FEATURES))) >= place.missing_features
    image = rng.random(count) >= place.missing_images
    known = rng.random((count, len(LABELS))) >= place.unknown_labels
    features &= np.array([name not in place.absent for name in FEATURES])
    known &= np.array([name not in place.absent for name in LABELS])
    text = np.full(count, "notes" not in place.absent)
    return Presence(features=features, image=image, text=text), known


def _write_images(
    root: Path,
    place: Hospital,
    findings: Findings,
    present: NDArray[np.bool_],
    size: int,
    rng: np.random.Generator,
) -> list[str]:
    """Write an image for each study that has one; return file names, blank where missing."""
    folder = root / "sites" / place.name / "images"
    folder.mkdir(parents=True)
    names = [f"{i:06d}{place.scanner.suffix}" if has else "" for i, has in enumerate(present)]
    pixels = draw_images(findings.image, place.scanner, size, rng)
    for name, image in zip(names, pixels, strict=True):
        if name.endswith(".jpg"):
            Image.fromarray(image).save(folder / name, quality=_JPEG_QUALITY)
        elif name:
            Image.fromarray(image).save(folder / name)
    return names


def _rows(
    findings: Findings,
    labels: NDArray[np.bool_],
    presence: Presence,
    known: NDArray[np.bool_],
    rng: np.random.Generator,
) -> list[Row]:
    """Return a row of text for each study, in the task's units and codes."""
    rows = []
    for i, values in enumerate(findings.features):
        row = {}
        for j, (name, feature) in enumerate(FEATURES.items()):
            if not presence.features[i, j]:
                row[name] = ""
            elif isinstance(feature, CategoricalFeature):
                row[name] = feature.values[int(values[j])]
            else:
                row[name] = number_text(values[j])
        row["notes"] = write_note(findings.concepts[i], rng) if presence.text[i] else ""
        for name, label, is_known in zip(LABELS, labels[i], known[i], strict=True):
            row[name] = str(int(label)) if is_known else ""
        rows.append(row)
    return rows


def _write_oracle(root: Path, rows: Sequence[Sequence[str]], seed: int) -> None:
    """Write ``oracle.csv`` and ``oracle.json``."""
    header = ["site", "study_id", *LABELS]
    header += [f"{label}.{modality}" for modality in _MODALITIES for label in LABELS]
    with (root / "oracle.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    truth = {
        "schema": 1,
        "seed": seed,
        "cut_points": [
            asdict(cut) | {"unit": getattr(FEATURES[cut.feature], "unit", "")} for cut in CUT_POINTS
        ],
        "noise_features": list(NOISE_FEATURES),
        "occurs_only_with": {"septic_shock": "pneumonia"},
    }
    write_text(root / "oracle.json", json.dumps(truth, indent=2) + "\n")
