"""Guesses for drafting a site.toml: file format, columns, values. A human checks all of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from medfusion.data.columns import number_of
from medfusion.data.findings import plain
from medfusion.data.site import SPLIT_NAMES, task_columns
from medfusion.data.table import DELIMITERS
from medfusion.data.task import BinaryFeature, CategoricalFeature, NumericFeature, Task

_SIMILAR = 0.7
_BINARY = ("0", "1")

_MISSING = frozenset(
    [
        "na",
        "n/a",
        "nan",
        "null",
        "none",
        "unknown",
        "unk",
        "?",
        "-",
        "--",
        ".",
        "missing",
        "nd",
        "unbekannt",
        "#n/a",
        "not-available",
    ]
)
# What a value may be called: the words of one line mean the same.
_SAME_VALUE = tuple(
    frozenset(line.split())
    for line in (
        "1 1.0 yes y true t positive pos present ja j wahr oui si sí sì",
        "0 0.0 no n false f negative neg absent nein falsch non",
        "f female w weiblich woman femme femenino mujer donna femmina",
        "m male man männlich maennlich homme masculino hombre uomo maschio",
        "train training",
        "calibration val valid validation dev",
        "test testing held-out",
    )
)
_SAME_COLUMN = tuple(
    frozenset(line.split())
    for line in (
        "sex gender geschlecht sexe sexo sesso",
        "age alter edad eta ageyears patientage",
    )
)
_PATIENT = frozenset(
    ["patient", "patientid", "pid", "subject", "subjectid", "patientnumber", "patnr", "mrn"]
)
_STUDY = frozenset(
    ["study", "studyid", "exam", "examid", "accession", "imageid", "scanid", "recordid", "id"]
)
_IMAGE = frozenset(["image", "imagefile", "imagepath", "imagename", "file", "filename", "path"])
_NOTES = frozenset(
    ["notes", "note", "text", "report", "reporttext", "clinicalnotes", "findings", "befund"]
)


@dataclass(frozen=True)
class Match:
    """The local column for a task's column; ``sure`` if the names are equal to a human."""

    source: str
    sure: bool


def guess_format(path: Path) -> dict[str, Any]:
    """Return encoding, delimiter and decimal mark of a text table, if unusual."""
    if path.suffix.lower() == ".parquet":
        return {}
    data = path.read_bytes()
    found = {}
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
        found["encoding"] = "cp1252"
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)  # the first of equals
    if delimiter != ",":
        found["delimiter"] = delimiter
        cells = re.split(rf"[{re.escape(delimiter)}\n\r\"]+", text)
        commas = sum(bool(re.fullmatch(r"-?\d+,\d+", cell.strip())) for cell in cells)
        points = sum(bool(re.fullmatch(r"-?\d+\.\d+", cell.strip())) for cell in cells)
        if commas > points:
            found["decimal"] = ","
    return found


def match_columns(task: Task, headers: Iterable[str]) -> dict[str, Match]:
    """Pair the task's columns with local ones: equal names first, then words, then spelling."""
    free = list(dict.fromkeys(name for name in headers if name))
    wanted = list(task_columns(task))
    matches: dict[str, Match] = {}
    for rule in (_is_equal, _is_plainly_equal, _is_synonym, _is_similar):
        for name in wanted:
            if name in matches:
                continue
            found = [header for header in free if rule(name, header, task)]
            if found:
                best = max(found, key=lambda header: _similarity(name, header))
                matches[name] = Match(best, sure=rule in (_is_equal, _is_plainly_equal))
                free.remove(best)
    return matches


def guess_map(
    name: str, task: Task, cells: Sequence[str], decimal: str
) -> tuple[dict[str, str], int]:
    """Map local values to the task's where the meaning is evident.

    Returns
    -------
    The map, and how many further distinct values are not understood.
    """
    feature = task.cells_of(name)
    numeric = isinstance(feature, NumericFeature)
    targets = _targets(name, task)
    if not targets and not numeric:
        return {}, 0
    found: dict[str, str] = {}
    unclear = 0
    for value in sorted(set(cells) - {"", *targets}):
        number = number_of(value, decimal)
        if number is not None and (numeric or (targets == _BINARY and number in (0, 1))):
            continue  # the reader takes it as it is
        meaning = _meaning(value, targets)
        if meaning is None:
            unclear += 1
        else:
            found[value] = meaning
    return found, unclear


def _targets(name: str, task: Task) -> tuple[str, ...]:
    """Return what the cells of a column may be mapped to; numbers and free text have no list."""
    feature = task.cells_of(name)
    if isinstance(feature, CategoricalFeature):
        return feature.values
    if isinstance(feature, BinaryFeature):
        return _BINARY
    return SPLIT_NAMES if name == task.split.column else ()


def _meaning(value: str, targets: tuple[str, ...]) -> str | None:
    """Return the one target that a value evidently means, blank for missing, None if unclear."""
    word = value.casefold()
    same = [target for target in targets if target.casefold() == word]
    same = same or [
        target
        for target in targets
        if any(word in words and target.casefold() in words for words in _SAME_VALUE)
    ]
    if not same and word in _MISSING:
        return ""
    if not same and word.isalpha():
        same = [
            t for t in targets if t.casefold().startswith(word) or word.startswith(t.casefold())
        ]
    return same[0] if len(same) == 1 else None


def _is_equal(name: str, header: str, task: Task) -> bool:
    return name == header


def _is_plainly_equal(name: str, header: str, task: Task) -> bool:
    return plain(name) == plain(header)


def _is_synonym(name: str, header: str, task: Task) -> bool:
    roles = {task.task.patient: _PATIENT, task.task.study: _STUDY}
    if task.image:
        roles[task.image.column] = _IMAGE
    if task.text:
        roles[task.text.column] = _NOTES
    if name in roles:
        return plain(header) in roles[name]
    return any(plain(name) in words and plain(header) in words for words in _SAME_COLUMN)


def _is_similar(name: str, header: str, task: Task) -> bool:
    return _similarity(name, header) >= _SIMILAR


def _similarity(name: str, header: str) -> float:
    return SequenceMatcher(None, plain(name), plain(header)).ratio()
