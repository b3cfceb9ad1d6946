"""Patients of tables without identifiers: each row is one."""

from collections import Counter
from collections.abc import Iterable, Sequence

from medfusion.data.cohorts.source_table import pseudonym
from medfusion.data.findings import plural


def row_pseudonyms(data_set: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a pseudonym for each row that depends on its cells alone, not on its place.

    Of rows with the same cells, the second, third, ... are told apart by counting, so a table
    in another order gives the same pseudonyms.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    names = []
    for row in rows:
        key = tuple(row)
        names.append(pseudonym(data_set, *key, str(seen[key])))
        seen[key] += 1
    return names


def repeated_rows(rows: Iterable[Sequence[str]]) -> list[str]:
    """Say how many rows repeat an earlier one: they may be one patient entered twice."""
    counts = Counter(map(tuple, rows))
    repeats = counts.total() - len(counts)
    if not repeats:
        return []
    return [f"{plural(repeats, 'row')} the same as an earlier one, kept as patients of their own"]
