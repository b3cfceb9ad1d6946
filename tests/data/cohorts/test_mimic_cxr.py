import csv
import gzip
import shutil

import numpy as np
import pytest
from PIL import Image

from medfusion.data.cohorts.chexpert import LABELS, OBSERVATIONS
from medfusion.data.cohorts.mimic_cxr import clinical_context
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.data.task import Task
from medfusion.errors import DataError

SECRET = "77317731"
_PATIENTS = 40
_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough, patient {number}.  // rule
 out pneumonia

 COMPARISON:  None.

 FINDINGS:

 There is SECRETFINDING.

 IMPRESSION:
 SECRETFINDING.
"""


def run(src, out, sites=1):
    return importer("mimic-cxr").run(src, out, Partition(sites=sites))


def _patient(number):
    return str(10_000_000 + number)


def _study(number):
    return str(50_000_000 + number)


def _image(number, view):
    return f"{number:08x}-{view:08x}-00000000"


def tables():
    """One study of each patient: a PA or AP image and a lateral one."""
    metadata, labels, split = [], [], []
    for number in range(_PATIENTS):
        keys = {"subject_id": _patient(number), "study_id": _study(number)}
        for view, position in enumerate([("PA", "AP")[number % 2], "LATERAL"]):
            image = {"dicom_id": _image(number, view)}
            metadata.append(image | keys | {"ViewPosition": position, "Rows": "2544"})
            part = "train" if number < 30 else ("validate", "test")[number % 2]
            split.append(image | keys | {"split": part})
        marks = dict.fromkeys(OBSERVATIONS.values(), "")
        marks |= {"Edema": ("1.0", "0.0", "-1.0", "")[number % 4], "Pleural Effusion": "1.0"}
        labels.append(keys | marks)
    return {"metadata": metadata, "chexpert": labels, "split": split}


def write_source(folder, content=None, *, reports=True, packed=True):
    """A small fabricated folder in the layout of the data set."""
    content = tables() if content is None else content
    folder.mkdir()
    for name, rows in content.items():
        path = folder / f"mimic-cxr-2.0.0-{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if packed:
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    rng = np.random.default_rng(0)
    for number in range(_PATIENTS):
        patient = folder / "files" / "p10" / f"p{_patient(number)}"
        study = patient / f"s{_study(number)}"
        study.mkdir(parents=True)
        for view in (0, 1):
            pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(study / f"{_image(number, view)}.jpg")
        if reports:
            (patient / f"s{_study(number)}.txt").write_text(_REPORT.format(number=number))
    return folder


def _read(out):
    return read_studies(open_site(out / "sites/site_1"))


def _numbers(studies):
    """Patient number of each study, which its note tells."""
    return np.array([int(note.split("patient ")[1].split(".")[0]) for note in studies.notes])


def test_frontal_images_become_studies_with_view_labels_split_and_notes(tmp_path):
    src = write_source(tmp_path / "src")
    imported = run(src, tmp_path / "out")
    assert imported.notices == ("ViewPosition: 40 images not PA or AP, left out",)
    task = Task.load(tmp_path / "out/task.toml")
    assert task.labels.names == LABELS
    assert (task.image.size, task.text.max_tokens) == ((224, 224), 64)
    studies = _read(tmp_path / "out")
    numbers = _numbers(studies)
    assert sorted(numbers) == list(range(_PATIENTS))
    assert studies.n_patients == _PATIENTS
    assert studies.features[:, 0].tolist() == (numbers % 2).tolist()
    parts = np.where(numbers < 30, 0, np.where(numbers % 2 == 0, 1, 2))
    assert studies.split_column.tolist() == parts.tolist()
    for number, image in zip(numbers, studies.images, strict=True):
        expected = next(src.rglob(f"{_image(number, 0)}.jpg"))
        assert image.read_bytes() == expected.read_bytes()


def test_blank_is_absent_and_uncertain_is_unknown(tmp_path):
    run(write_source(tmp_path / "src"), tmp_path / "out")
    studies = _read(tmp_path / "out")
    edema = np.array([1, 0, np.nan, 0])[_numbers(studies) % 4]
    np.testing.assert_array_equal(studies.labels[:, LABELS.index("Edema")], edema)
    assert (studies.labels[:, LABELS.index("Pleural_Effusion")] == 1).all()
    assert (studies.labels[:, LABELS.index("Fracture")] == 0).all()


def test_notes_hold_the_indication_and_nothing_of_the_findings(tmp_path):
    run(write_source(tmp_path / "src"), tmp_path / "out")
    studies = _read(tmp_path / "out")
    expected = "___ year old woman with cough, patient {}. // rule out pneumonia"
    notes = [expected.format(number) for number in _numbers(studies)]
    assert list(studies.notes) == notes
    table = (tmp_path / "out/sites/site_1/studies.csv").read_text()
    for hidden in ("SECRETFINDING", _patient(3), _study(3), _image(3, 0)):
        assert hidden not in table


def test_without_reports_the_task_has_no_text(tmp_path):
    run(write_source(tmp_path / "src", reports=False, packed=False), tmp_path / "out")
    assert Task.load(tmp_path / "out/task.toml").modalities == ("image", "tabular")


@pytest.mark.parametrize(
    ("report", "context"),
    [
        ("HISTORY: Fever.\n\nFINDINGS: Bad.", "Fever."),
        ("INDICATION: Fever\n and  cough\n\nThe lungs are bad.", "Fever and cough"),
        ("CLINICAL HISTORY: Fever. IMPRESSION: Bad.", "Fever."),
        ("HISTORY: Fever. WET READ: Bad.", "Fever."),
        ("Indication: Fever.\nFindings: bad.", "Fever."),
        ("INDICATION: Fever, findings: bad.", "Fever,"),
        ("REASON FOR EXAM: Fever.\nTwo views of the chest:\nbad", "Fever."),
        ("INDICATION/HISTORY: Fever.\n \nbad", "Fever."),
        ("HISTORY: Fever.\nCOMPARISON: bad\n\nINDICATION:  Cough.\n", "Fever. Cough."),
        ("HISTORY: Fever\nFINDINGS\nbad", "Fever"),
        ("REASON FOR EXAM: Fever.\nPA and lateral chest, 2 views: bad", "Fever."),
        ("HISTORY: Fever\nAP CHEST, 8:15 A.M., ___: bad", "Fever"),
        ("CLINICAL HISTORY: Fever.\nTwo views of the chest show bad lungs.", "Fever."),
        ("HISTORY: Fever. Wet read: bad lungs", "Fever."),
        ("WET READ: bad 8:15 AM\n  History: bad\n very bad.\n\nINDICATION: Cough.", "Cough."),
        ("INDICATION:\n\nThe lungs are bad.", ""),
        ("No history of bad lungs: all is bad.", ""),
        ("FINDINGS: bad\n\nIMPRESSION: with a history of bad", ""),
        ("", ""),
    ],
)
def test_context_stops_before_anything_that_was_seen(report, context):
    assert clinical_context(report) == context


def test_studies_without_labels_and_images_that_are_absent_are_left_out(tmp_path):
    content = tables()
    del content["chexpert"][3]
    src = write_source(tmp_path / "src", content)
    next(src.rglob(f"{_image(5, 0)}.jpg")).unlink()
    imported = run(src, tmp_path / "out")
    assert imported.notices == (
        "ViewPosition: 40 images not PA or AP, left out",
        "study_id: 1 image of studies without labels, left out",
        "dicom_id: 1 image not there, their rows left out",
    )
    assert set(range(_PATIENTS)) - set(_numbers(_read(tmp_path / "out"))) == {3, 5}
    shutil.rmtree(src / "files")
    with pytest.raises(DataError, match="found none of the 39 that the table names"):
        run(src, tmp_path / "none")


@pytest.mark.parametrize(
    ("table", "column", "cell", "message"),
    [
        ("metadata", "subject_id", "../" + SECRET, r"'subject_id': 1 cell \(row 4\): .*PhysioNet"),
        ("metadata", "study_id", "s" + SECRET, r"'study_id': 1 cell \(row 4\): .*PhysioNet"),
        ("metadata", "dicom_id", "../" + SECRET, r"'dicom_id': 1 cell \(row 4\): .*PhysioNet"),
        ("metadata", "dicom_id", "", r"'dicom_id': 1 cell \(row 4\): .*found blank"),
        ("metadata", "dicom_id", _image(0, 0), r"'dicom_id': 1 cell \(row 4\): .*found it again"),
        ("chexpert", "Edema", SECRET, r"'Edema': 1 cell \(row 4\): expected 1, 0, -1 or blank"),
        ("chexpert", "study_id", _study(0), r"'study_id': 1 cell \(row 4\): .*found it again"),
        ("split", "split", SECRET, r"'split': 1 cell \(row 4\): expected train, validate, test"),
        ("split", "dicom_id", "abc", r"metadata.csv.*'dicom_id': 1 cell \(row 4\): .*lists"),
    ],
)
def test_bad_cells_name_file_row_and_column_but_no_value(tmp_path, table, column, cell, message):
    content = tables()
    content[table][2][column] = cell
    with pytest.raises(DataError, match=message) as error:
        run(write_source(tmp_path / "src", content), tmp_path / "out")
    assert SECRET not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_table_column_and_damaged_gzip(tmp_path):
    src = write_source(tmp_path / "src")
    split = src / "mimic-cxr-2.0.0-split.csv.gz"
    split.write_bytes(split.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"split\.csv\.gz: not a readable gzip file"):
        run(src, tmp_path / "out")
    split.unlink()
    with pytest.raises(DataError, match=r"mimic-cxr-2\.0\.0-split\.csv: no such table"):
        run(src, tmp_path / "out")
    (src / "mimic-cxr-2.0.0-chexpert.csv").write_text("study_id,edema\n1,1\n")
    with pytest.raises(DataError, match=r"no column 'Edema' \(did you mean 'edema'\?\)"):
        run(src, tmp_path / "out")
