"""Columns that look as if they say who a patient is."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from medfusion.data.columns import number_of
from medfusion.data.findings import Cells, Finding
from medfusion.data.site import Site
from medfusion.data.studies import local_name
from medfusion.data.table import Table

_FEW = 20  # below this many filled cells, being all different means nothing
_NEARLY_ALL = 0.95
_LONG_NUMBER = 6  # digits from which a whole number may be a record number

# Words of a column name, alone or in sequence, in the languages of our hospitals.
_NAMES = {
    "a name": (
        r"(patient|first|last|full|family|given|middle|maiden|sur|fore|nach|vor) ?name|name"
        r"|nombre|apellidos?|cognome|nome|prenom|nom"
    ),
    "a date of birth": r"dob|birth ?(date|day)|date of birth|born|geburts(datum|tag)|nacimiento"
    r"|fecha nacimiento|data (di )?nascita|date (de )?naissance",
    "a social security number": r"ssn|social security( (no|nr|number))?|nhs( (no|number))?"
    r"|codice fiscale|dni|passport( (no|nr|number))?|national id",
    "a medical record number": r"mrn|medical record( (no|nr|number))?|record number|case number"
    r"|chart number|accession( (no|nr|number))?|fallnummer",
    "an insurance number": r"insurance( (no|nr|id|number))?|policy (no|nr|number)|iban"
    r"|versicherung(snummer| (nr|nummer))?|health plan( (no|id|number))?",
    "a phone number": r"(tele|mobile |home |cell ?)?phone( (no|nr|number))?|mobile|fax|telefono?",
    "an email address": r"e ?mail( address)?",
    "an address": r"(home |street |postal )?address|adresse|street|strasse|straße|zip( ?code)?"
    r"|post(al)? ?code|postleitzahl|plz|direccion|indirizzo",
}
_CONTENTS = {
    "email addresses": re.compile(r"[\w.+-]+@[\w-]+\.[a-zA-Z]{2,}"),
    "social security numbers": re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"),
    "phone numbers": re.compile(
        r"(?<![\w.+-])(\+\d{1,3}[ -]?(\(\d+\)[ -]?)?\d{2,4}([ -]?\d{2,4}){2,3}"
        r"|\(?\d{3}\)?[ -]\d{3}-\d{4})(?![\d-])"
    ),
}
_DATE = re.compile(r"(19|20)\d\d-\d\d-\d\d([ T].*)?|\d{1,2}[./]\d{1,2}[./](19|20)?\d\d")


def identifier_findings(site: Site, table: Table) -> Iterator[Finding]:
    """Warn of columns whose name or content looks like an identifier; no content is told."""
    task = site.task
    ids = {local_name(site, name) for name in (task.task.study, task.task.patient)}
    free = {local_name(site, part.column) for part in (task.image, task.text) if part}
    for name, text in table.columns.items():
        cells = Cells(table.where(name), table.rows, text)
        meaning = name_meaning(name) if table.has_header else None
        use = "use a pseudonym instead" if name in ids else "leave the column out of the table"
        if meaning:
            message = f"the name suggests {meaning}; {use}"
            yield Finding("warning", "identifier-name", cells.where, message)
        yield from _content_findings(cells)
        if not meaning and name not in ids | free and _nearly_unique(text, table.decimal):
            message = (
                "nearly every patient has a value of their own, which may identify them; "
                "leave the column out of the table unless it is needed"
            )
            yield Finding("warning", "identifier-unique", cells.where, message)


def name_meaning(column: str) -> str | None:
    """Return what the name of a column says it holds, if that identifies people."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", column)
    words = " ".join(spaced.split()).casefold()
    for meaning, pattern in _NAMES.items():
        if re.fullmatch(rf"((patient|pat|pt)s? )?({pattern})", words):
            return meaning
    return None


def _content_findings(cells: Cells) -> Iterator[Finding]:
    for what, pattern in _CONTENTS.items():
        found = np.array([bool(pattern.search(text)) for text in cells.text], dtype=bool)
        message = f"the content looks like {what}; remove them"
        yield from cells.finding(found, "identifier-content", message, severity="warning")
    filled = [text for text in cells.text if text]
    dates = sum(bool(_DATE.fullmatch(text)) for text in filled)
    if filled and dates > len(filled) / 2:
        message = "holds calendar dates; ages or days since admission identify less"
        yield Finding("warning", "identifier-date", cells.where, message)


def _nearly_unique(text: Sequence[str], decimal: str) -> bool:
    """Whether almost all filled cells differ and are texts or long whole numbers."""
    filled = [cell for cell in text if cell]
    if len(filled) < _FEW or len(set(filled)) < _NEARLY_ALL * len(filled):
        return False
    measures = sum(
        number_of(cell, decimal) is not None and not (cell.isdigit() and len(cell) >= _LONG_NUMBER)
        for cell in filled
    )
    return measures < len(filled) / 2
