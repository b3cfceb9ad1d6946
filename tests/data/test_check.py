from pathlib import Path

import pytest
from site_folder import HEADER, ROWS, make_site

from medfusion.data.check import SiteReport, check_site
from medfusion.data.identifiers import name_meaning
from medfusion.errors import ConfigError, DataError


def messages(report: SiteReport, code: str, severity: str | None = None) -> list[str]:
    return [
        f"{finding.where}: {finding.message}"
        for finding in report.findings
        if finding.code == code and severity in (None, finding.severity)
    ]


def only(report: SiteReport, code: str, severity: str | None = None) -> str:
    (message,) = messages(report, code, severity)
    return message


def test_a_sound_site(tmp_path: Path) -> None:
    report = check_site(make_site(tmp_path, patients_public=2))
    assert not report.failed
    assert report.counts == {
        "studies": 4,
        "patients": 3,
        "training_patients": 2,
        "images": 2,
        "notes": 3,
    }
    codes = {finding.code for finding in report.findings}
    assert codes == {"image-absent", "label-prevalence", "missing-rate"}
    assert "row 5" in only(report, "image-absent", "warning")
    icu, death = messages(report, "label-prevalence", "note")
    assert "column 'icu': 2 of 4 known studies are positive (50.0%; 2 patients)" in icu
    assert "1 of 3 known studies are positive (33.3%; 1 patient)" in death
    rates = messages(report, "missing-rate", "note")
    assert "studies.csv, column 'age': missing in 1 of 4 studies (25.0%)" in rates
    assert "studies.csv, column 'image': missing in 2 of 4 studies (50.0%)" in rates


def test_everything_wrong_is_told_at_once_and_no_cell_is_shown(tmp_path: Path) -> None:
    header = "study_id,patient_id,image,notes,Age,smoker,sex,icu,death,part,agee"
    rows = (
        "study7,patient7,../../secret7.png,call +49 30 1234 5678,61,7,F,1,0,train,a",
        "study7,patient7,secret7.png,secret7,62,0,secret7,0,2,test,b",
        "study8,patient7,a.png,,63,0,F,0,,secret7,c",
        "study9,patient9,a.png,write to secret7@example.org,64,0,M,0,,test,d",
    )
    extra = '[columns.sexx]\nfrom = "x"\n'
    folder = make_site(tmp_path, rows, header=header, split='column = "part"', extra=extra)
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret7")
    report = check_site(folder)
    found = {(finding.severity, finding.code) for finding in report.findings}
    assert found >= {
        ("error", "bad-mapping"),
        ("error", "missing-column"),
        ("error", "image-outside"),
        ("error", "not-binary"),
        ("error", "unknown-category"),
        ("error", "duplicate-study"),
        ("error", "bad-split"),
        ("error", "patient-in-two-splits"),
        ("error", "image-unreadable"),
        ("warning", "image-absent"),
        ("warning", "image-shared"),
        ("warning", "identifier-content"),
        ("warning", "patients-public"),
        ("warning", "one-class-label"),
        ("note", "unused-columns"),
    }
    assert report.failed
    text = str(report.to_json())
    assert not any(word in text for word in ("7.png", "secret7", "study7", "patient7", "1234"))
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert "did you mean 'Age'" in only(report, "missing-column")
    assert "(did you mean 'sex'?)" in only(report, "bad-mapping")
    assert "2 cells (rows 4, 5)" in only(report, "image-unreadable")
    assert "1 patient in several (rows 2, 3, 4)" in only(report, "patient-in-two-splits")


def test_out_of_range_by_column_count_and_row(tmp_path: Path) -> None:
    rows = (*ROWS, *(f"x{i},q{i},,,{200 + i},0,F,0,0" for i in range(7)))
    report = check_site(make_site(tmp_path, rows))
    message = only(report, "out-of-range", "error")
    assert "column 'age': 7 cells (rows 6, 7, 8, 9, 10 and 2 more)" in message
    assert "0 to 120 year" in message


def test_near_misses_of_used_columns(tmp_path: Path) -> None:
    header, rows = HEADER + ",smoker_,unrelated", tuple(f"{row},1,2" for row in ROWS)
    report = check_site(make_site(tmp_path, rows, header=header))
    assert "column 'smoker_'" in only(report, "similar-column", "warning")
    assert "2 columns not used: 'smoker_', 'unrelated'" in only(report, "unused-columns")


def test_labels_with_one_class(tmp_path: Path) -> None:
    rows = ("s1,p1,,,1,1,F,1,", "s2,p2,,,1,1,F,1,")
    report = check_site(make_site(tmp_path, rows))
    assert "column 'icu': no negatives among 2 known" in only(report, "one-class-label", "warning")
    assert "column 'death'" in only(report, "label-unknown", "warning")
    assert not messages(report, "no-positives")


