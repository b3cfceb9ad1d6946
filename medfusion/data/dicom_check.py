"""What a site's DICOM headers hold beside the image: which tags, in how many files, never values.

The tags are those of the basic confidentiality profile (PS3.15 Annex E) that say who, when and
where; text burnt into pixels is a matter of its own, since no reader can leave it out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfusion.data.dicom import read_file, reading
from medfusion.data.findings import Finding, plural
from medfusion.data.image_files import image_files, is_dicom
from medfusion.errors import DataError

# Of the patient: each alone may tell who it is.
_DIRECT = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientBirthName", "OtherPatientNames"),
    *("OtherPatientIDs", "OtherPatientIDsSequence", "IssuerOfPatientID", "PatientAddress"),
    *("PatientTelephoneNumbers", "PatientMotherBirthName", "MedicalRecordLocator"),
    *("AccessionNumber", "AdmissionID", "PatientInsurancePlanCodeSequence", "MilitaryRank"),
    *("PatientReligiousPreference", "ResponsiblePerson", "PatientComments", "ImageComments"),
    *("AdditionalPatientHistory", "EthnicGroup", "Occupation"),
)
# Of times, places, staff and devices: together with other sources they may.
_INDIRECT = (
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime", "AcquisitionTime"),
    *("AdmittingDate", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("StationName", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
    *("PhysiciansOfRecord", "RequestingPhysician", "NameOfPhysiciansReadingStudy", "StudyID"),
    *("DeviceSerialNumber", "ProtocolName", "StudyDescription", "SeriesDescription"),
    *("RequestedProcedureDescription", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
_ABOUT_PIXELS = ("BurnedInAnnotation", "SOPClassUID", "PatientIdentityRemoved")
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and its kinds below
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")


@dataclass
class _Count:
    """How many files hold what."""

    files: int = 0
    direct: Counter[str] = field(default_factory=Counter)
    indirect: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    private: int = 0
    burnt_in: int = 0
    captures: int = 0
    unsaid: int = 0


def header_findings(images: Sequence[Path | None], where: str) -> Iterator[Finding]:
    """Tell which identifying tags the images' files fill, and which may show text in their pixels.

    Files that say that their patient's identity was removed (PatientIdentityRemoved) are told of
    in notes only; what cannot be read is left out.
    """
    count = _Count()
    for image in sorted(set(images) - {None}, key=str):
        assert image is not None
        for file in _dicom_files(image):
            _add(count, file)
    if not count.files:
        return
    yield from _tag_findings(count, where)
    yield from _pixel_findings(count, where)


def _dicom_files(image: Path) -> list[Path]:
    try:
        return [file for file in image_files(image) if is_dicom(file)]
    except DataError:
        return []


def _add(count: _Count, file: Path) -> None:
    try:
        with reading():
            header = read_file(file, stop_before_pixels=True)
            filled = {keyword for keyword in (*_DIRECT, *_INDIRECT) if header.get(keyword)}
            private = any(tag.is_private for tag in header.keys())  # noqa: SIM118
            burnt_in, kind, removed = (str(header.get(k, "")).strip() for k in _ABOUT_PIXELS)
    except DataError:
        return
    count.files += 1
    count.private += private
    anonymous = removed == "YES"
    count.removed += anonymous
    count.indirect.update(k for k in filled if anonymous or k not in _DIRECT)
    count.direct.update(k for k in filled if k in _DIRECT and not anonymous)
    capture = kind.startswith(_CAPTURES) or kind in _ULTRASOUND
    count.burnt_in += burnt_in == "YES"
    count.captures += capture and burnt_in not in ("YES", "NO")
    count.unsaid += not capture and burnt_in not in ("YES", "NO")


def _tag_findings(count: _Count, where: str) -> Iterator[Finding]:
    of = f"of {plural(count.files, 'DICOM file')}"
    if count.direct:
        message = (
            f"tags that may say who a patient is: {_listed(count.direct)}, {of}; no tag is read "
            "unless a column is taken from it, but the files are better without"
        )
        yield Finding("warning", "dicom-identifiers", where, message)
    if count.indirect:
        removed = f" (PatientIdentityRemoved in {count.removed:,})" if count.removed else ""
        message = f"tags that may help to find a patient: {_listed(count.indirect)}, {of}{removed}"
        yield Finding("note", "dicom-quasi-identifiers", where, message)
    if count.private:
        message = f"private tags, which may hold anything, in {count.private:,} {of}"
        yield Finding("note", "dicom-private-tags", where, message)


def _pixel_findings(count: _Count, where: str) -> Iterator[Finding]:
    of = f"of {plural(count.files, 'DICOM file')}"
    look = "a name in the pixels would be learned from, so look at some of them"
    if count.burnt_in:
        message = f"{count.burnt_in:,} {of} say that text is burnt in (BurnedInAnnotation); {look}"
        yield Finding("warning", "dicom-burnt-in", where, message)
    if count.captures:
        message = (
            f"{count.captures:,} {of} are secondary captures or ultrasound, which often show text, "
            f"and do not say otherwise (BurnedInAnnotation); {look}"
        )
        yield Finding("warning", "dicom-capture", where, message)
    if count.unsaid:
        message = f"{count.unsaid:,} {of} do not say whether text is burnt in (BurnedInAnnotation)"
        yield Finding("note", "dicom-burnt-in-unsaid", where, message)


def _listed(counts: Counter[str]) -> str:
    order = {keyword: place for place, keyword in enumerate((*_DIRECT, *_INDIRECT))}
    names = sorted(counts, key=order.__getitem__)
    return ", ".join(f"{name} ({counts[name]:,})" for name in names)
