"""Importer of the COVID-19 image data collection, as prepared with regions for sites.

Source: github.com/ieee8023/covid-chestxray-dataset (metadata CC BY-NC-SA, a licence for each
image). Nothing of it ships with MedFusion; the user points to a copy.

The folder holds ``metadata.csv``, one row per radiograph, and the images that it names. Sites
are the regions in its column ``site``. Labels are outcomes of the patient. Notes are those with
the diagnosis masked, because many of the others name it.
"""

from collections import defaultdict
from pathlib import Path

from medfusion.data.cohorts.source_table import (
    RangedFeature,
    binary_cells,
    feature_cells,
    find_images,
    mark,
    pseudonym,
    read_source,
    refuse,
    refuse_blank,
    refuse_repeated,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.findings import plural
from medfusion.data.site import SiteInfo
from medfusion.data.table import Table
from medfusion.data.task import CategoricalFeature, NumericFeature
from medfusion.errors import ConfigError

NAME = "covid-chestxray"
LABELS = ("went_icu", "in_icu", "survival", "intubated", "intubation_present")

# Ranges from clinical knowledge, wide enough for the seriously ill; not learned from the data.
FEATURES: dict[str, RangedFeature] = {
    "age": NumericFeature(kind="numeric", low=0, high=120, unit="year"),
    "sex": CategoricalFeature(kind="categorical", values=("F", "M")),
    "view": CategoricalFeature(kind="categorical", values=("PA", "AP", "AP Supine")),
    "offset_days": NumericFeature(kind="numeric", low=-20, high=180, unit="day"),
    "temperature_c": NumericFeature(kind="numeric", low=32, high=43, unit="degC"),
    "po2_saturation": NumericFeature(kind="numeric", low=30, high=100, unit="%"),
    "leukocyte_count": NumericFeature(kind="numeric", low=0, high=50, unit="10^3/uL"),
    "neutrophil_count": NumericFeature(kind="numeric", low=0, high=50, unit="10^3/uL"),
    "lymphocyte_count": NumericFeature(kind="numeric", low=0, high=15, unit="10^3/uL"),
}
_UNKNOWN_VIEW = "frontal-unspecified"  # a way to say that the view is not known
_PATIENT, _SITE, _IMAGE, _NOTES = "patientid", "site", "image", "clinical_notes_masked"
_SOURCE_COLUMNS = (_PATIENT, _SITE, _IMAGE, _NOTES, *FEATURES, *LABELS)


def read(src: Path) -> Cohort:
    """Read the folder ``src``; the sites are its regions.

    Studies and patients get pseudonyms that depend only on the source's own identifiers.
    Features outside their public range, or of an unknown category, are left blank; the
    notices count them by column. An image that is not there is taken as missing.

    Raises
    ------
    DataError
        If the table lacks a column or a key, holds text in place of a number or of a label,
        repeats a study, or names an image outside ``src``.
    """
    table = read_source(src / "metadata.csv", _SOURCE_COLUMNS)
    notices: list[str] = []
    columns = {
        name: feature_cells(table, name, feature, notices, cells=_recoded(table, name))
        for name, feature in FEATURES.items()
    }
    columns |= {name: binary_cells(table, name) for name in LABELS}
    columns["notes"] = table.columns[_NOTES]
    _check_keys(table)
    images = find_images(table, _IMAGE, src)
    if absent := images.count(None):
        notices.append(f"{_IMAGE}: {plural(absent, 'file')} not there, taken as missing")
    patients, pictures = table.columns[_PATIENT], table.columns[_IMAGE]
    studies = [
        Study(
            study_id="s" + pseudonym(NAME, patients[i], pictures[i]),
            patient_id="p" + pseudonym(NAME, patients[i]),
            site=table.columns[_SITE][i],
            cells={name: cells[i] for name, cells in columns.items()},
            image=image,
        )
        for i, image in enumerate(images)
    ]
    task = task_sections(NAME, features=FEATURES, labels=LABELS, image_size=64, max_tokens=256)
    return Cohort(
        task=task,
        studies=studies,
        notices=(*notices, *_shared_patients(table)),
        training={
            "schedule": "cosine",
            "augmentation": "light",
            # At full rate some two hundred notes were learned by heart.
            "rate_multipliers": {"text": 0.1},
        },
    )


def _recoded(table: Table, name: str) -> list[str]:
    return ["" if cell == _UNKNOWN_VIEW else cell for cell in table.columns[name]]


def _check_keys(table: Table) -> None:
    """Refuse blank keys, sites that cannot name a folder, and repeated studies."""
    refuse_blank(table, (_PATIENT, _SITE, _IMAGE))
    bad = mark(table.columns[_SITE], lambda cell: not _is_site_name(cell))
    refuse(table, _SITE, bad, "expected a name of letters, digits, '.', '_', '-'")
    refuse_repeated(
        table, (_PATIENT, _IMAGE), "expected each image of a patient once, found it again"
    )


def _is_site_name(name: str) -> bool:
    try:
        SiteInfo.parse({"name": name, "task": "task.toml", "patients_public": 1}, where="site")
    except ConfigError:
        return False
    return True


def _shared_patients(table: Table) -> list[str]:
    """Say how many patients are known to several sites: each site will count them as its own."""
    sites: dict[str, set[str]] = defaultdict(set)
    for patient, site in zip(table.columns[_PATIENT], table.columns[_SITE], strict=True):
        sites[patient].add(site)
    shared = sum(len(names) > 1 for names in sites.values())
    if not shared:
        return []
    return [f"{_PATIENT}: {plural(shared, 'patient')} in several sites, kept in each of them"]
