"""Who trains, who calibrates, who tests: always whole patients, never moved by another one."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfusion.data.findings import plural, rows_text
from medfusion.data.studies import Studies
from medfusion.data.task import SplitRule
from medfusion.errors import DataError

TRAIN, CALIBRATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Fold:
    """One of ``count`` folds; over all of them each patient is tested exactly once."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not (self.count >= 2 and 0 <= self.index < self.count):
            raise ValueError(f"expected 0 <= index < count and count >= 2, found {self}")


def split_of(
    studies: Studies, *, site_name: str, rule: SplitRule, fold: Fold | None = None
) -> NDArray[np.int8]:
    """Assign every study to TRAIN, CALIBRATION or TEST: int8 [N].

    The column that the data bring decides; without one, a hash of (site, seed, patient id) is
    compared with the fractions of ``rule``. A ``fold`` overrides both: an independent part of
    the hash deals patients into ``fold.count`` test sets, and ``rule.calibration`` of the other
    patients calibrate.

    Raises
    ------
    DataError
        If the column puts a patient into two parts.
    """
    if fold is None and studies.split_column is not None:
        torn = patients_in_two_parts(studies)
        if torn.any():
            raise DataError(f"site {site_name!r}: {describe_torn_patients(studies, torn)}")
        return studies.split_column.copy()
    patients, index = np.unique(studies.patient_ids, return_inverse=True)
    parts = [_part_of(str(patient), site_name, rule, fold) for patient in patients]
    return np.array(parts, dtype=np.int8)[index]


def patients_in_two_parts(studies: Studies) -> NDArray[np.bool_]:
    """Mark the studies of patients whom the split column puts into several parts: bool [N]."""
    if studies.split_column is None:
        return np.zeros(len(studies), dtype=bool)
    patients, index = np.unique(studies.patient_ids, return_inverse=True)
    seen = np.zeros((len(patients), 3), dtype=bool)
    seen[index, studies.split_column] = True
    torn: NDArray[np.bool_] = seen.sum(axis=1) > 1
    return torn[index]


def describe_torn_patients(studies: Studies, torn: NDArray[np.bool_]) -> str:
    """Say how many patients are in two parts, and on which rows; ``torn`` is bool [N]."""
    count = len(np.unique(studies.patient_ids[torn]))
    return (
        f"expected every patient in one part of the split, found {plural(count, 'patient')} in "
        f"several ({rows_text(studies.rows[torn])}); correct the split column"
    )


def _part_of(patient: str, site_name: str, rule: SplitRule, fold: Fold | None) -> int:
    key = json.dumps([site_name, rule.seed, patient]).encode()
    digest = hashlib.sha256(key).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if fold is None:
        if draw < rule.test:
            return TEST
        return CALIBRATION if draw < rule.test + rule.calibration else TRAIN
    if int.from_bytes(digest[8:16], "big") % fold.count == fold.index:
        return TEST
    return CALIBRATION if draw < rule.calibration else TRAIN
