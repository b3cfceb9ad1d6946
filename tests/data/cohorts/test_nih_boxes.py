import numpy as np
import pytest
from PIL import Image

from medfusion.data.cohorts.nih_boxes import LABELS
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.errors import DataError

ENTRIES = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex,View Position"
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"  # as the official file has it
FINDINGS = ["Effusion|Infiltration", "No Finding", "Hernia", "Mass"]
SIDE = 128


def write_source(folder, extra: str = "", *, count: int = 30):
    """As many patients; effusions and infiltrations have boxes, masses have none."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries, boxes = [ENTRIES], [BOXES]
    for patient in range(count):
        name, findings = f"{patient:08d}_000.png", FINDINGS[patient % 4]
        pixels = rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        entries.append(f"{name},{findings},{patient},{30 + patient},F,PA")
        if patient % 4 == 0:
            boxes.append(f"{name},Effusion,20.25,30.5,40,50,,,")
            boxes.append(f"{name},Infiltrate,60,10,20,20.5,,,")
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(entries) + "\n")
    (folder / "BBox_List_2017.csv").write_text("\n".join([*boxes, *filter(None, [extra])]) + "\n")
    return folder


def run(src, out):
    return importer("nih-boxes").run(src, out, Partition(sites=1))


def test_studies_whose_findings_have_boxes_are_read(tmp_path):
    imported = run(write_source(tmp_path / "src"), tmp_path / "out")
    assert imported.notices == ("7 studies left out, whose findings have no box",)
    (site,) = (tmp_path / "out" / "sites").iterdir()
    studies = read_studies(open_site(site))
    assert len(studies) == 23
    expected = dict.fromkeys(LABELS, 0) | {"Effusion": 8, "Infiltration": 8}
    assert dict(zip(LABELS, studies.labels.sum(axis=0), strict=True)) == expected
    np.testing.assert_array_equal(studies.boxes.present(8), studies.labels)
    boxed = studies.boxes.classes[:, 0] > 0
    corners = np.array([20.25, 30.5, 60.25, 80.5]) / SIDE
    np.testing.assert_allclose(studies.boxes.corners[boxed, 0], [corners] * 8, rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("00000001_000.png,Hernia,1,1,2,2,,,", "expected one of Atelectasis"),
        ("00000001_000.png,Mass,1,one,2,2,,,", "expected a number of pixels"),
        ("00000001_000.png,Mass,1,,2,2,,,", "expected a number of pixels"),
    ],
)
def test_wrong_boxes_are_refused_with_their_row(tmp_path, row, message):
    src = write_source(tmp_path / "src", row)
    with pytest.raises(DataError, match=message) as error:
        run(src, tmp_path / "out")
    assert "(row 18)" in str(error.value)


def test_a_folder_without_boxes_or_without_their_images_is_refused(tmp_path):
    src = write_source(tmp_path / "src")
    (src / "BBox_List_2017.csv").write_text(BOXES + "\n" + "other.png,Mass,1,1,2,2,,,\n")
    with pytest.raises(DataError, match="found none of them"):
        run(src, tmp_path / "out")
    (src / "BBox_List_2017.csv").unlink()
    with pytest.raises(DataError, match="no such table"):
        run(src, tmp_path / "out")
