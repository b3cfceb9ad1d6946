import json

import numpy as np
import pytest
from PIL import Image

from medfusion.config import load_config
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.cohorts.rsna_pneumonia import LABEL
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.errors import DataError

LABELS = "patientId,x,y,width,height,Target"
CLASSES = "patientId,class"
SIDE = 64  # of the pictures made from files of 1024 pixels
NAMES = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")


def write_source(folder, *extra: str, count: int = 45, classes=()):
    """A third has one or two boxes; the other radiographs are said to be negative."""
    (folder / "stage_2_train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels, kinds = [LABELS], [CLASSES]
    for number in range(count):
        name = f"a{number:03}"
        pixels = rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "stage_2_train_images" / f"{name}.png")
        kinds.append(f"{name},{NAMES[number % 3]}")
        if number % 3 != 1:
            labels.append(f"{name},,,,,0")
            continue
        labels.append(f"{name},256.0,128.0,512.0,640.0,1")
        if number % 6 == 1:
            labels.append(f"{name},100,100,60,70.5,1")
            kinds.append(kinds[-1])  # as many rows as boxes
    (folder / "stage_2_train_labels.csv").write_text("\n".join([*labels, *extra]) + "\n")
    text = "\n".join([*kinds, *classes]) + "\n"
    (folder / "stage_2_detailed_class_info.csv").write_text(text)
    return folder


def run(src, out):
    return importer("rsna-pneumonia").run(src, out, Partition(sites=1))


def test_boxes_are_brought_to_the_pictures_and_target_0_is_negative(tmp_path):
    imported = run(write_source(tmp_path / "src"), tmp_path / "out")
    (notice,) = imported.notices
    assert "each radiograph counts as a patient of its own" in notice
    (site,) = (tmp_path / "out" / "sites").iterdir()
    studies = read_studies(open_site(site))
    assert open_site(site).task.labels.names == (LABEL,)
    np.testing.assert_array_equal(np.sort(studies.labels[:, 0]), [0] * 30 + [1] * 15)
    np.testing.assert_array_equal(studies.boxes.present(1), studies.labels)
    counts = (studies.boxes.classes > 0).sum(axis=1)
    assert np.bincount(counts).tolist() == [30, 7, 8]
    one = studies.boxes.corners[counts == 1, 0]
    np.testing.assert_allclose(one, [[0.25, 0.125, 0.75, 0.75]] * 7, rtol=1e-6)
    assert load_config(tmp_path / "out" / "config.toml").model.fusion_3d == "none"


def test_with_the_table_of_origins_a_patient_is_a_person(tmp_path):
    src = write_source(tmp_path / "src")
    origins = [
        {"img_id": f"{number // 2:08}_{number % 2:03}.png", "subset_img_id": f"a{number:03}"}
        for number in range(45)
    ]
    path = src / "pneumonia-challenge-dataset-mappings_2018.json"
    path.write_text(json.dumps(origins))
    imported = run(src, tmp_path / "out")
    assert imported.notices == ()
    assert (imported.sites[0].patients, imported.sites[0].studies) == (23, 45)
    path.write_text(json.dumps(origins[1:]))
    with pytest.raises(DataError, match=r"'patientId'.*not found in pneumonia"):
        run(src, tmp_path / "fewer")
    path.write_text("[1]")
    with pytest.raises(DataError, match="expected a list of entries"):
        run(src, tmp_path / "other")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a001,1,1,2,2,0", "expected 1 beside a box"),
        ("a001,,,,,0", "found 0 and 1"),
        ("a001,,,,,1", "expected a number of pixels"),
        ("a001,1,1,wide,2,1", "expected a number of pixels"),
        ("a001,256.0,128.0,512.0,640.0,1", "found it again"),
        ("a001,1,1,2,2,2", "expected 1, 0 or blank"),
        ("a001,1,1,2,2,", "expected a value"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, row, message):
    src = write_source(tmp_path / "src", row)
    with pytest.raises(DataError, match=message) as told:
        run(src, tmp_path / "out")
    assert "a001" not in str(told.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [("a000,Lung Opacity", "contradict"), ("a001,Normal", "contradict"), ("a0,Odd", "one of")],
)
def test_classes_that_contradict_are_refused(tmp_path, row, message):
    src = write_source(tmp_path / "src", classes=[row])
    with pytest.raises(DataError, match=message):
        run(src, tmp_path / "out")
    (src / "stage_2_detailed_class_info.csv").unlink()
    assert run(src, tmp_path / "out").sites


def test_without_images_nothing_is_imported(tmp_path):
    src = write_source(tmp_path / "src")
    for path in (src / "stage_2_train_images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="found none of the 45"):
        run(src, tmp_path / "out")
