"""What every cohort is written as: task, config and site folders, all of it or nothing."""

import csv
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.box_files import LABEL, SIDES
from medfusion.data.site import open_site
from medfusion.data.split import TRAIN, split_of
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import UsageError
from medfusion.toml_text import to_toml

_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]+$")


@dataclass(frozen=True, kw_only=True)
class SiteSummary:
    """Counts of one written site; ``patients_public`` are its training patients."""

    name: str
    patients: int
    patients_public: int
    studies: int
    images: int
    notes: int


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an importer made, and what its user should know: counts, never a value."""

    sites: tuple[SiteSummary, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Study:
    """One row of a cohort.

    Attributes
    ----------
    study_id, patient_id
        Pseudonyms.
    site
        Name of the site folder; blank until patients are dealt to sites.
    cells
        Column of the task -> text: features, labels, and where the task has them ``notes`` and
        ``split``. Blank means missing.
    image
        File to copy; None where the study has none.
    volume
        Voxels [X, Y, Z] to write as a file, for sets that hold many in one.
    boxes
        Of a task of detection: label, x, y, width and height in pixels of the image.
    """

    study_id: str
    patient_id: str
    site: str = ""
    cells: Mapping[str, str]
    image: Path | None = None
    volume: NDArray[np.uint8] | None = None
    boxes: Sequence[tuple[str, float, float, float, float]] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Cohort:
    """What an importer read: the content of ``task.toml``, studies, notices and run settings.

    ``training`` holds further keys of the config's section ``[training]``; with a recipe in it,
    ``batch_size`` and ``learning_rate`` may be None, which leaves them to the recipe. What
    ``sections`` holds, by section, takes the place of the usual keys. ``groups`` says by what
    artificial sites differ: patient -> group; None: by the patient's rarest label.
    """

    task: Mapping[str, Any]
    studies: Sequence[Study]
    notices: Sequence[str] = ()
    model: str = "medfusion_net"
    rounds: int = 20
    batch_size: int | None = 16
    learning_rate: float | None = 3e-3
    training: Mapping[str, Any] = field(default_factory=lambda: {"schedule": "cosine"})
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, int] | None = None


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that becomes ``out`` when the block succeeds.

    After a failure nothing is left of it.

    Raises
    ------
    UsageError
        If ``out`` exists and is not an empty folder, or cannot be written.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected a new or empty folder, found something in its place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        try:
            partial.rename(out)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_cohort(cohort: Cohort, out: Path) -> Imported:
    """Write an imported cohort at ``out``: task, config, and a folder for each site.

    Images are copied under the pseudonym of their study. The order of studies in ``cohort``
    does not change what is written.

    Raises
    ------
    UsageError
        If ``out`` is not a new or empty folder.
    DataError
        If what was written breaks the task.
    """
    by_site: dict[str, list[Study]] = defaultdict(list)
    for study in cohort.studies:
        by_site[study.site].append(study)
    with new_folder(out) as folder:
        task = write_task(folder, cohort.task)
        sites = [_write_studies(folder, name, by_site[name], task) for name in sorted(by_site)]
        write_config(
            folder,
            task=task,
            sites=len(sites),
            model=cohort.model,
            rounds=cohort.rounds,
            batch_size=cohort.batch_size,
            learning_rate=cohort.learning_rate,
            training=cohort.training,
            sections=cohort.sections,
        )
    return Imported(sites=tuple(sites), notices=tuple(cohort.notices))


def _write_studies(root: Path, site: str, studies: Sequence[Study], task: Task) -> SiteSummary:
    """Write the table and the images of one site in the order of study ids."""
    folder = root / "sites" / site
    folder.mkdir(parents=True)
    files = {"studies": "studies.csv"}
    if task.image:
        files["images"] = "images"
        (folder / "images").mkdir()
    if task.detects:
        files["boxes"] = "boxes.csv"
        _write_boxes(folder / files["boxes"], studies, task)
    with (folder / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _header(task, studies), lineterminator="\n")
        writer.writeheader()
        for study in sorted(studies, key=lambda study: study.study_id):
            row = {task.task.study: study.study_id, task.task.patient: study.patient_id}
            if task.image and study.image:
                name = study.image.name.lower()
                suffix = ".nii.gz" if name.endswith(".nii.gz") else study.image.suffix.lower()
                row[task.image.column] = study.study_id + suffix
                shutil.copyfile(study.image, folder / "images" / row[task.image.column])
            elif task.image and study.volume is not None:
                row[task.image.column] = study.study_id + ".npz"
                path = folder / "images" / row[task.image.column]
                np.savez_compressed(path, volume=study.volume)
            writer.writerow({**study.cells, **row})
    return write_site(root, site, files=files)


def _write_boxes(path: Path, studies: Sequence[Study], task: Task) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((task.task.study, LABEL, *SIDES))
        for study in sorted(studies, key=lambda study: study.study_id):
            writer.writerows((study.study_id, *box) for box in study.boxes)


def _header(task: Task, studies: Sequence[Study]) -> tuple[str, ...]:
    """Return the columns; of detection, labels have one only where the source says more."""
    image = (task.image.column,) if task.image else ()
    notes = (task.text.column,) if task.text else ()
    split = (task.split.column,) if task.split.column else ()
    keys = (task.task.study, task.task.patient)
    labels = task.label_columns
    if task.detects:
        labels = tuple(name for name in labels if any(name in s.cells for s in studies))
    return (*keys, *split, *image, *task.features, *notes, *labels)


def write_task(folder: Path, sections: Mapping[str, Any]) -> Task:
    """Write ``task.toml`` and return the task as everybody will read it."""
    write_text(folder / "task.toml", to_toml({"schema": 1, **sections}))
    return Task.load(folder / "task.toml")


def write_config(
    folder: Path,
    *,
    task: Task,
    sites: int,
    model: str = "medfusion_net",
    rounds: int,
    batch_size: int | None,
    learning_rate: float | None,
    training: Mapping[str, Any] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a ``config.toml`` that runs as it is, under privacy.

    ``training`` and ``sections`` as in `Cohort`.
    """
    net = {"size": "tiny", "modalities": list(task.modalities)} if model == "medfusion_net" else {}
    sizes = {"batch_size": batch_size, "learning_rate": learning_rate}
    config: dict[str, Any] = {
        "schema": 1,
        "run": {"name": task.task.name, "task": "task.toml", "rounds": rounds, "seed": 0},
        "simulation": {"sites": "sites/*"},
        "model": {"name": model, **net},
        "selection": {"method": "federated", "top_n": 8},
        "training": {
            "local_epochs": 1,
            **{key: value for key, value in sizes.items() if value is not None},
            **(training or {}),
        },
        "privacy": {
            "enabled": True,
            "target_epsilon": 8.0,
            "shares": {"selection": 0.1, "training": 0.7, "metrics": 0.2},
            "max_grad_norm": 1.0,
        },
        "strategy": {"name": "fedavg"},
        "server": {"min_sites": min(2, sites), "round_timeout": 3600},
    }
    for section, settings in (sections or {}).items():
        config[section] = {**config.get(section, {}), **settings}
    write_text(folder / "config.toml", to_toml(config))


