"""Importers by name; a new one is one module and one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from medfusion.data.cohorts import (
    adni,
    chexpert,
    covid_chestxray,
    covid_lungs,
    fed_heart,
    mimic_cxr,
    nih_boxes,
    nih_chestxray14,
    oasis1,
    rsna_pneumonia,
    uci_cervical,
    vindr_cxr,
)
from medfusion.data.cohorts.partition import Partition, deal_to_sites, patient_groups
from medfusion.data.cohorts.writing import Cohort, Imported, write_cohort
from medfusion.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Importer:
    """How a public data set becomes site folders.

    Attributes
    ----------
    read
        Reads the folder of the data set; raises `DataError`.
    natural_sites
        What the sites of the data are, in the plural, where ``read`` tells the site of each
        study. Blank where the data have none, and patients are dealt to artificial ones.
    """

    read: Callable[[Path], Cohort]
    natural_sites: str = ""

    def run(self, src: Path, out: Path, partition: Partition | None = None) -> Imported:
        """Turn the folder ``src`` into a cohort at ``out``.

        Raises
        ------
        UsageError
            If ``src`` is not there, ``out`` is not a new or empty one, or a partition is
            asked for where the data bring their own sites.
        DataError
            If the data set is not what the importer expects.
        """
        if self.natural_sites and partition is not None:
            raise UsageError(
                f"this data set brings its own sites ({self.natural_sites}), so that patients are "
                "not dealt to artificial ones; leave out --sites, --alpha and --seed"
            )
        if not src.exists():
            raise UsageError(f"{src}: expected the folder of the data set, found none")
        cohort = self.read(src)
        if not self.natural_sites:
            groups = cohort.groups
            if groups is None:
                groups = patient_groups(cohort.studies, cohort.task["labels"]["names"])
            dealt = deal_to_sites(cohort.studies, groups, partition or Partition())
            cohort = replace(cohort, studies=dealt)
        return write_cohort(cohort, out)


IMPORTERS: Mapping[str, Importer] = MappingProxyType(
    {
        "covid-chestxray": Importer(
            read=covid_chestxray.read, natural_sites="regions of the world"
        ),
        "covid-lungs": Importer(read=covid_lungs.read, natural_sites="regions of the world"),
        "nih-chestxray14": Importer(read=nih_chestxray14.read),
        "nih-boxes": Importer(read=nih_boxes.read),
        "rsna-pneumonia": Importer(read=rsna_pneumonia.read),
        "vindr-cxr": Importer(read=vindr_cxr.read),
        "mimic-cxr": Importer(read=mimic_cxr.read),
        "chexpert": Importer(read=chexpert.read),
        "uci-cervical": Importer(read=uci_cervical.read),
        **{name: Importer(read=read) for name, read in oasis1.READERS.items()},
        "adni": Importer(read=adni.read),
        "fed-heart": Importer(read=fed_heart.read, natural_sites="hospitals"),
    }
)


def importer(name: str) -> Importer:
    """Return the importer of a public data set.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    if name not in IMPORTERS:
        raise UsageError(
            f"no importer {name!r}{did_you_mean(name, IMPORTERS)}; "
            f"expected one of: {', '.join(IMPORTERS)}"
        )
    return IMPORTERS[name]
