"""Importers by name; a new one is one module and one line here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from medfusion.data.cohorts import covid_chestxray
from medfusion.data.cohorts.writing import Imported
from medfusion.errors import UsageError, did_you_mean

Importer = Callable[[Path, Path], Imported]

IMPORTERS: Mapping[str, Importer] = MappingProxyType(
    {"covid-chestxray": covid_chestxray.import_cohort}
)


def importer(name: str) -> Importer:
    """Return the importer of a public data set: call it with the source and the new folder.

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