def test_a_site_with_no_positives_and_no_rows(tmp_path: Path) -> None:
    folder = make_site(tmp_path, ("s1,p1,,,1,1,F,0,0", "s2,p2,,,1,1,F,0,"))
    report = check_site(folder)
    assert "no positives in any label" in only(report, "no-positives", "error")
    assert len(messages(report, "one-class-label", "warning")) == 2
    (folder / "studies.csv").write_text(HEADER + "\n")
    report = check_site(folder)
    assert [finding.code for finding in report.findings if finding.severity == "error"] == [
        "no-studies"
    ]


def test_the_declared_patients_are_compared(tmp_path: Path) -> None:
    header, rows = HEADER + ",part", tuple(f"{row},train" for row in ROWS)
    rows = (*rows, "s5,p5,,,,,,0,0,calibration")
    folder = make_site(tmp_path, rows, header=header, split='column = "part"', patients_public=5)
    report = check_site(folder)
    message = only(report, "patients-public", "warning")
    assert "declares 5 training patients, the table has 3" in message
    (folder / "studies.csv").write_text(
        (folder / "studies.csv").read_text().replace("train", "test")
    )
    assert only(check_site(folder), "no-training-patients", "error")


def test_absent_columns_are_notes_and_empty_ones_warnings(tmp_path: Path) -> None:
    rows = tuple(",".join([*row.split(",")[:5], "", *row.split(",")[6:]]) for row in ROWS)
    report = check_site(make_site(tmp_path, rows, extra='[columns.notes]\nfrom = ""\n'))
    assert "[columns.notes]" in only(report, "declared-absent", "note")
    assert "column 'smoker': missing in every study" in only(report, "all-missing", "warning")


def test_copied_rows(tmp_path: Path) -> None:
    report = check_site(make_site(tmp_path, (*ROWS, ROWS[0].replace("s3", "s9"))))
    assert "1 row (row 6)" in only(report, "copied-row", "warning")


def test_identifying_columns(tmp_path: Path) -> None:
    header = HEADER + ",SSN,visit_date,hash,weight"
    rows = tuple(
        f"s{i},p{i},,seen at 030-12-{1000 + i},50,0,F,{i % 2},0,,"
        f"2024-03-{1 + i:02d},k{i}x,{60 + i / 7}"
        for i in range(25)
    )
    report = check_site(make_site(tmp_path, rows, header=header))
    assert "column 'SSN': the name suggests a social security number" in only(
        report, "identifier-name", "warning"
    )
    assert "column 'visit_date'" in only(report, "identifier-date", "warning")
    unique = messages(report, "identifier-unique", "warning")
    assert any("column 'hash'" in message for message in unique)
    assert not any("weight" in message or "study_id" in message for message in unique)
    content = only(report, "identifier-content", "warning")
    assert "column 'notes': 25 cells" in content
    assert "social security" in content


@pytest.mark.parametrize(
    "column",
    [
        "name",
        "LastName",
        "patient_name",
        "full-name",
        "Geburtsdatum",
        "DOB",
        "date_of_birth",
        "MRN",
        "ssn",
        "phone",
        "Mobile_Phone_Number",
        "e-mail",
        "street_address",
        "postcode",
        "insurance_number",
        "Nachname",
    ],
)
def test_names_of_identifiers(column: str) -> None:
    assert name_meaning(column) is not None


@pytest.mark.parametrize(
    "column",
    [
        "file_name",
        "age",
        "mobility",
        "address_known",
        "study_id",
        "patient_id",
        "emergency",
        "notes",
    ],
)
def test_names_that_are_none(column: str) -> None:
    assert name_meaning(column) is None


def test_a_table_without_a_header_shows_none_of_it(tmp_path: Path) -> None:
    rows = tuple(f"{i + 900000},{i + 100},,,64,1,0,1,0" for i in range(30))
    report = check_site(make_site(tmp_path, rows[1:], header=rows[0]))
    assert only(report, "no-header", "error")
    assert "studies.csv, column 1:" in only(report, "identifier-unique")
    assert not any(value in str(report.to_json()) for value in ("9000", "'100'", "64"))


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    (folder / "studies.csv").write_bytes(b"study_id\n\xff\xfe\xfa\n")
    report = check_site(folder)
    assert "not UTF-8" in only(report, "unreadable-table", "error")
    (folder / "studies.csv").unlink()
    assert "cannot be read" in only(check_site(folder), "unreadable-table", "error")
    with pytest.raises(DataError):
        check_site(tmp_path / "nowhere")
    (folder / "site.toml").write_text("[site]\nnam = 1\n")
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        check_site(folder)


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check_site(folder)
    assert sorted(tmp_path.rglob("*")) == before
