import csv

import numpy as np
import pytest
from PIL import Image

from medfusion.config import load_config
from medfusion.data.check import check_site
from medfusion.data.cohorts.covid_chestxray import FEATURES
from medfusion.data.cohorts.covid_lungs import LABELS
from medfusion.data.cohorts.registry import importer
from medfusion.data.site import open_site
from medfusion.data.studies import read_studies
from medfusion.errors import DataError

import_cohort = importer("covid-lungs").run
WIDTH, HEIGHT = 64, 48
OUTCOMES = ("went_icu", "in_icu", "survival", "intubated", "intubation_present")


def write_source(folder, *, changed=lambda rows: rows):
    """A small fabricated folder in the layout of the data set; image 3 has no boxes."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for number in range(24):
        name = f"images/img_{number:04d}.jpg"
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        row = dict.fromkeys((*FEATURES, *OUTCOMES, "clinical_notes_masked"), "")
        row |= {"image": name, "patientid": str(number // 2), "age": "50"}
        rows.append(row | {"site": "north" if number < 12 else "south"})
        if number != 3:
            for label, x in (("right_lung", 6.5), ("left_lung", 36.0)):
                box = {"image": name, "category": label, "x": x, "y": 8, "w": 20, "h": 30.5}
                boxes.append(box | {"img_w": WIDTH, "img_h": HEIGHT})
    for file, table in (("metadata.csv", rows), ("lung_boxes.csv", changed(boxes))):
        with (folder / file).open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return folder


def test_lungs_become_boxes_of_a_task_of_detection(tmp_path):
    imported = import_cohort(write_source(tmp_path / "src"), tmp_path / "out")
    assert [(site.name, site.studies) for site in imported.sites] == [("north", 12), ("south", 12)]
    assert imported.notices == ("1 study without a box",)
    site = open_site(tmp_path / "out" / "sites" / "north")
    assert site.task.detects
    assert site.task.labels.names == LABELS
    studies = read_studies(site)
    assert studies.boxes.present(2).sum(axis=0).tolist() == [11, 11]
    # Image 3 has no boxes, which is no word on its lungs.
    assert np.isnan(studies.labels).all(axis=1).sum() == 1
    np.testing.assert_array_equal(np.nansum(studies.labels, axis=0), [11, 11])
    both = studies.boxes.classes[:, 0] > 0
    expected = [6.5 / WIDTH, 8 / HEIGHT, 26.5 / WIDTH, 38.5 / HEIGHT]
    np.testing.assert_allclose(studies.boxes.corners[both, 0], [expected] * 11, rtol=1e-6)
    errors = [f for f in check_site(site.folder).findings if f.severity == "error"]
    assert errors == []
    config = load_config(tmp_path / "out" / "config.toml")
    assert config.model.name == "mdf_net"
    assert "went_icu" not in (site.table).read_text().splitlines()[0]


def test_a_lung_without_a_box_is_unknown_beside_one_with_a_box(tmp_path):
    src = write_source(tmp_path / "src", changed=lambda rows: rows[1:])  # image 0: the left alone
    import_cohort(src, tmp_path / "out")
    studies = read_studies(open_site(tmp_path / "out" / "sites" / "north"))
    half = np.isnan(studies.labels[:, 0]) & (studies.labels[:, 1] == 1)
    assert half.sum() == 1
    assert studies.boxes.classes[half].tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"category": "heart"}, "right_lung or left_lung"),
        ({"w": "wide"}, "expected a number of pixels"),
        ({"image": "../other.jpg"}, "found a path outside"),
    ],
)
def test_wrong_boxes_are_refused_with_their_row(tmp_path, changed, message):
    src = write_source(tmp_path / "src", changed=lambda rows: [rows[0], rows[1] | changed])
    with pytest.raises(DataError, match=message) as error:
        import_cohort(src, tmp_path / "out")
    assert "(row 3)" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_lung_is_drawn_once(tmp_path):
    src = write_source(tmp_path / "src", changed=lambda rows: [*rows, rows[0]])
    with pytest.raises(DataError, match="found it again"):
        import_cohort(src, tmp_path / "out")


def test_a_box_that_leaves_its_image_is_refused(tmp_path):
    src = write_source(tmp_path / "src", changed=lambda rows: [rows[0] | {"w": 60}, *rows[1:]])
    with pytest.raises(DataError, match="boxes that leave it"):
        import_cohort(src, tmp_path / "out")
