"""Importer of "Cervical cancer (Risk Factors)" from the UCI repository (CC BY 4.0).

Source: Fernandes, Cardoso, Fernandes, *Transfer learning with partial observability applied to
cervical cancer screening*, IbPRIA 2017; archive.ics.uci.edu/dataset/383. Nothing of it ships
with MedFusion; the user points to a copy.

``risk_factors_cervical_cancer.csv`` has a row for each patient of one hospital, without
identifiers: habits, medical history, and four examinations for cancer, which are the labels.
None of the four is an input, since each of them gives the others away. Columns keep their
names. Those that happen to hold one value only are kept as well: what the task reads is decided
beforehand, not by looking at patients.
"""

from pathlib import Path

from medfusion.data.cohorts.row_patients import repeated_rows, row_pseudonyms
from medfusion.data.cohorts.source_table import (
    binary_cells,
    feature_cells,
    read_source,
    task_sections,
)
from medfusion.data.cohorts.writing import Cohort, Study
from medfusion.data.task import BinaryFeature, Feature, NumericFeature

NAME = "uci-cervical"
TABLE = "risk_factors_cervical_cancer.csv"
LABELS = ("Hinselmann", "Schiller", "Citology", "Biopsy")


def _number(low: float, high: float, unit: str = "") -> NumericFeature:
    return NumericFeature(kind="numeric", low=low, high=high, unit=unit)


_YES_NO = BinaryFeature(kind="binary")

# Ranges from clinical knowledge, not learned from the data. Most are 32 wide: the task's 32 bins
# are then whole numbers.
FEATURES: dict[str, Feature] = {
    "Age": _number(10, 106, "year"),
    "Number of sexual partners": _number(0, 32),
    "First sexual intercourse": _number(8, 40, "year"),
    "Num of pregnancies": _number(0, 16),
    "Smokes": _YES_NO,
    "Smokes (years)": _number(0, 64, "year"),
    "Smokes (packs/year)": _number(0, 64, "pack/year"),
    "Hormonal Contraceptives": _YES_NO,
    "Hormonal Contraceptives (years)": _number(0, 32, "year"),
    "IUD": _YES_NO,
    "IUD (years)": _number(0, 32, "year"),
    "STDs": _YES_NO,
    "STDs (number)": _number(0, 8),
    "STDs:condylomatosis": _YES_NO,
    "STDs:cervical condylomatosis": _YES_NO,
    "STDs:vaginal condylomatosis": _YES_NO,
    "STDs:vulvo-perineal condylomatosis": _YES_NO,
    "STDs:syphilis": _YES_NO,
    "STDs:pelvic inflammatory disease": _YES_NO,
    "STDs:genital herpes": _YES_NO,
    "STDs:molluscum contagiosum": _YES_NO,
    "STDs:AIDS": _YES_NO,
    "STDs:HIV": _YES_NO,
    "STDs:Hepatitis B": _YES_NO,
    "STDs:HPV": _YES_NO,
    "STDs: Number of diagnosis": _number(0, 8),
    "STDs: Time since first diagnosis": _number(0, 32, "year"),
    "STDs: Time since last diagnosis": _number(0, 32, "year"),
    "Dx:Cancer": _YES_NO,
    "Dx:CIN": _YES_NO,
    "Dx:HPV": _YES_NO,
    "Dx": _YES_NO,
}


def read(src: Path) -> Cohort:
    """Read the table, or the folder that holds it; sites are dealt afterwards.

    Each row is a patient with one study. The pseudonyms depend on the cells of the row alone;
    a notice counts the rows that repeat another one.

    Raises
    ------
    DataError
        If the table lacks a column, or holds text in place of a number, or anything but 1 and 0
        in place of yes and no.
    """
    path = src / TABLE if src.is_dir() else src
    table = read_source(path, (*FEATURES, *LABELS), missing="?")
    notices: list[str] = []
    columns = {
        name: binary_cells(table, name)
        if isinstance(feature, BinaryFeature)
        else feature_cells(table, name, feature, notices)
        for name, feature in FEATURES.items()
    }
    columns |= {name: binary_cells(table, name) for name in LABELS}
    rows = list(zip(*(table.columns[name] for name in columns), strict=True))
    studies = [
        Study(
            study_id="s" + key,
            patient_id="p" + key,
            cells={name: cells[i] for name, cells in columns.items()},
        )
        for i, key in enumerate(row_pseudonyms(NAME, rows))
    ]
    task = task_sections(NAME, features=FEATURES, labels=LABELS)
    return Cohort(
        task=task,
        studies=studies,
        notices=(*notices, *repeated_rows(rows)),
        rounds=40,
        # The labels are rare, at some sites very: plain cross-entropy learned less.
        training={"schedule": "cosine", "loss": {"name": "focal"}},
        # Without images or notes the linear path added nothing here.
        sections={"model": {"linear_path": False}},
    )