def write_site(
    root: Path,
    name: str,
    *,
    files: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
) -> SiteSummary:
    """Write ``root/sites/name/site.toml`` around a table and images that are already there.

    The site is read back by the code that hospitals use, which checks it and tells how many
    patients the split leaves for training; that number is what the site declares.

    Raises
    ------
    DataError
        If what was written breaks the task.
    """
    folder = root / "sites" / name
    info = {
        "name": name,
        "task": "../../task.toml",
        "state": f"../../state/{name}",
        "patients_public": 1,  # until the split has been counted, below
    }
    sections = {
        "schema": 1,
        "site": info,
        "files": dict(files or {}),
        "columns": dict(columns or {}),
        "policy": {"max_epsilon": 8.0, "delta": 1e-5, "min_patients": 10, "approve": "always"},
        "compute": {"device": "auto", "physical_batch": 64, "precision": "auto"},
    }
    write_text(folder / "site.toml", to_toml(sections))
    site = open_site(folder)
    studies = read_studies(site)
    split = split_of(studies, site_name=name, rule=site.task.split)
    training = len(np.unique(studies.patient_ids[split == TRAIN]))
    info["patients_public"] = max(1, training)
    write_text(folder / "site.toml", to_toml(sections))
    return SiteSummary(
        name=name,
        patients=len(np.unique(studies.patient_ids)),
        patients_public=max(1, training),
        studies=len(studies),
        images=sum(image is not None for image in studies.images),
        notes=sum(note is not None for note in studies.notes),
    )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")
