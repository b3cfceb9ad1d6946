from pathlib import Path

import pytest
from site_folder import ROWS, TASK, make_site

from medfusion.data.check import check_site
from medfusion.data.draft import draft_site
from medfusion.data.guess import guess_map, match_columns
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError, UsageError


@pytest.fixture
def task_path(tmp_path: Path) -> Path:
    path = tmp_path / "task.toml"
    path.write_text(TASK.format(split=""))
    return path


def test_a_foreign_table_is_mapped(tmp_path: Path, task_path: Path) -> None:
    table = tmp_path / "export" / "röntgen.csv"
    table.parent.mkdir()
    lines = [
        "Study-ID;Patient ID;Image;Report;Alter;Smoker;Geschlecht;ICU;extra",
        "1;a;;kurz;61,5;ja;w;1;x",
        "2;b;;länger;unbekannt;nein;m;0;y",
        "3;b;;;44;?;divers;0;z",
    ]
    table.write_bytes("\n".join(lines).encode("cp1252"))
    folder = tmp_path / "St. Anna"
    todos = draft_site(folder, table=table, task_path=task_path)
    text = (folder / "site.toml").read_text(encoding="utf-8")
    assert todos == text.count("# TODO") > 5
    assert "divers" not in text
    assert "1 further values are not what the task expects" in text
    assert "no column looks like 'death'" in text
    (folder / "site.toml").write_text(
        text.replace("# [columns.death]\n# from", "[columns.death]\nfrom")
    )
    site = open_site(folder)
    assert site.name == "St.-Anna"
    assert site.table == table
    files = site.config.files
    assert (files.encoding, files.delimiter, files.decimal) == ("cp1252", ";", ",")
    columns = site.config.columns
    assert columns["age"].source == "Alter"
    assert columns["age"].map == {"unbekannt": ""}
    assert columns["smoker"].map == {"ja": "1", "nein": "0", "?": ""}
    assert columns["sex"].map == {"w": "F", "m": "M"}
    assert columns["notes"].source == "Report"
    errors = [f.code for f in check_site(folder).findings if f.severity == "error"]
    assert errors == ["unknown-category"]


def test_a_table_in_the_right_form_needs_no_mapping(tmp_path: Path, task_path: Path) -> None:
    folder = make_site(tmp_path)
    (folder / "site.toml").unlink()
    draft_site(folder, table=folder / "studies.csv", task_path=task_path)
    site = open_site(folder)
    assert site.config.columns == {}
    assert len(read_studies(site)) == len(ROWS)
    assert site.images == folder / "images"
    assert not [f for f in check_site(folder).findings if f.code == "patients-public"]


def test_an_existing_draft_is_never_overwritten(tmp_path: Path, task_path: Path) -> None:
    folder = make_site(tmp_path)
    before = (folder / "site.toml").read_text()
    with pytest.raises(UsageError, match="already there"):
        draft_site(folder, table=folder / "studies.csv", task_path=task_path)
    assert (folder / "site.toml").read_text() == before


def test_a_missing_table_leaves_nothing_behind(tmp_path: Path, task_path: Path) -> None:
    with pytest.raises(DataError, match="no such table"):
        draft_site(tmp_path / "new", table=tmp_path / "no.csv", task_path=task_path)
    assert not (tmp_path / "new").exists()


def test_equal_names_win_over_similar_ones(task_path: Path) -> None:
    task = Task.load(task_path)
    found = match_columns(task, ["ages", "age", "PATIENT ID", "exam", "Deaths", "gender", "zzz"])
    assert found["age"].source == "age"
    assert found["patient_id"].sure
    assert (found["study_id"].source, found["study_id"].sure) == ("exam", False)
    assert found["death"].source == "Deaths"
    assert found["sex"].source == "gender"
    assert "notes" not in found


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("sex", ["F", "M", ""], ({}, 0)),
        ("sex", ["female", "Male", "x", "y"], ({"female": "F", "Male": "M"}, 2)),
        ("icu", ["0", "1.0", "yes", "12", "N/A"], ({"yes": "1", "N/A": ""}, 1)),
        ("age", ["61", "61.5", "unknown", "old"], ({"unknown": ""}, 1)),
        ("notes", ["yes", "no"], ({}, 0)),
        ("patient_id", ["yes", "no"], ({}, 0)),
    ],
)
def test_only_evident_values_are_mapped(
    task_path: Path, name: str, cells: list[str], expected: tuple[dict[str, str], int]
) -> None:
    assert guess_map(name, Task.load(task_path), cells, ".") == expected
