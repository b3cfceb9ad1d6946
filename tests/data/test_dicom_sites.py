"""Sites whose images are DICOM: features from tags, and what the headers hold beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom
from numpy.testing import assert_array_equal
from site_folder import ROWS, make_site

from medfusion.data.check import SiteReport, check_site
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.errors import ConfigError

SECRET = {
    "PatientName": "Secret^Person",
    "PatientID": "secret-7",
    "StudyDate": "19991231",
    "PatientAge": "030Y",
    "PatientSex": "F",
}
TAGS = '[columns.sex]\nfrom = "dicom:PatientSex"\n[columns.age]\nfrom = "dicom:PatientAge"\n'
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def dicom_site(folder: Path, *images: dict[str, object], extra: str = TAGS) -> Path:
    """Make a site of four studies whose first images are DICOM files with these tags."""
    names = [f"{number}.dcm" for number in range(len(images))]
    rows = [
        ",".join([*row.split(",")[:2], name, *row.split(",")[3:]])
        for row, name in zip(ROWS, [*names, *[""] * (4 - len(names))], strict=True)
    ]
    site = make_site(folder, tuple(rows), extra=extra)
    pixels = np.random.default_rng(0).integers(0, 256, (18, 20), dtype=np.uint8)
    for number, (name, tags) in enumerate(zip(names, images, strict=True)):
        write_dicom(site / "images" / name, pixels + np.uint8(number), **tags)
    return site


def only(report: SiteReport, code: str) -> str:
    (found,) = [f for f in report.findings if f.code == code]
    return f"{found.severity} {found.message}"


def test_features_may_come_from_tags(tmp_path: Path) -> None:
    site = dicom_site(
        tmp_path,
        SECRET,  # s3
        {"PatientSex": "M", "PatientAge": "018M"},  # s1
        {"PatientSex": "", "PatientAge": "019Y"},  # s2
    )
    strange = site / "images" / "2.dcm"
    strange.write_bytes(strange.read_bytes().replace(b"019Y", b"Old!"))
    report = check_site(site)
    assert "row 4" in only(report, "not-a-number")
    assert "Old!" not in json.dumps(report.to_json())
    write_dicom(site / "images" / "2.dcm", np.zeros((9, 9), np.uint8), PatientAge="007D")
    studies = read_studies(open_site(site))
    assert studies.study_ids.tolist() == ["s1", "s2", "s3", "s4"]
    nan = np.nan
    assert_array_equal(studies.features[:, 2], [1, nan, 0, nan])  # sex: F, M
    assert studies.features[:, 0] == pytest.approx(
        [1.5, 7 / 365.25, 30, nan], rel=1e-4, nan_ok=True
    )
    rates = [f for f in check_site(site).findings if f.where == "DICOM tag PatientSex"]
    assert "missing in 2 of 4 studies" in rates[0].message


def test_slices_tell_a_feature_where_they_agree(tmp_path: Path) -> None:
    site = dicom_site(tmp_path, {}, {})
    for name, sexes in (("0.dcm", "FF"), ("1.dcm", "FM")):
        folder = site / "images" / name
        folder.unlink()
        folder.mkdir()
        for number, sex in enumerate(sexes):
            path = folder / str(number)
            write_dicom(path, np.zeros((18, 20), np.uint8), PatientSex=sex)
    studies = read_studies(open_site(site))  # s3 has the first folder, s1 the second
    assert_array_equal(studies.features[:, 2], [np.nan, np.nan, 0, np.nan])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('[columns.sex]\nfrom = "dicom:PatientSecs"', "no tag.*did you mean 'PatientSex'"),
        ('[columns.sex]\nfrom = "dicom:PixelData"', "neither a short text nor a number"),
        ('[columns.icu]\nfrom = "dicom:PatientSex"', "tags of DICOM images are for features"),
        ('[columns.image]\nfrom = "dicom:StudyID"', "tags of DICOM images are for features"),
    ],
)
def test_a_column_from_a_tag_that_cannot_be_is_refused(tmp_path: Path, extra, message) -> None:
    site = dicom_site(tmp_path, SECRET, extra=extra)
    with pytest.raises(ConfigError, match=message):
        open_site(site)
    assert check_site(site).failed


def test_the_check_names_tags_and_counts_but_no_value(tmp_path: Path) -> None:
    site = dicom_site(
        tmp_path,
        SECRET | {"BurnedInAnnotation": "YES"},
        {
            "PatientID": "secret-8",
            "InstitutionName": "Secret Hosp",
            "SOPClassUID": CAPTURE,
            "BurnedInAnnotation": "NO",
        },
        {"PatientName": "", "SOPClassUID": CAPTURE},
        {"PatientName": "Anon", "PatientIdentityRemoved": "YES"},
    )
    report = check_site(site)
    who = only(report, "dicom-identifiers")
    assert who.startswith("warning")
    assert "PatientName (1), PatientID (2), of 4 DICOM files" in who
    help_to_find = only(report, "dicom-quasi-identifiers")
    assert help_to_find.startswith("note")
    assert "StudyDate (1), InstitutionName (1), " in help_to_find
    assert "SOPInstanceUID (4)" in help_to_find
    assert "PatientName (1)" in help_to_find
    assert "PatientIdentityRemoved in 1" in help_to_find
    assert only(report, "dicom-burnt-in").startswith("warning 1 of 4 DICOM files say")
    assert only(report, "dicom-capture").startswith("warning 1 of 4 DICOM files are secondary")
    assert only(report, "dicom-burnt-in-unsaid").startswith("note 1 of 4")
    told = json.dumps(report.to_json())
    assert not any(word in told for word in ("ecret", "1999", "Anon"))
    assert not report.failed


def test_a_site_without_dicom_is_told_nothing_of_it(tmp_path: Path) -> None:
    codes = {finding.code for finding in check_site(make_site(tmp_path)).findings}
    assert not any(code.startswith("dicom") for code in codes)


def test_private_tags_are_counted(tmp_path: Path) -> None:
    import pydicom

    site = dicom_site(tmp_path, SECRET, SECRET)
    path = site / "images" / "0.dcm"
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0011, "Secret maker", create=True).add_new(1, "LO", "secret")
    dataset.save_as(path)
    assert "in 1 of 2 DICOM files" in only(check_site(site), "dicom-private-tags")
