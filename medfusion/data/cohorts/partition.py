"""Artificial sites for data sets that have none: patients dealt out with skewed labels.

Each patient belongs to one group: the rarest label that any of the patient's studies is known
to have, or no label (an importer may bring other groups, such as bands of age). For each group,
proportions over the sites are drawn from a symmetric Dirichlet distribution, and the group's
patients, shuffled, are cut into parts of these sizes (Yurochkin et al. 2019, arXiv 1905.12022; Hsu
et al. 2019, arXiv 1909.06335, use the same distribution for sites of equal size). A small
``alpha`` gives sites that differ much in labels and size; a large one sites that are alike.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medfusion.data.cohorts.writing import Study
from medfusion.errors import DataError, UsageError

# Of 20, the split by hash leaves a site's usual `min_patients`, 10, for training in 98.3 %
# of such sites; more would take the skew from small sets.
FEWEST_PATIENTS = 20
_LARGEST_ALPHA = 1e6


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How many sites, the Dirichlet parameter ``alpha``, and a public seed.

    Raises
    ------
    UsageError
        If a number is out of range.
    """

    sites: int = 4
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sites <= 1000:
            raise UsageError(f"sites: expected 1 to 1000, found {self.sites}")
        if not (math.isfinite(self.alpha) and 1e-3 <= self.alpha <= _LARGEST_ALPHA):
            raise UsageError(f"alpha: expected 0.001 to {_LARGEST_ALPHA:g}, found {self.alpha}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")


def deal_to_sites(
    studies: Sequence[Study], groups: Mapping[str, int], partition: Partition
) -> list[Study]:
    """Give every study the site of its patient: ``site_1``, ``site_2``, ...

    The same patients, groups and partition give the same sites, whatever the order of studies.
    ``groups`` are patient -> group, such as those of `patient_groups`.
    Each site has at least `FEWEST_PATIENTS` patients.

    Raises
    ------
    DataError
        If there are too few patients for so many sites.
    """
    site_of = deal_patients(groups, partition)
    width = len(str(partition.sites))
    return [
        replace(study, site=f"site_{1 + site_of[study.patient_id]:0{width}}") for study in studies
    ]


def patient_groups(studies: Sequence[Study], labels: Sequence[str]) -> dict[str, int]:
    """Return for each patient the index of the rarest label present, or ``len(labels)``.

    Rarity counts patients; of equally rare labels the first counts. Blank labels count as
    absent.
    """
    present: dict[str, set[int]] = {}
    for study in studies:
        known = {i for i, name in enumerate(labels) if study.cells[name] == "1"}
        present.setdefault(study.patient_id, set()).update(known)
    counts = Counter(label for found in present.values() for label in found)
    return {
        patient: min(found, key=lambda label: (counts[label], label), default=len(labels))
        for patient, found in present.items()
    }


def deal_patients(groups: Mapping[str, int], partition: Partition) -> dict[str, int]:
    """Return the site, 0 to K - 1, of each patient, given each one's group."""
    if len(groups) < partition.sites * FEWEST_PATIENTS:
        raise DataError(
            f"expected at least {FEWEST_PATIENTS} patients for each site, found {len(groups):,} "
            f"patients for {partition.sites} sites; choose fewer sites"
        )
    rng = np.random.default_rng(partition.seed)
    patients = sorted(groups)
    site_of: dict[str, int] = {}
    for group in sorted(set(groups.values())):
        members = [patient for patient in patients if groups[patient] == group]
        shares = rng.dirichlet(np.full(partition.sites, partition.alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(members))
        sites = np.searchsorted(ends, np.arange(len(members)), side="right")
        shuffled = [members[i] for i in rng.permutation(len(members))]
        site_of |= dict(zip(shuffled, sites.tolist(), strict=True))
    _fill_small_sites(patients, site_of, partition.sites, rng)
    return site_of


def _fill_small_sites(
    patients: Sequence[str], site_of: dict[str, int], sites: int, rng: np.random.Generator
) -> None:
    """Move patients drawn from the largest site to sites that have too few."""
    members: list[list[str]] = [[] for _ in range(sites)]
    for patient in patients:
        members[site_of[patient]].append(patient)
    while min(map(len, members)) < FEWEST_PATIENTS:
        small = min(range(sites), key=lambda site: len(members[site]))
        large = max(range(sites), key=lambda site: len(members[site]))
        moved = members[large].pop(int(rng.integers(len(members[large]))))
        members[small].append(moved)
        site_of[moved] = small
