"""Features from the tags of a study's DICOM image: ``[columns.X] from = "dicom:KEYWORD"``.

Nothing else of a header is read into a study.
"""

from collections.abc import Sequence
from pathlib import Path

from medfusion.data.dicom import read_tags
from medfusion.data.findings import nearest
from medfusion.data.image_files import image_files, is_dicom
from medfusion.errors import DataError

_PREFIX = "dicom:"
_TEXT_OR_NUMBER = ("AS", "CS", "DS", "FD", "FL", "IS", "LO", "SH", "SL", "SS", "ST", "UL", "US")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def tag_of(source: str | None) -> str | None:
    """Return the keyword in the ``from`` of a column, None where it names no tag."""
    return source.removeprefix(_PREFIX) if source and source.startswith(_PREFIX) else None


def tag_problem(keyword: str) -> str | None:
    """Say why a keyword names no tag that a feature can come from, if it does not."""
    from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

    if tag_for_keyword(keyword) is None:
        known = [word for word in keyword_dict if word]
        return f"DICOM has no tag with the keyword {keyword!r}{nearest(keyword, known)}"
    if dictionary_VR(keyword) not in _TEXT_OR_NUMBER:
        return f"tag {keyword} holds neither a short text nor a number"
    return None


def tag_cells(images: Sequence[Path | None], keyword: str) -> list[str]:
    """Return the tag's text in each image, blank where there is none, as in a table's column.

    Ages (030Y, 018M, ...) are told in years. Slices that do not agree tell nothing. What cannot
    be read is blank; that the image cannot be used is said where its pixels are read.
    """
    if tag_problem(keyword) is not None:
        return [""] * len(images)
    cells: dict[Path | None, str] = {None: ""}
    for image in images:
        if image not in cells:
            cells[image] = _cell(image, keyword)
    return [cells[image] for image in images]


def _cell(image: Path | None, keyword: str) -> str:
    assert image is not None
    try:
        found = {
            read_tags(file, [keyword]).get(keyword, "")
            for file in image_files(image)
            if is_dicom(file)
        }
    except DataError:
        return ""
    return _in_years(found.pop(), keyword) if len(found) == 1 else ""


def _in_years(text: str, keyword: str) -> str:
    from pydicom.datadict import dictionary_VR

    if dictionary_VR(keyword) != "AS" or not text[:-1].isdigit() or text[-1] not in _YEARS:
        return text
    return f"{int(text[:-1]) * _YEARS[text[-1]]:.6g}"
