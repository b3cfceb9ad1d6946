"""What a Node or an evaluation holds of a hospital: its studies, their split, its public facts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfusion.data.boxes import Boxes
from medfusion.data.findings import Finding
from medfusion.data.site import Site, SiteConfig, open_site
from medfusion.data.split import TEST, Fold, split_of
from medfusion.data.studies import Studies, read_studies, read_unlabelled
from medfusion.data.task import Task
from medfusion.errors import DataError


@dataclass(frozen=True, repr=False)
class SiteData:
    """Studies of one site (or of several pooled) with the part of the split each belongs to.

    ``split`` is int8 [N]: 0 train, 1 calibration, 2 test.
    """

    name: str
    task: Task
    config: SiteConfig
    state: Path
    patients_public: int
    studies: Studies
    split: NDArray[np.int8]

    def part(self, which: int) -> Studies:
        """Return the studies of one part of the split."""
        return self.studies.take(np.flatnonzero(self.split == which))


def load_site_data(folder: Path, *, fold: Fold | None = None) -> SiteData:
    """Read and split a site folder; raises `ConfigError` and `DataError`."""
    site = open_site(folder)
    studies = read_studies(site)
    split = split_of(studies, site_name=site.name, rule=site.task.split, fold=fold)
    return _site_data(site, studies, split)


def load_unlabelled(folder: Path) -> tuple[SiteData, list[Finding]]:
    """Read a site folder to predict of all its studies, as `read_unlabelled` does.

    Nobody is in the training part.

    Raises
    ------
    ConfigError, DataError
        As `load_site_data`.
    """
    site = open_site(folder)
    studies, findings = read_unlabelled(site)
    return _site_data(site, studies, np.full(len(studies), TEST, dtype=np.int8)), findings


def _site_data(site: Site, studies: Studies, split: NDArray[np.int8]) -> SiteData:
    return SiteData(
        name=site.name,
        task=site.task,
        config=site.config,
        state=site.state,
        patients_public=site.config.site.patients_public,
        studies=studies,
        split=split,
    )


def require_positives(site: SiteData) -> None:
    """Refuse a site whose every known label is 0: it has nothing to teach.

    The target of a regression needs to be known somewhere, and so do boxes: images without any
    teach where nothing is to be found.

    Raises
    ------
    DataError
        Naming the site and its label columns.
    """
    labels, columns = site.studies.labels, ", ".join(site.task.label_columns)
    if site.task.task.kind == "regression":
        if not np.isfinite(labels).any():
            raise DataError(
                f"site {site.name!r}: expected a number in column {columns} of some study, found "
                f"none in {len(labels)} studies: check the column and its `from` in site.toml"
            )
    elif site.task.detects:
        if not np.isfinite(labels).any():
            raise DataError(
                f"site {site.name!r}: expected boxes of {columns}, or images that were looked at "
                f"for them, found neither in {len(labels)} studies: check "
                f"{site.config.files.boxes.name}"
            )
    elif not (labels == 1).any():
        raise DataError(
            f"site {site.name!r}: expected at least one positive (1) in the label columns "
            f"{columns}, found none in {len(labels)} studies: "
            "check the label columns and their `map` in site.toml"
        )


def pool(sites: Sequence[SiteData], *, name: str, state: Path) -> SiteData:
    """Put several sites' studies into one, keeping each patient in its part of the split.

    Patients of different sites stay different patients, whatever their identifiers. The
    strictest policy holds for all.

    Raises
    ------
    DataError
        If the sites do not share one task.
    """
    if len({site.task.sha256 for site in sites}) != 1:
        raise DataError("expected sites of one task, found differing tasks: they cannot be pooled")
    studies = Studies(
        study_ids=np.concatenate([_prefixed(s.name, s.studies.study_ids) for s in sites]),
        patient_ids=np.concatenate([_prefixed(s.name, s.studies.patient_ids) for s in sites]),
        rows=np.concatenate([s.studies.rows for s in sites]),
        features=np.concatenate([s.studies.features for s in sites]),
        labels=np.concatenate([s.studies.labels for s in sites]),
        images=tuple(image for s in sites for image in s.studies.images),
        notes=tuple(note for s in sites for note in s.studies.notes),
        split_column=None,
        boxes=_pooled_boxes(sites),
    )
    policies = [site.config.policy for site in sites]
    strictest = policies[0].model_copy(
        update={
            "max_epsilon": min(policy.max_epsilon for policy in policies),
            "delta": min(policy.delta for policy in policies),
            "min_patients": max(policy.min_patients for policy in policies),
        }
    )
    return replace(
        sites[0],
        config=sites[0].config.model_copy(update={"policy": strictest}),
        name=name,
        state=state,
        patients_public=sum(site.patients_public for site in sites),
        studies=studies,
        split=np.concatenate([site.split for site in sites]),
    )


def _pooled_boxes(sites: Sequence[SiteData]) -> Boxes | None:
    boxes = [site.studies.boxes for site in sites if site.studies.boxes is not None]
    if not boxes:
        return None
    return Boxes(
        np.concatenate([each.corners for each in boxes]),
        np.concatenate([each.classes for each in boxes]),
    )


def _prefixed(name: str, identifiers: NDArray[np.str_]) -> NDArray[np.str_]:
    return np.array([f"{name}/{identifier}" for identifier in identifiers], dtype=np.str_)
